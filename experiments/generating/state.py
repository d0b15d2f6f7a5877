"""Where a continuation begins: after the prompts, after a saved state, or both."""

from collections.abc import Sequence

import numpy as np

from carve_jax.data import Tokenizer
from carve_jax.decoding import Decoding, extend, prefill
from carve_jax.decoding_file import load_decoding
from carve_jax.errors import UserError
from carve_jax.files import told
from carve_jax.training.run import Trained
from experiments.generating.text import encode


def start(
    trained: Trained,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    load_state: str | None,
    max_new_tokens: int,
    prefill_chunk: int,
) -> Decoding:
    """The rows after their prompts, with room for what is to come.

    Args:
      trained, tokenizer: of the run.
      texts: prompts; none for one empty row, or for the rows of the file alone.
      load_state: file to go on from, if any.
      max_new_tokens: to make room for.
      prefill_chunk: most tokens of a prompt read at once.

    Raises:
      UserError: a file that is not there or not this model's, or prompts that are not its rows.
    """
    prompts = [encode(tokenizer, "prompt", text) for text in texts]
    decoding, read = None, 0
    if load_state:
        decoding = load(load_state, trained)
        rows, read = len(decoding.position), int(decoding.position.max())
        if texts and len(texts) != rows:
            raise UserError(
                f"{len(texts)} times --prompt, and {load_state} holds {rows} rows: give "
                "one per row, or none"
            )
        if any(len(prompt) == 0 for prompt in prompts):
            raise UserError("--prompt is empty: to add nothing to --load_state, leave it out")
    else:
        separator = np.array([tokenizer.separator], np.int32)
        prompts = [np.concatenate([separator, ids]) for ids in prompts] or [separator]
    room = read + max((len(prompt) for prompt in prompts), default=0) + max_new_tokens
    if decoding is not None and not prompts:
        return extend(trained.model, decoding, room)
    return prefill(
        trained.model,
        trained.params,
        prompts,
        max_length=room,
        chunk=prefill_chunk,
        decoding=decoding,
    )


def load(path: str, trained: Trained) -> Decoding:
    """What a model had read, from the file that --save_state wrote.

    Raises:
      UserError: a file that is not there, is damaged, or is not this model's.
    """
    try:
        with told(f"--load_state={path}", "give a file that --save_state wrote"):
            return load_decoding(path, trained.model.config, params=trained.params)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--load_state: {error}") from error
