"""What a model has read of each row, and reading prompts into it: in chunks, of any lengths."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from carve_jax.mixers import MIXERS, SoftmaxAttention
from carve_jax.mixers.base import Cache
from carve_jax.model import LanguageModel, LMConfig, layer_names
from carve_jax.shapes import Array, Bool, Float32, Int32

Tree = TypeVar("Tree")
Prompts = Int32[Array, "B T"] | Int32[np.ndarray, "B T"] | Sequence[Any]


class Decoding(NamedTuple):
    """Rows read so far: a tree of arrays, from which decoding goes on.

    Attributes:
      cache: as `model.init_cache` makes it.
      logits: of each row's next token.
      position: tokens read in each row.
    """

    cache: Cache
    logits: Float32[Array, "B vocab"]
    position: Int32[Array, " B"]


def prefill(
    model: LanguageModel,
    params: Any,
    prompts: Prompts,
    *,
    max_length: int | None = None,
    chunk: int = 2048,
    decoding: Decoding | None = None,
    pad_to: int = 1,
) -> Decoding:
    """Read one prompt per row, in calls of `chunk` tokens, so that memory does not grow with T.

    Prompts of one length are read as they are. Others are padded on the left to one length, and
    the padding is a document of its own, which no mixer lets the prompt see. With a content gate
    documents start at multiples of the gate chunk; what is left of each prompt is then read token
    by token, while the rows that are through wait.

    Args:
      model: the model.
      params: its parameters.
      prompts: an array, or rows of different lengths, each of at least one token.
      max_length: room for tokens in a row, prompt and continuation (full attention, and a window
        longer than that, hold no more). To go on it may be left out, or ask for more room.
      chunk: most tokens per call; with a content gate and different lengths it is rounded down
        to a multiple of the gate chunk, of which it takes one at least.
      decoding: goes on from there, and is used up (its arrays are donated). Rows then read what
        the shortest prompt has in chunks, and the rest token by token.
      pad_to: length that rows are padded to at least, as far as there is room; batches of like
        lengths then share their programs. Above 1, rows of one length are padded too, and read
        as those of different lengths.

    Returns:
      The rows after their prompts; `logits` are those of each row's last token.

    Raises:
      ValueError: when a prompt is empty, longer than the room there is or outside the
        vocabulary, there are more or fewer of them than rows, or a number is out of range.
      TypeError: when prompts are not integers.
    """
    rows = prompt_rows(model, prompts)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}; it must be 1 or more.")
    lengths = np.array([len(row) for row in rows])
    if decoding is None:
        if max_length is None:
            raise ValueError("prefill needs max_length: the most tokens a row will ever hold.")
        alignment = model.config.segment_alignment
        ragged = bool((lengths != lengths[0]).any()) or pad_to > 1
        together = lengths - lengths % alignment if ragged else lengths
        decoding = beside(params, _empty(model, len(rows), max_length))
        if pad_to > 1:  # else no row is padded that need not be
            room = slots(model.config, decoding.cache)
            pad_to = -(-pad_to // alignment) * alignment
            pad_to = pad_to if room is None else min(pad_to, room - room % alignment)
    else:
        if len(rows) != len(decoding.position):
            raise ValueError(
                f"{len(rows)} prompts for the {len(decoding.position)} rows of the decoding: "
                "give one per row."
            )
        if max_length is not None:
            decoding = extend(model, decoding, max_length)
        together, pad_to = np.full_like(lengths, lengths.min()), 1
    check_room(model, decoding, lengths, "prompt")
    decoding = _read_together(model, params, rows, together, chunk, decoding, pad_to)
    return _read_rest(model, params, rows, together, decoding)


def extend(model: LanguageModel, decoding: Decoding, max_length: int) -> Decoding:
    """The same rows with room for `max_length` tokens; what is constant stays as it is."""
    batch = len(decoding.position)
    wanted = jax.eval_shape(lambda: model.init_cache(batch, max_length))

    def lengthen(leaf: Array, want: jax.ShapeDtypeStruct) -> Array:
        # Caches with bounded room have not come round: token p lies in slot p of a longer one too.
        missing = [(0, max(0, new - old)) for old, new in zip(leaf.shape, want.shape, strict=True)]
        return jnp.pad(leaf, missing) if any(after for _, after in missing) else leaf

    return decoding._replace(cache=jax.tree.map(lengthen, decoding.cache, wanted))


def slots(config: LMConfig, cache: Cache) -> int | None:
    """The tokens that a row of this cache can hold; None where no layer sets a bound."""
    bounds = []
    for name, mixer_name in layer_names(config):
        mixer = MIXERS[mixer_name].of_model(config)
        if isinstance(mixer, SoftmaxAttention):
            held = cache[name].key.shape[2]
            if mixer.window is None or held < mixer.window:
                bounds.append(held)
    return min(bounds, default=None)


def check_room(
    model: LanguageModel, decoding: Decoding, new: Int32[np.ndarray, " B"], what: str
) -> None:
    """Raise ValueError if some row has no room for so many tokens more."""
    room = slots(model.config, decoding.cache)
    if room is None:
        return
    read = np.asarray(decoding.position)
    row = int(np.argmax(read + new))
    needed = int(read[row] + new[row])
    if needed > room:
        raise ValueError(
            f"the {what} of row {row} has {new[row]} tokens, of which {room - read[row]} fit: the "
            f"attention cache holds {room} and {read[row]} are read; max_length of at least "
            f"{needed} makes room."
        )


def prompt_rows(model: LanguageModel, prompts: Prompts) -> list[Int32[np.ndarray, " T"]]:
    """The prompts as rows on the host; ValueError or TypeError where they cannot be read."""
    rows = [np.asarray(row) for row in prompts] if isinstance(prompts, list | tuple) else None
    if rows is None:
        array = np.asarray(prompts)
        if array.ndim != 2 or array.size < 1:
            raise ValueError(
                f"prompt_tokens have shape {array.shape}; expected [B, T] with at least one token, "
                "or a list of rows."
            )
        rows = list(array)
    if not rows:
        raise ValueError("there are no prompts; give one row of tokens at least.")
    vocabulary = model.config.vocab_size
    for index, row in enumerate(rows):
        if row.ndim != 1 or row.size < 1:
            raise ValueError(
                f"prompt {index} has shape {row.shape}; expected a row of at least one token."
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise TypeError(f"prompt_tokens are {row.dtype} in row {index}; expected integers.")
        wrong = row[(row < 0) | (row >= vocabulary)]
        if wrong.size:
            raise ValueError(
                f"prompt {index} has token {wrong[0]}; prompt_tokens go from 0 to "
                f"{vocabulary - 1}, beyond the model's vocabulary of {vocabulary} there are none."
            )
    return [row.astype(np.int32) for row in rows]


def where_rows(rows: Bool[Array, " B"], chosen: Tree, other: Tree) -> Tree:
    """Caches with some rows of the one, the rest of the other; the batch is the second axis."""

    def choose(one: Array, two: Array) -> Array:
        return jnp.where(rows.reshape(1, -1, *[1] * (one.ndim - 2)), one, two)

    return jax.tree.map(choose, chosen, other)


def read_token(
    model: LanguageModel, params: Any, tokens: Int32[Array, " B"], cache: Cache
) -> tuple[Cache, Float32[Array, "B vocab"]]:
    """One token per row: the cache after it and the logits of the next."""
    return _read(model, params, tokens[:, None], cache)


def beside(params: Any, tree: Tree) -> Tree:
    """The tree on the one device that `params` are committed to, if they are.

    What is computed from them is committed too, and with uncommitted arrays in its place JAX would
    compile the first call of a function apart from the later ones.
    """
    leaf = jax.tree.leaves(params)[0]
    if getattr(leaf, "committed", False) and isinstance(leaf.sharding, SingleDeviceSharding):
        return jax.device_put(tree, leaf.sharding)
    return tree


def _empty(model: LanguageModel, batch: int, max_length: int) -> Decoding:
    logits = jnp.zeros((batch, model.config.vocab_size), jnp.float32)
    return Decoding(model.init_cache(batch, max_length), logits, jnp.zeros((batch,), jnp.int32))


def _read_together(
    model: LanguageModel,
    params: Any,
    rows: list[np.ndarray],
    together: Int32[np.ndarray, " B"],
    chunk: int,
    decoding: Decoding,
    pad_to: int,
) -> Decoding:
    """Read the first `together[i]` tokens of each row so that all end at once.

    Where they differ, these are multiples of the alignment and the caches are empty.
    """
    cache, logits, position = decoding
    longest = max(int(together.max()), pad_to if together.any() else 0)
    padding = longest - together
    padded = bool(padding.any())
    tokens = np.zeros((len(rows), longest), np.int32)
    for index, row in enumerate(rows):
        tokens[index, padding[index] :] = row[: together[index]]
    if padded:
        alignment = model.config.segment_alignment
        chunk = max(chunk - chunk % alignment, alignment)
    for start in range(0, longest, chunk):
        places = np.arange(start, min(start + chunk, longest))
        segment_ids = waiting = None
        if padded:
            segment_ids = (places[None] >= padding[:, None]).astype(np.int32)
            waiting = padding > places[-1]
        cache, logits = _read_chunk(
            model, params, tokens[:, places], cache, segment_ids=segment_ids, waiting=waiting
        )
    return Decoding(cache, logits, position + together.astype(np.int32))


def _read_rest(
    model: LanguageModel,
    params: Any,
    rows: list[np.ndarray],
    read: Int32[np.ndarray, " B"],
    decoding: Decoding,
) -> Decoding:
    """Read what follows the first `read[i]` tokens of each row."""
    counts = np.array([len(row) for row in rows], np.int32) - read.astype(np.int32)
    if not counts.any():
        return decoding
    # Of few sizes, so that few programs are compiled.
    tokens = np.zeros((len(rows), 1 << int(counts.max() - 1).bit_length()), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : counts[index]] = row[read[index] :]
    cache, logits = _read_in_steps(model, params, tokens, counts, decoding.cache, decoding.logits)
    return Decoding(cache, logits, decoding.position + counts)


def _read(
    model: LanguageModel,
    params: Any,
    tokens: Int32[Array, "B T"],
    cache: Cache,
    segment_ids: Int32[Array, "B T"] | None = None,
) -> tuple[Cache, Float32[Array, "B vocab"]]:
    variables = {"params": params}
    hidden, cache = model.apply(variables, tokens, cache, segment_ids, method="hidden")
    return cache, jnp.asarray(model.apply(variables, hidden[:, -1], method="logits"))


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read_chunk(
    model: LanguageModel,
    params: Any,
    tokens: Int32[Array, "B T"],
    cache: Cache,
    *,
    segment_ids: Int32[Array, "B T"] | None,
    waiting: Bool[Array, " B"] | None,
) -> tuple[Cache, Float32[Array, "B vocab"]]:
    """Read `tokens`; rows that are still `waiting` for their prompt leave nothing behind."""
    updated, logits = _read(model, params, tokens, cache, segment_ids)
    if waiting is not None:
        # They came with an empty cache: whatever a prompt finds there would be its own past.
        empty = model.init_cache(tokens.shape[0], 1)
        updated = where_rows(waiting, jax.tree.map(_like, empty, updated), updated)
    return updated, logits


def _like(empty: Array, leaf: Array) -> Array:
    """The empty leaf of one token's room, for as much room as `leaf` has."""
    return jnp.broadcast_to(empty, leaf.shape)


@functools.partial(jax.jit, static_argnames="model", donate_argnames=("cache", "logits"))
def _read_in_steps(
    model: LanguageModel,
    params: Any,
    tokens: Int32[Array, "B T"],
    counts: Int32[Array, " B"],
    cache: Cache,
    logits: Float32[Array, "B vocab"],
) -> tuple[Cache, Float32[Array, "B vocab"]]:
    """Read the first `counts[i]` tokens of each row, one after the other."""

    def step(index: Array, carry: tuple[Cache, Array]) -> tuple[Cache, Array]:
        cache, logits = carry
        reading = index < counts
        updated, new = read_token(model, params, tokens[:, index], cache)
        return where_rows(reading, updated, cache), jnp.where(reading[:, None], new, logits)

    return jax.lax.fori_loop(0, counts.max(), step, (cache, logits))
