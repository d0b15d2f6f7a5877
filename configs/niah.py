"""A needle in a haystack, in few words: RULER's S-NIAH-1 as training data, over bytes.

Source: synthetic; "KEY is 1234567." hidden among sentences, then "KEY is", and the loss on what
follows.
Command: python -m experiments.train --config=configs/niah.py --workdir=runs/niah
Duration: about ten minutes of a core's time.
The figure to watch is eval_accuracy in metrics.jsonl, of the bytes of the reply; 0.30 is chance,
since its first and its last byte are always the same. Three seeds of CARVE and of GDN-2 all ended
above 0.99. Longer haystacks than those trained on:
  python -m experiments.evaluate --workdir=runs/niah --tasks=ruler/niah_terse/128
"""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """Two CARVE layers of width 64; rows of 64 bytes, most of which are needle and question."""
    config = mqar.get_config()
    config.model.vocab_size = 257
    config.data = ConfigDict({"source": "ruler", "probe": "niah_terse", "eval_examples": 512})
    config.steps = 1000
    return config
