"""Inputs of the rule for tests, in float64 NumPy: one list of cases feeds every implementation."""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """Sizes and habits of one input; the gate chunk and offset matter to CARVE alone.

    Cases that differ in their numbers alone (decay, keys, offset) share a compiled program, so that
    they are of one size where any size does.
    """

    batch: int = 2
    length: int = 70
    key_heads: int = 2
    value_heads: int = 2
    key_channels: int = 16
    value_channels: int = 8
    rank: int = 3
    gate_chunk: int = 16
    decay: str = "channel"  # channel | head | resets | strong | none
    write: str = "head"  # head | channel
    erase: str = "channel"  # channel | head (plain rule alone)
    keys: str = "random"  # random | correlated
    segments: bool = False
    offset: int = 0
    erase_scale: float = 1.0
    stop_gradient: bool = False
    norm: bool = False
    lag: int = 1


CASES = {
    "plain": Case(),
    "odd sizes": Case(1, 67, 1, 1, 5, 3, rank=2, gate_chunk=10),
    "one token": Case(length=1),
    "one tile and one token": Case(length=65, gate_chunk=64),
    "long gate chunk": Case(1, 150, gate_chunk=100),
    "one token a gate chunk": Case(1, 20, gate_chunk=1),
    "grouped values": Case(value_heads=4, write="channel"),
    "scalar gates": Case(decay="head", erase="head"),
    "channel write": Case(write="channel"),
    "hard resets": Case(decay="resets"),
    "strong decay": Case(decay="strong"),
    "no decay": Case(decay="none"),
    "correlated keys": Case(1, 130, keys="correlated", decay="none", erase_scale=2.0),
    "segments": Case(length=150, segments=True),
    "segments, hard resets": Case(length=150, segments=True, decay="resets"),
    "segments, no decay": Case(length=150, segments=True, decay="none"),
    "offset": Case(length=90, gate_chunk=64, offset=37),
    "offset and segments": Case(length=150, segments=True, offset=5),
    "several groups": Case(2, 150, 4, 8, 64, 16, gate_chunk=48, decay="resets"),
    "several groups, segments": Case(2, 150, 4, 8, 64, 16, gate_chunk=32, segments=True, offset=5),
    "several of all": Case(
        *(2, 150, 4, 8, 64, 16), write="channel", gate_chunk=32, segments=True, offset=5, norm=True
    ),
    "normalised content": Case(norm=True),
    "stopped content": Case(stop_gradient=True),
    "two chunks back": Case(length=150, segments=True, offset=5, lag=2),
    "two chunks back, odd sizes": Case(1, 67, 1, 1, 5, 3, rank=2, gate_chunk=10, norm=True, lag=2),
}


def program_of(case: Case) -> Case:
    """The case without what changes numbers alone: what a program is compiled for."""
    decay = case.decay if case.decay == "head" else "channel"
    return case._replace(decay=decay, keys="random", offset=0)


class Arrays(NamedTuple):
    """One case's arrays; `content_*` and all of the state but `memory` are CARVE's."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    log_decay: np.ndarray
    erase_logits: np.ndarray
    write: np.ndarray
    content_down: np.ndarray
    content_up: np.ndarray
    memory: np.ndarray
    content: np.ndarray
    partial_sum: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def make_arrays(case: Case, seed: int = 0) -> Arrays:
    """Draw a case's arrays."""
    rng = np.random.default_rng(seed)
    batch, length = case.batch, case.length
    keys, values = case.key_heads, case.value_heads
    channels, width = case.key_channels, case.value_channels
    normal = rng.standard_normal

    key = normal((batch, length, keys, channels))
    if case.keys == "correlated":
        key = normal((batch, 1, keys, channels)) + 0.05 * key
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    decay_channels = 1 if case.decay == "head" else channels
    strength = {"strong": 60.0, "none": 0.0}.get(case.decay, 0.5)
    log_decay = -strength * np.log1p(np.exp(normal((batch, length, keys, decay_channels))))
    if case.decay == "resets":
        log_decay[:, 3::13] = -1000.0
        log_decay[:, 64:66] = -1000.0
    return Arrays(
        query=normal((batch, length, keys, channels)),
        key=key,
        value=normal((batch, length, values, width)),
        log_decay=log_decay,
        erase_logits=2 * normal((batch, length, keys, 1 if case.erase == "head" else channels)),
        write=sigmoid(normal((batch, length, values, width if case.write == "channel" else 1))),
        content_down=normal((values, width, case.rank)),
        content_up=normal((values, case.rank, channels)),
        memory=normal((batch, values, channels, width)),
        content=normal((batch, values, *[case.lag] * (case.lag > 1), width)),
        partial_sum=normal((batch, values, width)),
    )


def segment_ids(case: Case) -> np.ndarray | None:
    """Segments on gate chunks (of the row: the offset counts), of uneven lengths."""
    if not case.segments:
        return None
    chunk = (np.arange(case.length) + case.offset) // case.gate_chunk
    ids = np.searchsorted([1, 3, 4], chunk, side="right")
    return np.broadcast_to(ids, (case.batch, case.length)).astype(np.int32)
