"""Checks of what callers hand to the rule: refusals name what was given and what is allowed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.shapes import Array

FLOAT_DTYPES = ("bfloat16", "float16", "float32", "float64")
ONE_DTYPE = ("query", "key", "value")


def check_arrays(arrays: Mapping[str, Array], shapes: Mapping[str, tuple]) -> dict[str, int]:
    """Check each array's rank and sizes against `shapes` (names of dimensions, or a tuple of
    admitted sizes for one axis) and return the sizes of the dimensions.

    Raises:
      ValueError: when a rank or a size is wrong.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        expected = shapes[name]
        written = "[" + ", ".join(_axis_text(axis, sizes) for axis in expected) + "]"
        if array.ndim != len(expected):
            raise ValueError(
                f"{name} has shape {array.shape}, of rank {array.ndim}; expected rank "
                f"{len(expected)}, {written}"
            )
        for axis, size in zip(expected, array.shape, strict=True):
            if isinstance(axis, tuple):  # a gate: one for each channel, or one for all
                allowed = {sizes[axis[0]], 1}
            else:
                allowed = {sizes.setdefault(axis, size)}
            if size not in allowed:
                raise ValueError(f"{name} has shape {array.shape}; expected {written}")
    return sizes


def _axis_text(axis: str | tuple[str], sizes: Mapping[str, int]) -> str:
    if isinstance(axis, tuple):
        return f"{_axis_text(axis[0], sizes)} or 1"
    return f"{axis}={sizes[axis]}" if axis in sizes else axis


def check_dtypes(arrays: Mapping[str, Array]) -> None:
    """One floating dtype for all; gates may also be float32 beside half-precision inputs.

    Raises:
      TypeError: when a dtype is not floating, or differs from the query's.
    """
    for name, array in arrays.items():
        if str(array.dtype) not in FLOAT_DTYPES:
            raise TypeError(
                f"{name} has dtype {array.dtype}; allowed are {', '.join(FLOAT_DTYPES)}: cast it"
            )
    expected = arrays["query"].dtype
    for name, array in arrays.items():
        half = jnp.finfo(expected).bits == 16 and name not in ONE_DTYPE
        allowed = {str(expected), "float32"} if half else {str(expected)}
        if str(array.dtype) not in allowed:
            raise TypeError(
                f"{name} has dtype {array.dtype} but query has {expected}; "
                f"expected {' or '.join(sorted(allowed))}: cast one of them"
            )


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse empty axes and value heads that the key heads do not divide.

    Raises:
      ValueError: when a dimension is 0, or N is not a multiple of H.
    """
    if sizes["T"] == 0:
        raise ValueError(
            "the sequence is empty (T = 0); the rule needs at least one token: skip the call"
        )
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        raise ValueError(f"dimensions {', '.join(empty)} are 0; every dimension must be at least 1")
    if sizes["N"] % sizes["H"]:
        raise ValueError(
            f"value has {sizes['N']} heads and query/key have {sizes['H']}: the key heads must "
            f"divide the value heads"
        )


def check_log_decay(log_decay: Array) -> None:
    """Refuse growth, where values can be seen: under `jit` this is the caller's promise.

    Raises:
      ValueError: when an entry is positive or NaN.
    """
    if is_concrete(log_decay) and not bool(jnp.all(log_decay <= 0)):
        largest = float(jnp.max(log_decay))
        raise ValueError(
            f"log_decay has an entry of {largest:g}; every entry must be at most 0 (a decay), "
            "since positive ones make the state grow without bound"
        )


def check_floor(log_decay: Array, floor: float | None) -> None:
    """Refuse a promise that is broken, where values can be seen.

    Raises:
      ValueError: when an entry lies below the floor.
    """
    if floor is not None and is_concrete(log_decay) and bool(jnp.any(log_decay < floor)):
        raise ValueError(
            f"log_decay has an entry of {float(jnp.min(log_decay)):g}, below "
            f"log_decay_floor={floor:g}; give a floor that holds, or None"
        )


def check_segments(
    segment_ids: Array | None,
    sizes: Mapping[str, int],
    gate_chunk: int | None = None,
    position: Array | None = None,
) -> None:
    """Check shape, dtype and, where values can be seen, order and alignment of the segments.

    Under `jit` order and alignment are the caller's promise; segments that break it give wrong
    numbers.

    Raises:
      ValueError: when the shape is wrong, ids decrease, or (under a content gate) a segment does
        not start on a gate chunk.
      TypeError: when ids are not integers.
    """
    if segment_ids is None:
        return
    expected = (sizes["B"], sizes["T"])
    if segment_ids.shape != expected:
        raise ValueError(
            f"segment_ids has shape {segment_ids.shape}; "
            f"expected [B={expected[0]}, T={expected[1]}]"
        )
    if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise TypeError(f"segment_ids has dtype {segment_ids.dtype}; expected an integer dtype")
    if not is_concrete(segment_ids):
        return
    change = np.diff(np.asarray(segment_ids), axis=1)
    if (change < 0).any():
        raise ValueError("segment_ids decrease along a row; expected non-decreasing runs")
    if gate_chunk is None or (position is not None and not is_concrete(position)):
        return
    offset = np.zeros(expected[0], int) if position is None else np.asarray(position)
    misaligned = (change != 0) & ((np.arange(1, expected[1]) + offset[:, None]) % gate_chunk != 0)
    if misaligned.any():
        row, token = np.argwhere(misaligned)[0]
        raise ValueError(
            f"a segment of row {row} starts at token {token + 1}, which is not a multiple of "
            f"gate_chunk={gate_chunk}; under the content gate segments must start on multiples of "
            "it: pad each document to one"
        )


def check_state(given: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Refuse a state whose shapes or dtypes are not those of a state made for these inputs.

    Raises:
      ValueError: when a shape is wrong.
      TypeError: when a dtype is wrong.
    """
    for name, array in given.items():
        if array.shape != expected[name].shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {expected[name].shape}")
        if array.dtype != expected[name].dtype:
            raise TypeError(f"{name} has dtype {array.dtype}; expected {expected[name].dtype}")


def check_positive(name: str, number: int) -> None:
    """Refuse a count below 1.

    Raises:
      ValueError: when the number is less than 1.
    """
    if number < 1:
        raise ValueError(f"{name} is {number}; it must be at least 1")


def check_lag(content_lag: int) -> None:
    """Refuse content of other gate chunks than the one before and the one before that.

    Raises:
      ValueError: when the lag is neither 1 nor 2.
    """
    if content_lag not in (1, 2):
        raise ValueError(
            f"content_lag is {content_lag}; give 1 for the outputs of the gate chunk before, or 2 "
            "for those of the one before that"
        )


def is_concrete(array: Array) -> bool:
    """Whether the values can be read now (that is, not under a transformation)."""
    return not isinstance(array, jax.core.Tracer)
