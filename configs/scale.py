"""The official sizes and recipe of Gated DeltaNet-2 (arXiv 2605.22791), for the configs of a model.

Data: token files of `experiments.prepare_data` with a tokenizer of up to 32,000 tokens; every
command needs --config.data.path=DIR. A batch is 0.5M tokens; --config.optimizer.accumulate_steps
takes it in parts. What a config costs: python -m experiments.train --config=FILE --describe
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

CONTEXT, BATCH = 4096, 128

# 1.3 billion parameters besides embedding and head, as the official code counts; 262,144 floats of
# recurrent state in a layer.
B13 = {"d_model": 2304, "layers": 18, "num_heads": 16, "key_dim": 128, "value_dim": 128}
# Attention of the official hybrid: 18 heads of 128.
SWA = {"attention_heads": 18, "window": 2048}
# Mamba's published head of 64 channels and expansion nearest to 2 at the same state.
MAMBA = {"num_heads": 64, "num_key_heads": 1, "key_dim": 64, "value_dim": 64}
M100 = {"d_model": 768, "layers": 12, "num_heads": 12, "key_dim": 64, "value_dim": 64}
M300 = {"d_model": 1024, "layers": 12, "num_heads": 16, "key_dim": 64, "value_dim": 64}


def get_config(
    size: dict[str, int], pattern: tuple[str, ...], mlp_dim: int, *, tokens: float, **model: Any
) -> ConfigDict:
    """A model of that size, trained on that many tokens by the official recipe."""
    config = base.get_config()
    config.model.update({**size, "pattern": pattern, "mlp_dim": mlp_dim, **model})
    config.model.vocab_size = 32000
    config.model.remat = "full"
    config.data.source = "token_files"
    config.batch_size, config.sequence_length = BATCH, CONTEXT
    config.steps = round(tokens / (BATCH * CONTEXT))
    config.eval_every = config.checkpoint_every = 1000
    config.sample_tokens = 0
    return config
