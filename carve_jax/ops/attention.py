"""Causal softmax attention: full or sliding window, rotary positions, ring cache."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from carve_jax.shapes import Array, Bool, Float, Int32
from pallas_kernels.device import capability

Implementation = Literal["xla", "cudnn"]
HALF = (jnp.bfloat16, jnp.float16)
LARGEST_FUSED_HEAD = 128  # channels that cuDNN takes on every card from capability 8.0 on


class AttentionCache(NamedTuple):
    """The last S keys and values of each row's present document, as a ring.

    The token at position p of the document lies in slot `p % S`, so `position`, the number of
    tokens seen, says which slots are in use and which position each holds.
    """

    key: Float[Array, "B S G E"]
    value: Float[Array, "B S G E"]
    position: Int32[Array, " B"]


def init_attention_cache(
    batch: int,
    max_length: int,
    kv_heads: int,
    head_dim: int,
    *,
    window: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> AttentionCache:
    """An empty cache of `max_length` slots, or of `window` when that is less."""
    slots = max_length if window is None else min(window, max_length)
    if slots < 1:
        raise ValueError(f"max_length={max_length} and window={window}: both must be at least 1.")
    shape = (batch, slots, kv_heads, head_dim)
    return AttentionCache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32)
    )


def rope(
    x: Float[Array, "B T A E"], positions: Int32[Array, "B T"], theta: float = 10000.0
) -> Float[Array, "B T A E"]:
    """Rotary position embedding on all of the head (RoFormer, arXiv 2104.09864, eq. 34).

    Channel i of the first half turns with channel i of the second, as in Llama and GPT-NeoX.
    Angles and rotation are float32; the result has x's dtype. ValueError if E is odd.
    """
    channels = x.shape[-1]
    if channels % 2:
        raise ValueError(f"RoPE turns pairs of channels; the head has {channels}: make it even.")
    rates = theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    angles = positions.astype(jnp.float32)[..., None, None] * rates[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def document_positions(
    batch: int,
    length: int,
    *,
    start: Int32[Array, " B"] | None = None,
    segment_ids: Int32[Array, "B T"] | None = None,
) -> Int32[Array, "B T"]:
    """Positions counted from the start of each token's document.

    `start` is the position at which the row's first document goes on (0 if None).
    """
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
    start = jnp.zeros((batch,), jnp.int32) if start is None else start
    if segment_ids is None:
        return index + start[:, None]
    new = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    document_start = jax.lax.cummax(jnp.where(new, index, 0), axis=1)
    in_first = segment_ids == segment_ids[:, :1]
    return index - document_start + jnp.where(in_first, start[:, None], 0)


@jax.named_scope("attention")
def attention(
    query: Float[Array, "B T A E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    *,
    window: int | None = None,
    rope_theta: float | None = None,
    cache: AttentionCache | None = None,
    segment_ids: Int32[Array, "B T"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T A E"], AttentionCache | None]:
    """Causal softmax attention over `jax.nn.dot_product_attention`; softmax in float32.

    Args:
      query, key, value: one dtype; G divides A (grouped query heads).
      window: a token sees itself and the `window - 1` before it; None for all.
      rope_theta: base of the rotary embedding put on queries and keys; None for none.
      cache: what came before, of the row's first document. Any split of a sequence into calls
        gives what one call gives, to rounding.
      segment_ids: non-decreasing document numbers; a token sees its own document alone.
      implementation: "xla", which writes the logits of all pairs of tokens out; "cudnn", cuDNN's
        flash attention, which does not, and keeps to the window in time too; None for "cudnn"
        where `fused_reason` has nothing against it and there is no cache, else "xla".

    Returns:
      The output, in query's dtype, and the cache for the next call (None if none was given).

    Raises:
      ValueError: when a shape does not fit, the implementation is not known or does not take these
        inputs, or the tokens do not fit the cache. Inside `jit`
        the fill of the cache is unknown and only a call longer than the whole cache is seen;
        a full cache then forgets its oldest tokens.
      TypeError: when dtypes differ.
    """
    _check_arguments(query, key, value, window, cache, segment_ids)
    implementation = _chosen(implementation, query, cache)
    batch, length = query.shape[:2]
    start = None if cache is None else cache.position
    positions = document_positions(batch, length, start=start, segment_ids=segment_ids)
    if rope_theta is not None:
        query, key = rope(query, positions, rope_theta), rope(key, positions, rope_theta)

    if cache is None:
        mask = None
        if segment_ids is not None:
            mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
        local = None if window is None else (window - 1, 0)
        output = jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            is_causal=True,
            local_window_size=local,
            implementation=implementation,
        )
        return output, None

    updated = _write(cache, key, value, positions, segment_ids)
    if length == 1:  # The ring holds all a single token can see: no copy of it is made.
        keys, values, key_positions = updated.key, updated.value, _slot_positions(updated)
    else:
        keys = jnp.concatenate([cache.key, key], axis=1)
        values = jnp.concatenate([cache.value, value], axis=1)
        key_positions = jnp.concatenate([_slot_positions(cache), positions], axis=1)
    visible = _visible(positions, key_positions, window, segment_ids)
    return jax.nn.dot_product_attention(query, keys, values, mask=visible[:, None]), updated


def fused_reason(query: Float[Array, "B T A E"]) -> str | None:
    """Why cuDNN's flash attention does not take such queries on this machine, or None."""
    if jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU, and JAX runs on {jax.default_backend()} here"
    if capability() < 8.0:
        kind, found = jax.devices()[0].device_kind, capability() or "none"
        return f"it needs an NVIDIA GPU of compute capability 8.0, and this {kind} has {found}"
    if query.dtype not in HALF:
        return f"it takes bfloat16 and float16, not {query.dtype}"
    length, channels = query.shape[1], query.shape[3]
    if channels > LARGEST_FUSED_HEAD or channels % 8:
        return f"it takes heads of up to {LARGEST_FUSED_HEAD} channels, in eights, not {channels}"
    if length % 2:
        return f"it takes an even number of tokens, not {length}"
    return None


def _chosen(
    implementation: str | None, query: Array, cache: AttentionCache | None
) -> Implementation:
    if implementation not in (None, *get_args(Implementation)):
        allowed = ", ".join(get_args(Implementation))
        raise ValueError(
            f"attention: implementation={implementation!r}; choose from {allowed}, or None."
        )
    if implementation == "xla":
        return "xla"
    reason = "it takes no cache" if cache is not None else fused_reason(query)
    if reason is None:
        return "cudnn"
    if implementation == "cudnn":
        raise ValueError(f"attention: implementation='cudnn' cannot run: {reason}; choose 'xla'.")
    return "xla"


def _slot_positions(cache: AttentionCache) -> Int32[Array, "B S"]:
    """The position each slot holds; negative where the slot is unused."""
    slots = cache.key.shape[1]
    last = cache.position[:, None] - 1
    return last - (last - jnp.arange(slots, dtype=jnp.int32)[None]) % slots


def _write(
    cache: AttentionCache,
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    positions: Int32[Array, "B T"],
    segment_ids: Int32[Array, "B T"] | None,
) -> AttentionCache:
    batch, slots = cache.key.shape[:2]
    kept = positions[:, -slots:] % slots
    if segment_ids is not None:  # Only the last document goes on; out of range means dropped.
        kept = jnp.where(segment_ids[:, -slots:] == segment_ids[:, -1:], kept, slots)
    rows = jnp.arange(batch)[:, None]
    return AttentionCache(
        key=cache.key.at[rows, kept].set(key[:, -slots:], mode="drop"),
        value=cache.value.at[rows, kept].set(value[:, -slots:], mode="drop"),
        position=positions[:, -1] + 1,
    )


def _visible(
    positions: Int32[Array, "B T"],
    key_positions: Int32[Array, "B S"],
    window: int | None,
    segment_ids: Int32[Array, "B T"] | None,
) -> Bool[Array, "B T S"]:
    distance = positions[:, :, None] - key_positions[:, None, :]
    visible = (distance >= 0) & (key_positions >= 0)[:, None, :]
    if window is not None:
        visible &= distance < window
    if segment_ids is not None and segment_ids.shape[1] > 1:
        cached = key_positions.shape[1] - segment_ids.shape[1]
        before = jnp.broadcast_to(segment_ids[:, :1], (segment_ids.shape[0], cached))
        documents = jnp.concatenate([before, segment_ids], axis=1)
        visible &= segment_ids[:, :, None] == documents[:, None, :]
    return visible


def _check_arguments(
    query: Array,
    key: Array,
    value: Array,
    window: int | None,
    cache: AttentionCache | None,
    segment_ids: Array | None,
) -> None:
    if query.ndim != 4 or key.ndim != 4 or query.shape[1] < 1:
        raise ValueError(
            f"attention: query has shape {query.shape} and key {key.shape}; "
            "expected [B, T, heads, channels] with T >= 1."
        )
    batch, length, heads, channels = query.shape
    kv_heads = key.shape[2]
    for name, array in (("key", key), ("value", value)):
        if array.shape != (batch, length, kv_heads, channels):
            raise ValueError(
                f"attention: {name} has shape {array.shape}; "
                f"expected {(batch, length, kv_heads, channels)}."
            )
        if array.dtype != query.dtype:
            raise TypeError(f"attention: {name} is {array.dtype} but query is {query.dtype}.")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"attention: {kv_heads} key heads do not divide {heads} query heads.")
    if window is not None and window < 1:
        raise ValueError(f"attention: window={window}; it must be at least 1, or None.")
    if segment_ids is not None and segment_ids.shape != (batch, length):
        raise ValueError(
            f"attention: segment_ids has shape {segment_ids.shape}; expected {(batch, length)}."
        )
    if cache is not None:
        _check_cache(cache, key, window)


def _check_cache(cache: AttentionCache, key: Array, window: int | None) -> None:
    batch, length, kv_heads, channels = key.shape
    slots = cache.key.shape[1]
    if cache.key.shape != (batch, slots, kv_heads, channels):
        raise ValueError(
            f"attention: cache.key has shape {cache.key.shape}; "
            f"expected {(batch, 'slots', kv_heads, channels)}: make it with init_cache."
        )
    if cache.key.dtype != key.dtype:
        raise TypeError(f"attention: the cache is {cache.key.dtype} but key is {key.dtype}.")
    if window is not None and slots >= window:
        return
    known = not isinstance(cache.position, jax.core.Tracer)
    held = int(cache.position.max()) if known else 0
    if held + length > slots:
        raise ValueError(
            f"attention: {length} tokens after {held} do not fit a cache of {slots}: "
            f"make it with init_cache(batch, max_length) of at least {held + length}."
        )
