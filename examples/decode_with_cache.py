"""Decoding with a cache: read prompts once, go on in pieces, keep in a file what was read.

`prefill` reads prompts of any lengths into a cache, and `decode` writes tokens from there. The
cache of a recurrent model has one size, whatever it has read. `save_decoding` and `load_decoding`
keep it, so that another process goes on where this one stopped. The model here has learnt nothing:
what counts is that the pieces give what one call gives.

Command: python -m examples.decode_with_cache
Run time: about half a minute of a CPU core, most of it compilation.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

from carve_jax import (
    LanguageModel,
    LMConfig,
    decode,
    generate,
    load_decoding,
    prefill,
    save_decoding,
)

CONFIG = LMConfig(
    d_model=64, layers=2, mlp_dim=128, num_heads=2, key_dim=16, value_dim=16, tie_embeddings=True
)
PROMPTS = [list(b"the memory decides"), list(b"what to erase")]  # a row each, of any length


def main(new: int = 16, config: LMConfig = CONFIG) -> np.ndarray:
    """Continues two prompts by `new` tokens, in two pieces with a file between; returns them."""
    model = LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(0), np.asarray([PROMPTS[0]]))["params"]

    read = prefill(model, params, PROMPTS, max_length=64)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(read.cache))
    print(f"read {read.position} tokens, kept in {size:,} bytes")
    first, read = decode(model, params, read, max_new_tokens=new // 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        save_decoding(path, read, config, params=params)
        read = load_decoding(path, config, params=params)
    second, read = decode(model, params, read, max_new_tokens=new - new // 2)

    pieces = np.concatenate([first, second], axis=1)
    whole = np.asarray(generate(model, params, PROMPTS, max_new_tokens=new))
    print(f"in pieces and in one call the same: {(pieces == whole).all()}")
    return pieces


if __name__ == "__main__":
    main()
