"""The sequence kernels, interpreted: what the shared suite of the rules does not reach."""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from pallas_kernels import device, tiling
from pallas_kernels.blocks import wy
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.compiling import lowering
from pallas_kernels.compiling.catalogue import Program
from pallas_kernels.tiling import Tiles
from pallas_kernels.triton import op, ptx
from pallas_kernels.triton.span import K_LEVELS
from tests.ops.cases import Arrays, Case, make_arrays
from tests.ops.test_gated_delta import (
    TOLERANCE,
    apply_rule,
    oracle,
    outputs_and_gradients,
    relative_error,
)

SLOW = pytest.mark.slow
WIDE = Case(1, 200, 2, 4, 32, 32, gate_chunk=64, decay="resets", segments=True)


def check(rule: str, case: Case, dtype: str = "float32", **options) -> None:
    """Outputs and every gradient of the kernels against the float64 oracle."""
    outputs, gradients = outputs_and_gradients(rule, case, dtype, "pallas", **options)
    expected_outputs, expected_gradients = oracle(rule, case, dtype)
    tolerance = TOLERANCE[dtype]
    for got, expected in zip(outputs, expected_outputs, strict=True):
        assert relative_error(got, expected) < tolerance
    for name, got, expected in zip(Arrays._fields, gradients, expected_gradients, strict=True):
        assert relative_error(got, expected) < 2 * tolerance, name


@pytest.mark.parametrize(
    ("rule", "tiles"),
    [
        ("gated_delta", Tiles(chunk=64, product="tf32", block_value=16, block_key=16)),
        ("gated_delta", Tiles(chunk=32, product="tf32", solve="walk", block_value=16)),
        ("carve", Tiles(chunk=32, product="tf32", block_key=16)),
        ("carve", Tiles(chunk=64, product="tf32")),
    ],
)
@pytest.mark.slow  # tests/ops has the shipped tiles
def test_every_cut_gives_the_same(rule: str, tiles: Tiles) -> None:
    check(rule, WIDE, tiles=tiles)


@pytest.mark.parametrize(
    ("rule", "case", "tiles"),
    [
        (
            "gated_delta",
            Case(1, 130, decay="head", erase="head", key_channels=32),
            {"chunk": 16, "span_key": 16},
        ),
        pytest.param("carve", Case(decay="head"), {"chunk": 16}, marks=SLOW),
        pytest.param(
            "gated_delta",
            Case(length=150, segments=True, value_heads=4, write="channel", decay="head"),
            {"chunk": 64},
            marks=SLOW,
        ),
        pytest.param(
            "gated_delta",
            Case(1, 130, keys="correlated", decay="head", erase_scale=2.0),
            {"chunk": 32},
            marks=SLOW,
        ),
    ],
    ids=["several tiles in a span", "carve", "segments and grouped values", "correlated keys"],
)
def test_one_decay_per_head_takes_a_product_per_square(rule: str, case: Case, tiles: dict) -> None:
    check(rule, case, tiles=Tiles(product="tf32", block_key=16, **tiles))


@pytest.mark.parametrize("rule", ["gated_delta", pytest.param("carve", marks=SLOW)])
def test_parts_one_after_another(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "PART_BYTES", 1)
    monkeypatch.setattr(op, "SOLVED_PART_BYTES", 1)
    monkeypatch.setattr(op, "MOST_PARTS", 2)
    case = WIDE._replace(length=230, norm=True, offset=0 if rule == "gated_delta" else 5)
    check(rule, case)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(1, 600, 1, 2, 16, 16, gate_chunk=256, decay="resets"), marks=SLOW),
        pytest.param(Case(1, 280, 1, 1, 16, 16, gate_chunk=300, norm=True, offset=37), marks=SLOW),
    ],
    ids=["256", "300 from an offset"],
)
def test_long_gate_chunks_take_the_plain_kernels_one_by_one(case: Case) -> None:
    check("carve", case)


def test_value_channels_of_few_heads_are_spread_over_programs() -> None:
    tiles = Tiles(chunk=64, product="tf32", warps=8)

    def plan(heads: int, **changes) -> op.Plan:
        of = jax.ShapeDtypeStruct((1, 128, heads, 128), jnp.bfloat16)
        own = Tiles(**{"chunk": 64, **changes})
        return op.make_plan(own, 1.0, op.Inputs(*[of] * 6), None, None, interpret=True)[0]

    chosen = [(plan(h).tiles.block_value, plan(h).tiles.warps) for h in (16, 32, 33, 66, 67, 128)]
    assert chosen == [(32, 4), (32, 4), (32, 4), (64, 4), (128, 8), (128, 8)]
    assert plan(16, solve="walk").tiles.block_value == 128  # as CARVE does it, to the bit
    check("gated_delta", Case(1, 130, 1, 1, 16, 64), tiles=tiles)


# Stretches of several tiles, of one span and of several; states that reach across all of them, and
# a document's end, a reset or a part's end between. Two stretches need no map composed.
STRETCHES = {
    "no decay": (Case(1, 400, 1, 2, 16, 16, decay="none"), 4, 64),
    "grouped values in two rows": (
        Case(2, 400, 2, 4, 16, 16, decay="none", write="channel"), 4, 64,
    ),
    "segments, resets": (Case(2, 330, 2, 4, 16, 32, decay="resets", segments=True), 3, 32),
    "two, scalar gates": (Case(1, 300, 1, 1, 16, 16, decay="head", erase="head"), 2, 16),
    "correlated keys": (
        Case(1, 390, keys="correlated", decay="none", erase_scale=2.0, write="channel"), 5, 64,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in list(STRETCHES)[:3] else SLOW) for n in STRETCHES]
)
def test_stretches_side_by_side_are_one_scan(name: str) -> None:
    case, count, chunk = STRETCHES[name]
    tiles = Tiles(chunk=chunk, product="tf32", inverse="tf32", block_key=16, stretches=count)
    check("gated_delta", case, tiles=tiles)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stretches_in_half_precision(dtype: str) -> None:
    tiles = tiling.choose(dtype, 32, 32)
    tiles = Tiles(**{**vars(tiles), "stretches": 4})
    check("gated_delta", Case(1, 260, 1, 2, 32, 32, decay="none"), dtype, tiles=tiles)


def test_stretches_of_parts_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    held = 3 * SPAN  # tokens of a part, at so many bytes
    monkeypatch.setattr(op, "PART_BYTES", held * K_LEVELS * 16 * 4)
    tiles = Tiles(chunk=64, product="tf32", inverse="tf32", stretches=3)
    check("gated_delta", Case(1, 350, 1, 1, 16, 16, decay="none"), tiles=tiles)
    of = jax.ShapeDtypeStruct((1, 350, 1, 16), jnp.float32)

    def plan(stretches: int) -> op.Plan:
        own = Tiles(**{**vars(tiles), "stretches": stretches})
        return op.make_plan(own, 1.0, op.Inputs(*[of] * 6), None, None, interpret=True)[0]

    assert [(plan(n).parts, plan(n).stretches) for n in (3, 6)] == [(2, 3)] * 2


def test_stretches_keep_the_future_out_of_the_past() -> None:
    """To the bit, where the changed tokens lie in the same stretch, the next and the last."""
    case = Case(1, 256, 1, 2, 16, 16, decay="none")
    before, other = make_arrays(case), make_arrays(case, seed=7)
    tiles = Tiles(chunk=64, product="tf32", inverse="tf32", stretches=4)

    @jax.jit
    def run(arrays: Arrays):
        return apply_rule("gated_delta", case, arrays, "pallas", tiles=tiles)[0]

    expected = run(Arrays(*map(jnp.float32, before)))
    for token in (0, 30, 63, 64, 128, 200, 254):
        changed = [
            np.concatenate([b[:, : token + 1], a[:, token + 1 :]], axis=1)
            for b, a in zip(before[:6], other[:6], strict=True)
        ]
        got = run(Arrays(*map(jnp.float32, (*changed, *before[6:]))))
        np.testing.assert_array_equal(got[:, : token + 1], expected[:, : token + 1])
        assert (got[:, token + 1 :] != expected[:, token + 1 :]).any()


def test_stretches_are_chosen_by_sizes_where_asked() -> None:
    def plan(heads: int, length: int, **changes) -> op.Plan:
        of = jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16)
        own = Tiles(**{"chunk": 64, **changes})
        return op.make_plan(own, 1.0, op.Inputs(*[of] * 6), None, None, interpret=True)[0]

    assert {plan(h, 1 << 15).stretches for h in (1, 16, 128)} == {1}  # unless asked
    chosen = [plan(h, 1 << 15, stretches=0).stretches for h in (1, 4, 8, 16, 17, 128)]
    assert chosen == [16, 16, 16, 8, 1, 1]
    assert [plan(1, t, stretches=0).stretches for t in (100, 4096, 1 << 17)] == [1, 8, 32]
    assert [plan(1, t, stretches=6).stretches for t in (64, 64 * 15, 64 * 13)] == [1, 5, 5]
    assert plan(1, 64 * 9, stretches=8).stretches == 5  # 10 spans, where 8 would take 16
    assert plan(16, 1 << 15, stretches=8).tiles.block_value == 128  # not spread as well


def test_stretches_are_of_the_plain_rule_alone() -> None:
    with pytest.raises(
        ValueError, match=r"Tiles\(stretches=4, solve='walk'\): a scan in stretches"
    ):
        Tiles(stretches=4, solve="walk")
    for wrong in (-1, 2.5, True, "8"):
        with pytest.raises(ValueError, match=r"Tiles.stretches=.*; allowed are whole numbers"):
            Tiles(stretches=wrong)
    case = Case(1, 130, 1, 1, 16, 16, gate_chunk=64)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    got, expected = (
        apply_rule("carve", case, arrays, "pallas", tiles=Tiles(chunk=64, stretches=count))
        for count in (2, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_parts_are_as_many_as_they_must_be() -> None:
    shape = (8, 4096, 16, 128)
    of = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    inputs = op.Inputs(of, of, of, of, of, of)
    for chunk in (16, 32, 64):
        for solve, most in (("walk", op.SOLVED_PART_BYTES), ("parallel", op.PART_BYTES)):
            tiles = Tiles(chunk=chunk, solve=solve)
            plan, length = op.make_plan(tiles, 1.0, inputs, None, None, interpret=True)
            assert length == shape[1]
            columns = 3 + (len(plan.levels) if solve == "walk" else 0)
            assert plan.parts > 1
            assert 8 * 16 * columns * 128 * 2 * (length // plan.parts) <= most
    short = op.Inputs(*(jax.ShapeDtypeStruct((1, 70, 1, 16), jnp.float32) for _ in range(6)))
    assert op.make_plan(Tiles(), 1.0, short, None, None, interpret=True)[0].parts == 1


@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
def test_forward_keeps_inputs_one_state_per_part_and_sums(rule: str) -> None:
    case = Case(1, 512, value_channels=16, gate_chunk=64)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))

    def forward(arrays: Arrays):
        if rule == "carve":
            return carve_rule(*arrays[:8], implementation="pallas")[0]
        erase = jax.nn.sigmoid(arrays.erase_logits)
        return gated_delta_rule(*arrays[:4], erase, arrays.write, implementation="pallas")[0]

    _, pull = jax.vjp(forward, arrays)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))
    inputs = sum(a.size for a in arrays[:6])
    state, content, chunks = arrays.memory.size, arrays.content.size, 512 // 64
    projections = 2 * (2 * 16 * 16)  # their rank padded to 16
    squares = 512 * arrays.value.shape[2] * SPAN  # P, or A, of each span
    carve = (chunks + 2) * content + projections + chunks + squares
    # The plain rule's are known without a scan: sigmoid, the caller's own; both squares.
    plain = arrays.erase_logits.size + 2 * squares
    own = carve if rule == "carve" else plain
    assert inputs < kept <= inputs + state + own + 8  # a few scalars


@pytest.mark.parametrize(
    ("rule", "chunk"),
    [
        ("gated_delta", 64),
        pytest.param("carve", 16, marks=SLOW),
        pytest.param("carve", 32, marks=SLOW),
    ],
)
def test_a_promised_floor_takes_another_path_to_the_same(rule: str, chunk: int) -> None:
    case = Case(1, 150, 1, 2, 16, 16, gate_chunk=64)
    tiles = Tiles(chunk=chunk, product="tf32", inverse="tf32")
    check(rule, case, tiles=tiles, log_decay_floor=-10.0)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    plain, bounded = (
        apply_rule(rule, case, arrays, "pallas", tiles=tiles, log_decay_floor=floor)[0]
        for floor in (None, -10.0)
    )
    assert (plain != bounded).any()


def test_a_floor_too_low_keeps_the_exact_path() -> None:
    arrays = Arrays(*map(jnp.float32, make_arrays(Case(1, 70))))
    arrays = arrays._replace(log_decay=arrays.log_decay.at[:, 10].set(-40.0))
    inputs = (*arrays[:4], jax.nn.sigmoid(arrays.erase_logits), arrays.write)
    exact, _ = gated_delta_rule(*inputs, implementation="pallas")
    low, _ = gated_delta_rule(*inputs, implementation="pallas", log_decay_floor=-40.0)
    np.testing.assert_array_equal(low, exact)


@pytest.mark.slow
def test_segments_keep_the_exact_path_whatever_floor_is_promised() -> None:
    arrays = Arrays(*map(jnp.float32, make_arrays(Case(1, 70))))
    inputs = (*arrays[:4], jax.nn.sigmoid(arrays.erase_logits), arrays.write)
    segments = jnp.asarray(np.repeat([[0, 1]], [23, 47], axis=1))
    options = {"segment_ids": segments, "implementation": "pallas"}
    exact, _ = gated_delta_rule(*inputs, **options)
    promised, _ = gated_delta_rule(*inputs, log_decay_floor=-10.0, **options)
    np.testing.assert_array_equal(promised, exact)


# Without a floor, in float32: tests/ops. Both floors, both dtypes and both rules are among these.
FLOORS = {("gated_delta", -10.0, "float32"), ("carve", -5.0, "bfloat16")}


@pytest.mark.parametrize(
    ("rule", "floor", "dtype"),
    [
        pytest.param(*settings, marks=() if settings in FLOORS else SLOW)
        for settings in itertools.product(
            ("gated_delta", "carve"), (None, -10.0, -5.0), ("float32", "bfloat16")
        )
    ],
)
def test_the_future_moves_no_bit_of_the_past(rule: str, floor: float | None, dtype: str) -> None:
    """Gates, keys and all else change from a token on, with a promised floor and in partial tiles
    too; a mask that lets one entry above the diagonal through fails here."""
    case = Case(1, 101, 1, 1, 32, 16, gate_chunk=64)
    before, other = make_arrays(case), make_arrays(case, seed=7)
    before, other = (a._replace(log_decay=np.maximum(a.log_decay, -4.5)) for a in (before, other))
    options = {} if floor is None else {"log_decay_floor": floor}

    @jax.jit
    def run(arrays: Arrays):
        return apply_rule(rule, case, arrays, "pallas", **options)[0]

    def cast(arrays: Iterable[np.ndarray]) -> Arrays:
        return Arrays(
            *(jnp.asarray(a, dtype if i < 8 else "float32") for i, a in enumerate(arrays))
        )

    expected = run(cast(before))
    for token in (0, 4, 5, 12, 20, 37, 62, 63, 64, 70, 99):
        changed = [
            np.concatenate([b[:, : token + 1], a[:, token + 1 :]], axis=1)
            for b, a in zip(before[:6], other[:6], strict=True)
        ]
        got = run(cast((*changed, *before[6:])))
        np.testing.assert_array_equal(got[:, : token + 1], expected[:, : token + 1])
        assert (got[:, token + 1 :] != expected[:, token + 1 :]).any()


def test_a_broken_promise_is_refused() -> None:
    arrays = Arrays(*map(jnp.float32, make_arrays(Case(1, 20))))
    with pytest.raises(
        ValueError, match=r"log_decay has an entry of -.*, below log_decay_floor=-0.001"
    ):
        carve_rule(*arrays[:8], log_decay_floor=-0.001)


@pytest.mark.slow  # at the width of 16: tests/ops
@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
def test_products_in_bfloat16_with_the_shipped_tiles(rule: str) -> None:
    check(rule, Case(1, 130, 1, 2, 32, 32, gate_chunk=64), "bfloat16")


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
def test_the_shipped_tiles_multiply_bfloat16_as_it_is(rule: str, width: int) -> None:
    assert tiling.choose("bfloat16", width, width, content=rule == "carve").product == "bf16"


FORWARD = ["_span_kernel", "_walk_kernel"]
BACKWARD = [*FORWARD, "_walk_back_kernel", "_pairs_kernel", "_gradients_kernel"]
KERNELS = {
    "forward": [FORWARD],
    # The backward pass begins with the forward pass's kernels; JAX 0.12 writes equal calls once.
    # The plain rule's second span kernel is another, without P and A.
    "backward": [[*FORWARD, *BACKWARD], BACKWARD, [FORWARD[0], *BACKWARD]],
    "one token": [["gated_delta_step"]],
    "chunked": [[]],
}


@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_in_the_lowered_program(
    rule: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARVE_PALLAS", "compile")
    case = Case(1, 1 if name == "one token" else 192, 2, 2, 32, 32, gate_chunk=64)
    arrays = Arrays(
        *(jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in make_arrays(case)[:8]), *[None] * 3
    )

    def forward(*arrays):
        if rule == "carve":
            implementation = "chunked" if name == "chunked" else "pallas"
            return carve_rule(*arrays, implementation=implementation)[0]
        inputs = (*arrays[:4], jax.nn.sigmoid(arrays[4]), arrays[5])
        return gated_delta_rule(*inputs, implementation=None if name != "chunked" else "chunked")[0]

    def backward(*arrays):
        return jax.grad(lambda *a: forward(*a).astype(jnp.float32).sum(), tuple(range(6)))(*arrays)

    function = backward if name == "backward" else forward
    lowered = lowering.lower(Program(name, "", "", function, arrays[:8]), "sm_90")
    calls = [call.name for call in lowering.extract_calls(lowered)]
    assert calls in KERNELS[name]


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARVE_PALLAS", "lower")
    arrays = Arrays(*map(jnp.float32, make_arrays(Case(1, 20))))
    with pytest.raises(ValueError, match="CARVE_PALLAS='lower'; allowed are gpu, interpret"):
        carve_rule(*arrays[:8], implementation="pallas")


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_the_inverse_of_tiles_on_a_diagonal(tile: int) -> None:
    rng = np.random.default_rng(0)
    inside = np.kron(np.eye(64 // tile), np.ones((tile, tile)))
    system = np.tril(rng.standard_normal((64, 64)), -1) * inside * 0.3
    ordered = wy.order(64)

    product = wy.Product("f32", emulated=True)
    for corrected in (False, True):
        got = wy.unit_inverse(
            product, jnp.float32(system), ordered, tile, ptx.level_negated, corrected
        )
        np.testing.assert_allclose(got, np.linalg.inv(np.eye(64) + system), atol=1e-5)


def test_tiles_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"Tiles.chunk=48; allowed are \(16, 32, 64\)"):
        Tiles(chunk=48)
    with pytest.raises(ValueError, match=r"Tiles.solve='later'; allowed"):
        Tiles(solve="later")


def test_the_table_covers_the_domain() -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        for width in (1, 16, 48, 64, 128, 200, 256):
            for content, card in itertools.product((False, True), device.CAPABILITIES):
                tiles = tiling.choose(dtype, width, 16, "no such device", content, card)
                assert (tiles.product == "bf16") == (dtype == "bfloat16")
    assert set(tiling.LARGEST_STATE) == set(device.CAPABILITIES)
    with pytest.raises(LookupError, match="no tiles for bfloat16, K=257"):
        tiling.choose("bfloat16", 257, 16)
