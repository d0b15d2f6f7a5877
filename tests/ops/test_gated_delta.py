"""One suite for every implementation of the rule, against the float64 recurrent oracle."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import (
    CarveState,
    carve_rule,
    gated_delta_rule,
    value_axis_erase_rule,
)
from carve_jax.ops.gated_delta.tiling import group_size, tile_size
from pallas_kernels.tiling import Tiles
from tests.ops.cases import CASES, Arrays, Case, make_arrays, program_of, segment_ids

# "pallas" is interpreted here, at small sizes; tests/kernels runs it compiled, on a GPU.
IMPLEMENTATIONS = ("recurrent", "chunked", "pallas")
RULES = ("gated_delta", "carve")
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2, "float16": 1e-3}
KEY_SIDE = ("query", "key", "value", "log_decay", "erase_logits", "write")


def relative_error(got, expected) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-30)


def apply_rule(rule: str, case: Case, arrays: Arrays, implementation: str, varying=None, **options):
    """Outputs of a rule as a tuple: output, then every array of the final state.

    Args:
      varying: segment ids and position, where they are traced; the case's otherwise.
    """
    segments, position = numbers_of(case) if varying is None else varying
    if rule == "gated_delta":
        erase = case.erase_scale * jax.nn.sigmoid(arrays.erase_logits)
        inputs = (*arrays[:4], erase.astype(arrays.erase_logits.dtype), arrays.write)
        return gated_delta_rule(
            *inputs,
            initial_state=arrays.memory,
            segment_ids=segments,
            implementation=implementation,
            **options,
        )
    output, state = carve_rule(
        *arrays[:8],
        initial_state=CarveState(*arrays[8:], position),
        segment_ids=segments,
        gate_chunk=case.gate_chunk,
        erase_scale=case.erase_scale,
        stop_gradient_content=case.stop_gradient,
        content_norm=case.norm,
        content_lag=case.lag,
        implementation=implementation,
        **options,
    )
    return output, *state[:3]


def numbers_of(case: Case):
    """Segment ids (or None) and the position of each row."""
    return segment_ids(case), np.full((case.batch,), case.offset, np.int32)


def outputs_and_gradients(
    rule: str, case: Case, dtype: str, implementation: str, rounded: str | None = None, **options
):
    """Outputs, and gradients of a random functional of all of them, under `jit`; of inputs that are
    rounded to a dtype first, if asked."""
    wide = "float64" if dtype == "float64" else "float32"
    arrays = make_arrays(case)
    if rounded is not None:
        kept = [np.asarray(jnp.asarray(a, rounded), np.float64) for a in arrays[:8]]
        arrays = Arrays(*kept, *arrays[8:])
    arrays = Arrays(*(jnp.asarray(a, dtype if i < 8 else wide) for i, a in enumerate(arrays)))
    settings = tuple(sorted(options.items()))
    run = gradient_program(rule, program_of(case), wide, implementation, settings)
    gradients, outputs = run(arrays, numbers_of(case))
    return outputs, gradients


@functools.cache
def forward_program(rule: str, case: Case, implementation: str, **options):
    """The compiled rule of a case, a function of its arrays."""
    return jax.jit(lambda arrays: apply_rule(rule, case, arrays, implementation, **options))


@functools.cache
def gradient_program(rule: str, case: Case, wide: str, implementation: str, options: tuple):
    """The compiled function of a case's arrays and numbers, for all cases that share it."""

    def functional(arrays: Arrays, varying):
        rng = np.random.default_rng(1)
        outputs = apply_rule(rule, case, arrays, implementation, varying, **dict(options))
        cotangents = [jnp.asarray(rng.standard_normal(o.shape), wide) for o in outputs]
        total = sum((o.astype(wide) * c).sum() for o, c in zip(outputs, cotangents, strict=True))
        return total, outputs

    return jax.jit(jax.grad(functional, has_aux=True))


@functools.cache
def oracle(rule: str, case: Case, dtype: str = "float32"):
    """The same in float64; for half precision of the inputs as rounded, so that what is left is the
    implementation's own error."""
    rounded = None if dtype == "float32" else dtype
    with jax.enable_x64(True):
        found = outputs_and_gradients(rule, case, "float64", "recurrent", rounded)
        return jax.tree.map(np.asarray, found)


TWO_BACK = tuple(name for name, case in CASES.items() if case.lag == 2)


def applies(rule: str, name: str) -> bool:
    """Cases that differ from "plain" for this rule."""
    content_only = ("offset", "offset and segments", "normalised content", "stopped content")
    content_only += ("long gate chunk", "one token a gate chunk", *TWO_BACK)
    return name not in content_only if rule == "gated_delta" else CASES[name].erase == "channel"


SUITE = [(rule, name) for rule in RULES for name in CASES if applies(rule, name)]

# One case of each kind is always tested. The first line's share one program.
ALWAYS = {
    *("segments", "segments, hard resets", "segments, no decay", "offset and segments"),
    "one token",
}
ALWAYS_OF = {"gated_delta": {"correlated keys"}, "carve": {"odd sizes"}}
# The oracle is "recurrent", which only rounds otherwise; and interpreted, the kernels' programs are
# the dearest. Their scalar gates are tested by the family of mixers, their grouped values and
# normalised content in tests/kernels, where their long gate chunks wait for the night.
ALWAYS_ELSEWHERE = {
    "gated_delta": {"plain", "strong decay"},
    # Grouped values, normalised content and an offset are in one of them, and each in one by night.
    "carve": {"several of all", "long gate chunk", "two chunks back, odd sizes"},
}


def marked(implementation: str, rule: str, name: str):
    """A test of the suite, slow unless it is the one of its kind."""
    always = ALWAYS | ALWAYS_OF[rule]
    if implementation == "recurrent":
        always = {"segments", "offset and segments"}
    if implementation == "chunked":
        always |= ALWAYS_ELSEWHERE[rule]
    marks = () if name in always else pytest.mark.slow
    return pytest.param(implementation, rule, name, marks=marks)


@pytest.mark.parametrize(
    ("implementation", "rule", "name"),
    [
        marked(implementation, *test)
        for implementation in IMPLEMENTATIONS
        for test in SUITE
        if implementation != "pallas" or test[1] not in TWO_BACK
    ],
)
def test_outputs_and_every_gradient(implementation: str, rule: str, name: str) -> None:
    outputs, gradients = outputs_and_gradients(rule, CASES[name], "float32", implementation)
    expected_outputs, expected_gradients = oracle(rule, CASES[name])
    for got, expected in zip(outputs, expected_outputs, strict=True):
        assert relative_error(got, expected) < TOLERANCE["float32"]
    scale = 20 if CASES[name].keys == "correlated" else 1  # 130 nearly equal keys: ill-conditioned
    for field in Arrays._fields:
        got, expected = getattr(gradients, field), getattr(expected_gradients, field)
        assert relative_error(got, expected) < scale * TOLERANCE["float32"], field


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("several groups")])
def test_the_cases_of_several_groups_have_them(name: str) -> None:
    arrays, length = make_arrays(CASES[name]), CASES[name].length
    tile = tile_size(64, length)
    assert group_size(arrays.query, arrays.value, tile) * tile < length


# Each rule by day; the rest, and "recurrent", which is the oracle, by night.
HALVES = {
    (*each, "bfloat16", "segments") for each in (("pallas", "carve"), ("chunked", "gated_delta"))
}


@pytest.mark.parametrize(
    ("implementation", "rule", "dtype", "name"),
    [
        pytest.param(*each, marks=() if each in HALVES else pytest.mark.slow)
        for each in itertools.product(
            IMPLEMENTATIONS, RULES, ("bfloat16", "float16"), ("plain", "segments")
        )
    ],
)
def test_half_precision(rule: str, dtype: str, implementation: str, name: str) -> None:
    outputs, gradients = outputs_and_gradients(rule, CASES[name], dtype, implementation)
    assert outputs[0].dtype == dtype
    assert outputs[1].dtype == jnp.float32
    expected_outputs, expected_gradients = oracle(rule, CASES[name], dtype)
    for got, expected in zip(outputs, expected_outputs, strict=True):
        assert relative_error(got, expected) < TOLERANCE[dtype]
    for got, expected in zip(gradients, expected_gradients, strict=True):
        assert relative_error(got, expected) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32_gates_beside_bfloat16(rule: str, implementation: str) -> None:
    case = CASES["plain"]
    arrays = make_arrays(case)
    half = Arrays(
        *(jnp.asarray(a, "bfloat16" if i < 3 else "float32") for i, a in enumerate(arrays))
    )
    got = forward_program(rule, case, implementation)(half)
    exact = Arrays(*(a.astype("float32") for a in half))
    assert got[0].dtype == jnp.bfloat16
    expected = forward_program(rule, case, "recurrent")(exact)
    # Elsewhere than in the kernels' products, gates are not rounded on the way.
    assert relative_error(got[1], expected[1]) < (3e-2 if implementation == "pallas" else 1e-5)


@pytest.mark.parametrize(
    "chunk_size", [16, 48, 1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 128))]
)
def test_chunk_size_changes_rounding_alone(chunk_size: int) -> None:
    case = CASES["plain"]._replace(length=150)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    got = forward_program("gated_delta", case, "chunked", chunk_size=chunk_size)(arrays)
    expected = forward_program("gated_delta", case, "recurrent")(arrays)
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < TOLERANCE["float32"]


BIT_IDENTICAL = {
    ("float32", 4, 16, 16): pytest.mark.slow,
    ("float32", 64, 64, 64): pytest.mark.slow,
    ("float32", 128, 5, 3): (),
    ("bfloat16", 10, 64, 32): pytest.mark.slow,
    ("bfloat16", 64, 16, 16): (),
}


@pytest.mark.parametrize(
    ("implementation", "dtype", "gate_chunk", "channels", "width"),
    [
        pytest.param(implementation, *sizes, marks=marks)
        for implementation in IMPLEMENTATIONS
        for sizes, marks in BIT_IDENTICAL.items()
        # The kernels' tiles follow the gate chunks; they are the plain rule's where 16 divides L.
        if implementation != "pallas" or sizes[1] % 16 == 0
    ],
)
def test_bit_identical_to_gdn2_at_initialisation(
    implementation: str, dtype: str, gate_chunk: int, channels: int, width: int
) -> None:
    case = Case(1, 150, 2, 4, channels, width, gate_chunk=gate_chunk)
    arrays = Arrays(*(jnp.asarray(a, dtype) for a in make_arrays(case)))
    if channels % 16:  # XLA's σ rounds by its place in a vector: here only where σ is exact
        exact = np.random.default_rng(0).choice([-200, 0, 100], arrays.erase_logits.shape)
        arrays = arrays._replace(erase_logits=jnp.asarray(exact, dtype))
    logits = arrays.erase_logits.astype("float32")
    erase = (2.0 * jax.nn.sigmoid(logits)).astype(dtype)
    write = jnp.broadcast_to(arrays.write, arrays.value.shape)
    options = {"implementation": implementation}
    if implementation == "pallas":  # the plain rule, too, solves on its way
        options["tiles"] = Tiles(chunk=16, product="tf32", inverse="tf32", solve="walk")
    plain = jax.jit(functools.partial(gated_delta_rule, **options))
    carve = jax.jit(
        functools.partial(carve_rule, gate_chunk=gate_chunk, erase_scale=2.0, **options)
    )
    expected, memory = plain(*arrays[:4], erase, write)
    got, state = carve(*arrays[:7], jnp.zeros_like(arrays.content_up))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(state.memory, memory)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_causal_to_the_bit(rule: str, implementation: str) -> None:
    case = Case(1, 101, decay="resets")
    before, other = make_arrays(case), make_arrays(case, seed=7)
    run = jax.jit(lambda arrays: apply_rule(rule, case, arrays, implementation)[0])
    expected = run(Arrays(*map(jnp.float32, before)))
    for token in (0, 17, 40, 63, 64, 99):
        changed = [
            np.concatenate([b[:, : token + 1], a[:, token + 1 :]], axis=1)
            for b, a in zip(before[:6], other[:6], strict=True)
        ]
        changed[3][:, token + 1 :] *= 100  # decays later on, changed beyond any scale
        got = run(Arrays(*map(jnp.float32, (*changed, *before[6:]))))
        np.testing.assert_array_equal(got[:, : token + 1], expected[:, : token + 1])
        assert (got[:, token + 1 :] != expected[:, token + 1 :]).any()


SPLITS = {
    "tokens": (1,) * 90,
    "uneven": (1, 30, 9, 48, 2),
    "chunks": (32, 16, 42),
    "halves": (45, 45),
}
# Each length compiles anew: one token, which has a kernel of its own, and pieces of all kinds.
SLOW_SPLITS = {(i, s) for i in ("chunked", "pallas") for s in ("chunks", "halves")}
SLOW_SPLITS |= {("chunked", "tokens"), ("chunked", "uneven"), ("pallas", "uneven")}


@functools.cache
def carve_program(implementation: str, **options):
    """The compiled rule with gate chunks of 16: a program for each length that it is given."""
    options |= {"gate_chunk": 16, "implementation": implementation}
    return jax.jit(
        lambda arrays, state=None: carve_rule(*arrays[:8], initial_state=state, **options)
    )


@pytest.mark.parametrize(
    ("implementation", "split"),
    [
        pytest.param(i, s, marks=pytest.mark.slow if (i, s) in SLOW_SPLITS else ())
        for i in IMPLEMENTATIONS
        for s in SPLITS
    ],
)
def test_any_split_gives_what_one_call_gives(implementation: str, split: str) -> None:
    case = Case(2, sum(SPLITS[split]), value_heads=4, norm=True)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    rule = carve_program(implementation, content_norm=True)
    expected, expected_state = rule(arrays)
    state, outputs, start = None, [], 0
    for length in SPLITS[split]:
        piece = [a[:, start : start + length] for a in map(np.asarray, arrays[:6])]
        output, state = rule((*piece, *arrays[6:8]), state)
        outputs.append(output)
        start += length
    assert relative_error(np.concatenate(outputs, 1), expected) < TOLERANCE["float32"]
    for got, want in zip(state, expected_state, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_array_equal(state.position, case.length % 16)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_content_is_summed_before_outputs_are_rounded(implementation: str) -> None:
    case = Case(2, 1, value_heads=4)
    arrays = Arrays(*(jnp.asarray(a, "bfloat16") for a in make_arrays(case)))
    exact = Arrays(*(a.astype("float32") for a in arrays))
    _, got = carve_program(implementation)(arrays)
    _, expected = carve_program("recurrent")(exact)
    # The gate b is rounded to bfloat16 in one of them, and edits a state that is zero.
    np.testing.assert_allclose(got.partial_sum, expected.partial_sum, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "implementation", ["recurrent", pytest.param("chunked", marks=pytest.mark.slow), "pallas"]
)
def test_rows_may_stand_at_different_offsets(implementation: str) -> None:
    case = Case(2, 40)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    position = jnp.array([3, 15], jnp.int32)

    def run(rows: slice):
        state = CarveState(*(a[rows] for a in arrays[8:]), position[rows])
        inputs = [a[rows] for a in arrays[:6]]
        return carve_program(implementation)((*inputs, *arrays[6:8]), state)[0]

    both = run(slice(None))
    for row in (0, 1):
        assert relative_error(both[row], run(slice(row, row + 1))[0]) < TOLERANCE["float32"]


@pytest.mark.parametrize("rule", [pytest.param("gated_delta", marks=pytest.mark.slow), "carve"])
@pytest.mark.parametrize(
    "implementation", ["recurrent", "chunked", pytest.param("pallas", marks=pytest.mark.slow)]
)
def test_packed_documents_equal_documents_apart(rule: str, implementation: str) -> None:
    lengths = (32, 48, 16, 21) if rule == "carve" else (7, 60, 1, 40)
    case = Case(1, sum(lengths))
    arrays = [np.asarray(a, np.float32) for a in make_arrays(case)[:8]]
    ids = np.repeat(np.arange(len(lengths)), lengths)[None].astype(np.int32)

    @jax.jit
    def run(arrays, segments=None):
        options = {"segment_ids": segments, "implementation": implementation}
        if rule == "carve":
            return carve_rule(*arrays, gate_chunk=16, **options)[0]
        erase = jax.nn.sigmoid(arrays[4])
        return gated_delta_rule(*arrays[:4], erase, arrays[5], **options)[0]

    packed = run(arrays, ids)
    start, longest = 0, max(lengths)
    for length in lengths:
        # Padded to one length, which compiles once; what comes after a document changes no bit.
        apart = [np.zeros((1, longest, *a.shape[2:]), a.dtype) for a in arrays[:6]]
        for padded, a in zip(apart, arrays[:6], strict=True):
            padded[:, :length] = a[:, start : start + length]
        expected = run([*apart, *arrays[6:]])[:, :length]
        got = packed[:, start : start + length]
        assert relative_error(got, expected) < TOLERANCE["float32"]
        start += length


@pytest.mark.parametrize("rule", RULES)
def test_backward_keeps_inputs_and_states_alone(rule: str) -> None:
    case = Case(1, 512, value_channels=16, gate_chunk=64)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    _, pull = jax.vjp(lambda arrays: apply_rule(rule, case, arrays, "chunked")[0], arrays)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))
    inputs = sum(a.size for a in arrays)
    states = (case.length // 64) * arrays.memory.size
    contents = 2 * (case.length // 64) * arrays.content.size  # two chunks may meet in a tile
    flags = 3 * case.length
    sigmoid = arrays.erase_logits.size if rule == "gated_delta" else 0  # the caller's own
    assert states < kept <= inputs + states + contents + flags + sigmoid


@pytest.mark.slow  # always: what the backward pass keeps, above
@pytest.mark.parametrize("rule", RULES)
def test_memory_grows_linearly(rule: str) -> None:
    def peak(length: int) -> int:
        case = Case(1, length, value_channels=16, gate_chunk=64)
        arrays = Arrays(*(jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in make_arrays(case)))
        grad = jax.grad(lambda arrays: apply_rule(rule, case, arrays, "chunked")[0].sum())
        memory = jax.jit(grad).lower(arrays).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    assert peak(8192) < 8.5 * peak(1024)


@pytest.mark.parametrize("rule", RULES)
def test_forward_mode_agrees_with_reverse_mode(rule: str) -> None:
    case = Case(1, 6, 1, 1, 4, 3, rank=2, gate_chunk=4)
    arrays = Arrays(*(jnp.asarray(x, jnp.float32) for x in make_arrays(case)))

    def output(arrays: Arrays) -> jax.Array:
        return apply_rule(rule, case, arrays, "recurrent")[0]

    @jax.jit
    def both(arrays: Arrays):
        primal, pull = jax.vjp(output, arrays)
        _, slope = jax.jvp(output, (arrays,), (arrays,))
        return primal, slope, pull(primal)[0]

    primal, slope, gradients = both(arrays)
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(arrays), strict=True)
    np.testing.assert_allclose(
        jnp.vdot(slope, primal), sum(jnp.vdot(g, x) for g, x in pairs), rtol=1e-4
    )


def test_value_axis_erase_is_the_rule_when_the_mask_is_one() -> None:
    arrays = Arrays(*map(jnp.float32, make_arrays(CASES["plain"])))
    inputs = (*arrays[:4], jax.nn.sigmoid(arrays.erase_logits), arrays.write)
    plain, _ = jax.jit(functools.partial(gated_delta_rule, implementation="recurrent"))(*inputs)
    masked, _ = jax.jit(value_axis_erase_rule)(*inputs, jnp.ones_like(arrays.value))
    np.testing.assert_allclose(masked, plain, rtol=1e-6, atol=1e-6)


def test_value_axis_erase_follows_its_definition() -> None:
    case = Case(1, 5, 1, 1, 4, 3)
    arrays = make_arrays(case)
    mask = 1 / (1 + np.exp(-make_arrays(case, 3).value))
    erase = 1 / (1 + np.exp(-arrays.erase_logits))
    memory, expected = np.zeros((4, 3)), []
    for t in range(5):
        k, v, w = arrays.key[0, t, 0], arrays.value[0, t, 0], arrays.write[0, t, 0]
        memory = np.exp(arrays.log_decay[0, t, 0])[:, None] * memory
        residual = w * v - mask[0, t, 0] * (memory.T @ (erase[0, t, 0] * k))
        memory = memory + np.outer(k, residual)
        expected.append(memory.T @ (arrays.query[0, t, 0] * 4**-0.5))
    inputs = map(jnp.float32, (*arrays[:4], erase, arrays.write, mask))
    got, _ = jax.jit(value_axis_erase_rule)(*inputs)
    np.testing.assert_allclose(got[0, :, 0], expected, rtol=2e-5, atol=1e-6)
