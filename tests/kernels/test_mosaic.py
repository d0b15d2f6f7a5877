"""The backend "mosaic": what it refuses, everywhere; its scans, interpreted, where JAX can."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import registry
from pallas_kernels import device, selftest
from pallas_kernels.backends import BACKENDS, CHOSEN
from pallas_kernels.call import Request
from pallas_kernels.compiling import mosaic, xla
from pallas_kernels.compiling.catalogue import Program
from pallas_kernels.mosaic import backend
from pallas_kernels.tiling import Tiles
from pallas_kernels.triton import op
from pallas_kernels.triton.plan import Content, Gate, Plan
from pallas_kernels.triton.scan import ScanOperands
from pallas_kernels.triton.span import Scores
from tests.ops.cases import Arrays, Case
from tests.ops.test_gated_delta import TOLERANCE, oracle, outputs_and_gradients, relative_error

SLOW = pytest.mark.slow
OLD = jax.__version_info__ < backend.OLDEST_JAX
INTERPRETED = pytest.mark.skipif(
    OLD or device.mode() != "interpret",
    reason="Mosaic GPU's interpreter is part of JAX from 0.11.2 on, and runs without a GPU",
)
SIZES = {"B": 1, "T": 128, "N": 2, "K": 64, "V": 64}
REQUEST = Request("bfloat16", SIZES)


@pytest.fixture
def new_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that can compile the scans, as far as the backend is told."""
    monkeypatch.setattr(jax, "__version_info__", max(jax.__version_info__, backend.OLDEST_JAX))


@pytest.mark.usefixtures("new_jax")
@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (REQUEST._replace(dtype="float64"), "float32 and were given float64 inputs"),
        (REQUEST._replace(dtype="float32"), "bfloat16 inputs alone, and was given float32"),
        (REQUEST._replace(sizes={**SIZES, "K": 32}), "heads of 33 to 128 channels, and K is 32"),
        (REQUEST._replace(sizes={**SIZES, "V": 200}), "heads of 33 to 128 channels, and V is 200"),
        (REQUEST._replace(tiles=Tiles(chunk=32)), "chunk=64, .* and was given chunk=32"),
        (REQUEST._replace(tiles=Tiles(64, solve="walk")), "was given .* solve='walk'"),
        (REQUEST._replace(tiles=Tiles(64, stretches=4)), "no stretches, .*Tiles.stretches=4"),
        (REQUEST._replace(content=True, gate_chunk=32), "of more than 32 tokens, .*gate_chunk=32"),
        (REQUEST._replace(content=True, rank=17), "of rank 16 at most, and was given 17"),
    ],
)
def test_refusals_are_sentences(request_: Request, reason: str) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        registry.choose("mosaic", request_)


def test_an_old_jax_and_another_card_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = BACKENDS["mosaic"]
    with monkeypatch.context() as patched:
        patched.setattr(jax, "__version_info__", (0, 11, 1))
        patched.setattr(jax, "__version__", "0.11.1")
        reason = "its scan needs JAX 0.11.2 or later, and this is 0.11.1"
        assert own.unsupported_reason(REQUEST) == reason
        assert own.unsupported_reason(REQUEST._replace(sizes=None)) == reason
    monkeypatch.setattr(jax, "__version_info__", backend.OLDEST_JAX)
    assert own.unsupported_reason(REQUEST) is None
    monkeypatch.setattr(device, "capability", lambda: 8.0)
    assert "made for compute capability 9.0" in str(own.unsupported_reason(REQUEST))


@pytest.mark.usefixtures("new_jax")
def test_it_runs_where_it_is_named_alone() -> None:
    assert registry.choose("mosaic", REQUEST) == "mosaic"
    assert registry.choose("pallas", REQUEST) == "triton"
    assert "mosaic" not in CHOSEN
    checks = selftest.shipped_checks(backends=("mosaic",))
    assert {c.dtype for c in checks if c.rule != "decode"} == {"bfloat16"}
    assert {c.backend for c in checks if c.rule != "decode"} == {"mosaic"}
    assert not any(c.backend == "mosaic" for c in selftest.shipped_checks())


def test_mosaic_gpu_is_imported_by_no_refusal() -> None:
    code = (
        "import sys, jax; jax.__version_info__ = (0, 11, 1)\n"
        "from carve_jax.ops.gated_delta import registry\n"
        "from pallas_kernels.call import Request\n"
        f"try: registry.choose('mosaic', Request('bfloat16', {SIZES!r}))\n"
        "except NotImplementedError as error: print('needs JAX' in str(error))\n"
        "print('pallas_kernels.mosaic.scan' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == ["True", "False"]


def half(x: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, in float64."""
    return np.asarray(np.asarray(x, jnp.bfloat16), np.float64)


class Drawn(NamedTuple):
    """What a scan reads besides the state, of one row and head, in float64: v and w [T, V] or
    [T, 1], arrays of K channels side by side [T, X · K], squares [T, Y · 64], γ_C [T / 64, K]."""

    value: np.ndarray
    write: np.ndarray
    tiles: np.ndarray
    squares: np.ndarray
    ends: np.ndarray
    memory: np.ndarray


def draw(length: int, channels: int, width: int, gates: int, places: int, squares: int) -> Drawn:
    rng = np.random.default_rng(0)
    normal, tile = rng.standard_normal, 64
    lower = np.tril(normal((squares, length // tile, tile, tile)) * 0.2)
    if squares > 1:  # the second is A
        lower[1] = np.tril(lower[1], -1) + np.eye(tile)
    return Drawn(
        value=half(normal((length, width))),
        write=half(1 / (1 + np.exp(-normal((length, gates))))),
        tiles=half(normal((length, places * channels)) / channels**0.5),
        squares=half(np.concatenate([s.reshape(length, tile) for s in lower], axis=1)),
        ends=np.asarray(np.exp(-rng.random((length // tile, channels))), np.float32),
        memory=np.asarray(normal((width, channels)), np.float32),
    )


def scan_plan(channels: int, width: int, **changes) -> Plan:
    tiles = Tiles(chunk=64, block_value=width, product="bf16", inverse="bf16")
    return Plan(tiles, channels**-0.5, interpret=True, **changes)


def run_scan(plan: Plan, drawn: Drawn, logits: np.ndarray | None = None, **options):
    """The scan of a part that is all of the sequence."""
    from pallas_kernels.mosaic.scan import scan

    def of(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x, jnp.bfloat16)[None, :, None]

    x = ScanOperands(of(drawn.value), None if logits is None else of(logits), of(drawn.write))
    ends = jnp.asarray(drawn.ends)[None, :, None]
    scores = Scores(of(drawn.tiles), of(drawn.squares), ends)
    memory = jnp.asarray(drawn.memory)[None, None]
    return jax.jit(lambda: scan(plan, x, scores, memory, 0, **options))()


def advanced(drawn: Drawn, tile: int, memory: np.ndarray, erased: np.ndarray, inverse: np.ndarray):
    """A tile's outputs before the scale, and the state after it."""
    here, channels = slice(64 * tile, 64 * tile + 64), drawn.ends.shape[1]
    query, _, to_end = (drawn.tiles[here, i * channels : (i + 1) * channels] for i in range(3))
    written = (drawn.value[here] * drawn.write[here]).T
    residual = half(half(written - half(memory) @ erased.T) @ inverse.T)
    output = half(memory) @ query.T + residual @ drawn.squares[here, :64].T
    return output.T, memory * drawn.ends[tile] + residual @ to_end


def no_races() -> None:
    """Nothing was written while it was read: memory is shared by warpgroups and copies."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    assert not gpu_callbacks.get_races().races_found


@INTERPRETED
@pytest.mark.parametrize(
    ("channels", "width", "gates"), [(64, 64, 1), pytest.param(128, 128, 128, marks=SLOW)]
)
def test_the_plain_scan(channels: int, width: int, gates: int) -> None:
    drawn = draw(192, channels, width, gates, places=3, squares=2)
    found = run_scan(scan_plan(channels, width), drawn, sums=True)
    memory, outputs = np.float64(drawn.memory), []
    for tile in range(3):
        here = slice(64 * tile, 64 * tile + 64)
        erased, inverse = drawn.tiles[here, channels : 2 * channels], drawn.squares[here, 64:]
        output, memory = advanced(drawn, tile, memory, erased, inverse)
        outputs.append(channels**-0.5 * output)
    expected = np.concatenate(outputs)
    assert relative_error(found.output[0, :, 0], expected) < TOLERANCE["bfloat16"]
    assert relative_error(found.memory[0, 0], memory) < TOLERANCE["bfloat16"]
    assert relative_error(found.sums[0, 0, 0], expected.sum(axis=0)) < TOLERANCE["bfloat16"]
    no_races()


def inverse_of(erase: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """(I + T)⁻¹ of a tile, of b and the keys under the factors of each level, largest first."""
    row, column = np.arange(64)[:, None], np.arange(64)[None]
    order, system = np.where(row > column, row ^ column, 0), np.zeros((64, 64))
    for place, key in enumerate(keys):
        low = 32 >> place
        inside = (order >= low) & (order < 2 * low)
        system = np.where(inside, half(erase * key) @ key.T, system)
    return half(np.linalg.inv(np.eye(64) + system))


@INTERPRETED
@pytest.mark.parametrize(
    ("channels", "width", "tiles", "norm_eps"),
    [(64, 64, 1, None), pytest.param(128, 128, 2, 1e-6, marks=SLOW)],
)
def test_the_gated_scan(channels: int, width: int, tiles: int, norm_eps: float | None) -> None:
    """Gate chunks of one tile or of two; the content of the first is given."""
    length = 128 * tiles
    drawn = draw(length, channels, width, 1, places=9, squares=1)
    rng = np.random.default_rng(1)
    logits = half(rng.standard_normal((length, channels)))
    down, up = rng.standard_normal((width, 16)) / width**0.5, rng.standard_normal((16, channels))
    seen, partial = rng.standard_normal((2, width))
    gate = Gate(tiles, 1.5, False, norm_eps, width, "bfloat16")
    given = (down[None], up[None], seen[None, None], partial[None, None], [[1 / 64, 0.0]])
    content = Content(*(jnp.asarray(a, jnp.float32) for a in given))
    plan = scan_plan(channels, width, gate=gate)
    found = run_scan(plan, drawn, logits, content=content)
    memory, outputs, sums = np.float64(drawn.memory), [], []
    for tile in range(2 * tiles):
        here = slice(64 * tile, 64 * tile + 64)
        places = np.split(drawn.tiles[here], 9, axis=1)
        content_now = seen if norm_eps is None else seen / (np.mean(seen**2) + norm_eps) ** 0.5
        erase = half(1.5 / (1 + np.exp(-(logits[here] + content_now @ down @ up))))
        inverse = inverse_of(erase, places[3:])
        output, memory = advanced(drawn, tile, memory, half(erase * places[1]), inverse)
        outputs.append(channels**-0.5 * output)
        partial = partial + outputs[-1].sum(axis=0)
        if tile % tiles == tiles - 1:
            sums.append(partial)
            seen, partial = partial / 64, np.zeros(width)
    assert relative_error(found.output[0, :, 0], np.concatenate(outputs)) < TOLERANCE["bfloat16"]
    assert relative_error(found.memory[0, 0], memory) < TOLERANCE["bfloat16"]
    assert relative_error(found.sums[0, :, 0], np.stack(sums)) < TOLERANCE["bfloat16"]
    no_races()


def check(rule: str, case: Case, **options) -> None:
    """Outputs and every gradient against the float64 oracle, in bfloat16."""
    outputs, gradients = outputs_and_gradients(rule, case, "bfloat16", "mosaic", **options)
    expected_outputs, expected_gradients = oracle(rule, case, "bfloat16")
    tolerance = TOLERANCE["bfloat16"]
    for got, expected in zip(outputs, expected_outputs, strict=True):
        assert relative_error(got, expected) < tolerance
    for name, got, expected in zip(Arrays._fields, gradients, expected_gradients, strict=True):
        assert relative_error(got, expected) < 2 * tolerance, name


WIDE = Case(1, 200, 1, 2, 64, 64, gate_chunk=64)


@INTERPRETED
@SLOW
@pytest.mark.parametrize(
    "case",
    [
        WIDE._replace(decay="resets", segments=True),
        WIDE._replace(value_channels=100, write="channel", decay="head", erase="head"),
        WIDE._replace(keys="correlated", decay="none", erase_scale=2.0),
    ],
    ids=["resets and segments", "two warpgroups, gates per head", "correlated keys"],
)
def test_outputs_and_gradients_of_the_plain_rule(case: Case) -> None:
    check("gated_delta", case)


@INTERPRETED
@SLOW
@pytest.mark.parametrize(
    "case",
    [
        WIDE._replace(segments=True, offset=5, length=150),
        WIDE._replace(value_channels=100, gate_chunk=128, erase_scale=2.0),
        WIDE._replace(key_heads=2, gate_chunk=48, decay="resets"),
        WIDE._replace(gate_chunk=256, length=300),
    ],
    ids=["segments and an offset", "two tiles a gate chunk", "null tokens", "gate chunks of 256"],
)
def test_outputs_and_gradients_of_carve(case: Case) -> None:
    check("carve", case)


@INTERPRETED
@SLOW
@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
def test_parts_one_after_another(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "PART_BYTES", 1)
    monkeypatch.setattr(op, "SOLVED_PART_BYTES", 1)
    monkeypatch.setattr(op, "MOST_PARTS", 2)
    check(rule, WIDE._replace(length=230))


def of(*sizes: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def scan_program(gated: bool, width: int) -> Program:
    """A scan of four tiles, K = V = width, of one part that is all of the sequence."""
    from pallas_kernels.mosaic.scan import scan

    plan = scan_plan(width, width)._replace(interpret=False)
    rows, f32 = (1, 256, 1), jnp.float32
    squares = of(*rows, 64 if gated else 128)
    scores = Scores(of(*rows, (9 if gated else 3) * width), squares, of(1, 4, 1, width, dtype=f32))
    value, memory, content = of(*rows, width), of(1, 1, width, width, dtype=f32), None
    if gated:
        plan = plan._replace(gate=Gate(1, 1.0, False, None, width, "bfloat16"))
        row = of(1, 1, width, dtype=f32)
        down, up = of(1, width, 16, dtype=f32), of(1, 16, width, dtype=f32)
        content = Content(down, up, row, row, of(1, 4, dtype=f32))
    x = ScanOperands(value, value if gated else None, of(*rows, 1))

    def function(x: ScanOperands, scores: Scores, memory: jax.Array, content: Any) -> tuple:
        found = scan(plan, x, scores, memory, 0, content=content)
        return found.output, found.memory, found.sums

    return Program("scan", "", "bfloat16", function, (x, scores, memory, content))


@pytest.mark.skipif(OLD or xla.unsupported_reason() is not None, reason="needs the extra aot")
@SLOW
@pytest.mark.parametrize(
    ("gated", "width", "spilled"), [(False, 128, 0), (True, 64, 64), (True, 128, 480)]
)
def test_what_a_scan_takes_of_a_hopper_card(gated: bool, width: int, spilled: int) -> None:
    """At K = V = 128, CARVE's three warpgroups have 168 registers per thread and want more."""
    found = mosaic.compile_kernels(scan_program(gated, width))
    assert list(found) == ["_walk_kernel_mosaic_gpu_kernel"]
    taken = found["_walk_kernel_mosaic_gpu_kernel"]
    assert taken.assembled.spill_bytes <= spilled
    assert any(instruction.name == "HGMMA" for instruction in taken.assembled.code)
