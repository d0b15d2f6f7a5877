"""The plain rule's backward scan in Mosaic GPU, interpreted; and what it takes of a Hopper card."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.compiling import mosaic, xla
from pallas_kernels.compiling.catalogue import Program
from pallas_kernels.triton import op
from pallas_kernels.triton import scan_backward as triton_back
from pallas_kernels.triton.scan_backward import BackwardScanOutputs
from pallas_kernels.triton.span import Scores
from tests.kernels.test_mosaic import (
    INTERPRETED,
    OLD,
    SLOW,
    WIDE,
    check,
    half,
    no_races,
    of,
    scan_plan,
)
from tests.ops.cases import Case
from tests.ops.test_gated_delta import TOLERANCE, relative_error

TILES, ROWS = 3, 2


def draw(channels: int, width: int, heads: int, key_heads: int, parts: int) -> tuple:
    """Scores of a part of `TILES` tiles, dO of the whole sequence, and dSᵀ after the part."""
    rng = np.random.default_rng(0)
    normal, length = rng.standard_normal, TILES * 64
    lower = np.tril(normal((ROWS, TILES, key_heads, 2, 64, 64)) * 0.2)
    lower[:, :, :, 1] = np.tril(lower[:, :, :, 1], -1) + np.eye(64)  # A
    squares = lower.transpose(0, 1, 4, 2, 3, 5).reshape(ROWS, length, key_heads, 128)
    ends = np.exp(-rng.random((ROWS, TILES, key_heads, channels)))
    ends[:, 1] = 0.0  # a hard reset
    scores = Scores(
        jnp.asarray(normal((ROWS, length, key_heads, 3 * channels)) / channels**0.5, jnp.bfloat16),
        jnp.asarray(squares, jnp.bfloat16),
        jnp.asarray(ends, jnp.float32),
    )
    d_output = jnp.asarray(normal((ROWS, parts * length, heads, width)), jnp.bfloat16)
    return scores, d_output, jnp.asarray(normal((ROWS, heads, width, channels)), jnp.float32)


def expected_of(scores: Scores, d_output: Any, d_memory: Any, row: int, head: int) -> tuple:
    """dW [T, V], dSᵀ at the end of every tile and before the first [T/C + 1, V, K], in float64, of
    the dO [T, V] of one row and head."""
    channels, scale = d_memory.shape[3], d_memory.shape[3] ** -0.5
    key_head = head // (d_memory.shape[1] // scores.tiles.shape[2])
    tiles, squares, ends = (np.asarray(a[row, :, key_head], np.float64) for a in scores)
    d_state, d_output = np.float64(d_memory[row, head]), np.float64(d_output)
    states, written = [d_state], []
    for tile in reversed(range(TILES)):
        here = slice(64 * tile, 64 * tile + 64)
        query, erased, to_end = (tiles[here, i * channels : (i + 1) * channels] for i in range(3))
        pairs, inverse = np.split(squares[here], 2, axis=1)
        d_out = half(d_output[here] * scale).T
        d_written = half(d_state_times(d_state, to_end) + d_out @ pairs) @ inverse
        d_state = d_state * ends[tile] + d_out @ query - half(d_written) @ erased
        written.insert(0, d_written.T)
        states.insert(0, d_state)
    return np.concatenate(written), np.stack([*states[1:], states[0]])


def d_state_times(d_state: np.ndarray, to_end: np.ndarray) -> np.ndarray:
    return half(d_state) @ to_end.T


def run_back(scores: Scores, d_output: Any, d_memory: Any, part: int = 0) -> BackwardScanOutputs:
    from pallas_kernels.mosaic.scan import scan_backward

    plan = scan_plan(d_memory.shape[3], d_memory.shape[2])
    return jax.jit(lambda *a: scan_backward(plan, *a, part))(scores, d_output, d_memory)


@INTERPRETED
@pytest.mark.parametrize(
    ("channels", "width", "heads", "parts"),
    [(64, 64, 2, 2), pytest.param(128, 128, 1, 1, marks=SLOW)],
    ids=["the second part, value heads that share keys", "two warpgroups"],
)
def test_the_plain_scan_backward(channels: int, width: int, heads: int, parts: int) -> None:
    scores, d_output, d_memory = draw(channels, width, heads, 1, parts)
    found = run_back(scores, d_output, d_memory, parts - 1)
    no_races()
    assert found.d_written.dtype == found.d_states.dtype == jnp.bfloat16
    for row in range(ROWS):
        for head in range(heads):
            own = d_output[row, (parts - 1) * TILES * 64 :, head]
            written, states = expected_of(scores, own, d_memory, row, head)
            pairs = (
                (found.d_written[row, :, head], written),
                (found.d_states[row, :, head], states),
                (found.d_memory[row, head], states[-1]),
            )
            for got, expected in pairs:
                assert relative_error(got, expected) < TOLERANCE["bfloat16"]


@INTERPRETED
def test_what_comes_after_hears_nothing_of_what_comes_before() -> None:
    """To the bit: the gradients at a tile are of the outputs from it on."""
    scores, d_output, d_memory = draw(64, 64, 1, 1, 1)
    found = run_back(scores, d_output, d_memory)
    other = run_back(scores, d_output.at[:, :64].multiply(-3.0), d_memory)
    np.testing.assert_array_equal(found.d_written[:, 64:], other.d_written[:, 64:])
    np.testing.assert_array_equal(found.d_states[:, :TILES], other.d_states[:, :TILES])
    assert not np.array_equal(found.d_memory, other.d_memory)


@INTERPRETED
@SLOW
@pytest.mark.parametrize(
    "case",
    [
        WIDE._replace(decay="strong", key_heads=2, value_heads=4, length=130),
        WIDE._replace(decay="resets", key_channels=70, value_channels=128, length=67),
        WIDE._replace(decay="resets", batch=2, segments=True, write="channel", length=300),
        WIDE._replace(length=64, value_heads=1),
    ],
    ids=["strong decay, grouped values", "odd sizes", "two rows of segments", "one tile"],
)
def test_gradients_without_the_triton_scan(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "scan_backward", None)
    check("gated_delta", case)
    no_races()


@INTERPRETED
@SLOW
def test_under_a_content_gate_triton_scans_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless each part is one gate chunk, whose b is then known."""
    gates, own = [], triton_back.scan_backward

    def record(*arguments: Any) -> BackwardScanOutputs:
        gates.append(arguments[5])
        return own(*arguments)

    monkeypatch.setattr(triton_back, "scan_backward", record)
    check("carve", WIDE._replace(length=100))
    assert len(gates) == 1
    assert gates[0] is not None
    check("carve", WIDE._replace(gate_chunk=256, length=290, value_heads=1))
    assert len(gates) == 1


def program(width: int) -> Program:
    """A scan of four tiles, K = V = width, of one part that is all of the sequence."""
    from pallas_kernels.mosaic.scan import scan_backward

    plan, f32 = scan_plan(width, width)._replace(interpret=False), jnp.float32
    rows = (1, 256, 1)
    scores = Scores(of(*rows, 3 * width), of(*rows, 128), of(1, 4, 1, width, dtype=f32))

    def function(scores: Scores, d_output: jax.Array, d_memory: jax.Array) -> tuple:
        found = scan_backward(plan, scores, d_output, d_memory, 0)
        return found.d_written, found.d_states, found.d_memory

    arguments = (scores, of(*rows, width), of(1, 1, width, width, dtype=f32))
    return Program("scan", "", "bfloat16", function, arguments)


@pytest.mark.skipif(OLD or xla.unsupported_reason() is not None, reason="needs the extra aot")
@SLOW
@pytest.mark.parametrize("width", [64, 128])
def test_what_a_scan_backward_takes_of_a_hopper_card(width: int) -> None:
    found = mosaic.compile_kernels(program(width))
    assert list(found) == ["_walk_back_kernel_mosaic_gpu_kernel"]
    taken = found["_walk_back_kernel_mosaic_gpu_kernel"]
    assert taken.assembled.spill_bytes == 0
    assert any(instruction.name == "HGMMA" for instruction in taken.assembled.code)
