"""Where content comes from: what each source computes, and what it can and cannot know."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.content_gate import ContentGate
from carve_jax.ops.gated_delta import CarveState, carve_rule, gated_delta_rule
from carve_jax.ops.layer_content import content_of_outputs, shift_from_below
from experiments.theory import expressivity
from tests.ops.cases import Arrays, Case, make_arrays, sigmoid

CHUNK = 8


def naive(arrays: Arrays, ids: np.ndarray, lag: int) -> np.ndarray:
    """Outputs of CARVE in float64, written as its definition: content is a mean of outputs kept."""
    outputs = np.zeros(arrays.value.shape)
    for row, head in np.ndindex(arrays.value.shape[0], arrays.value.shape[2]):
        begun, state = 0, np.zeros((arrays.key.shape[3], arrays.value.shape[3]))
        for t in range(arrays.value.shape[1]):
            if t > 0 and ids[row, t] != ids[row, t - 1]:
                begun, state = t, np.zeros_like(state)
            first = begun + ((t - begun) // CHUNK - lag) * CHUNK
            read = outputs[row, first : first + CHUNK, head] if first >= begun else [0.0 * state[0]]
            shift = np.mean(read, axis=0) @ arrays.content_down[head] @ arrays.content_up[head]
            k, g = arrays.key[row, t, head], arrays.log_decay[row, t, head]
            b = sigmoid(arrays.erase_logits[row, t, head] + shift)
            state = np.exp(g)[:, None] * state
            edit = arrays.write[row, t, head] * arrays.value[row, t, head] - state.T @ (b * k)
            state = state + np.outer(k, edit)
            outputs[row, t, head] = state.T @ arrays.query[row, t, head] * k.size**-0.5
    return outputs


@pytest.mark.parametrize("lag", [1, 2])
def test_the_recurrence_is_the_definition_in_float64(lag: int) -> None:
    arrays = make_arrays(Case(2, 50, 1, 1, 4, 3))
    ids = np.repeat([[0, 1, 2]], [16, 24, 10], axis=1).repeat(2, axis=0).astype(np.int32)
    with jax.enable_x64(True):
        inputs = map(jnp.asarray, arrays[:8])
        options = {"gate_chunk": CHUNK, "content_lag": lag, "implementation": "recurrent"}
        output, _ = carve_rule(*inputs, segment_ids=jnp.asarray(ids), **options)
        np.testing.assert_allclose(output, naive(arrays, ids, lag), rtol=1e-12, atol=1e-12)


@functools.cache
def two_back(implementation: str):
    """The compiled rule with content of two chunks back."""
    options = {"gate_chunk": CHUNK, "content_lag": 2, "implementation": implementation}
    return jax.jit(lambda arrays, state=None: carve_rule(*arrays, initial_state=state, **options))


@pytest.mark.parametrize(
    ("implementation", "split"),
    [
        ("recurrent", (1,) * 45),
        ("recurrent", (20, 25)),
        pytest.param("chunked", (20, 25), marks=pytest.mark.slow),
    ],
)
def test_any_split_gives_what_one_call_gives(implementation: str, split: tuple[int, ...]) -> None:
    arrays = [jnp.float32(a) for a in make_arrays(Case(2, 45))[:8]]
    expected, expected_state = two_back(implementation)(arrays)
    state, outputs, start = None, [], 0
    for length in split:
        piece = [np.asarray(a)[:, start : start + length] for a in arrays[:6]]
        output, state = two_back(implementation)((*piece, *arrays[6:]), state)
        outputs.append(output)
        start += length
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=2e-5)
    assert state.content.shape == (2, 2, 2, 8)
    for got, want in zip(state, expected_state, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("implementation", ["recurrent", "chunked"])
def test_two_chunks_back_is_causal_to_the_bit(implementation: str) -> None:
    arrays, other = ([jnp.float32(a) for a in make_arrays(Case(2, 45), s)[:8]] for s in (0, 7))
    expected = two_back(implementation)(arrays)[0]
    for token in (0, 7, 8, 30):
        later = [o[:, token + 1 :] for o in other[:6]]
        changed = [a.at[:, token + 1 :].set(o) for a, o in zip(arrays[:6], later, strict=True)]
        got = two_back(implementation)((*changed, *arrays[6:]))[0]
        np.testing.assert_array_equal(got[:, : token + 1], expected[:, : token + 1])
        assert (got[:, token + 1 :] != expected[:, token + 1 :]).any()


def test_kernels_say_that_they_read_one_chunk_back_alone() -> None:
    arrays = [jnp.float32(a) for a in make_arrays(Case(1, 20))[:8]]
    with pytest.raises(NotImplementedError, match="were asked for content_lag=2; use 'chunked'"):
        carve_rule(*arrays, content_lag=2, implementation="pallas")


def test_kernels_decode_with_content_of_two_chunks_back() -> None:
    arrays = [jnp.float32(a) for a in make_arrays(Case(1, 1))[:8]]
    drawn = make_arrays(Case(1, 1, lag=2), 3)
    state = CarveState(*map(jnp.float32, drawn[8:]), jnp.full((1,), CHUNK - 1, jnp.int32))
    expected, got = (two_back(name)(arrays, state) for name in ("recurrent", "pallas"))
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_lag_that_there_is_not_is_refused() -> None:
    arrays = [jnp.float32(a) for a in make_arrays(Case(1, 4))[:8]]
    with pytest.raises(ValueError, match="content_lag is 3; give 1 for the outputs of the gate"):
        carve_rule(*arrays, content_lag=3)


@pytest.mark.parametrize(("lag", "gap"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_content_erase_is_solved_where_the_mode_lies_a_lag_behind(lag: int, gap: int) -> None:
    """CARVE set by hand, the mode stored `gap` gate chunks before the writes."""
    task = expressivity.make_task(64, gap * expressivity.GATE_CHUNK)
    strength = jnp.asarray(expressivity.STRENGTHS[-1])
    state = expressivity.carve_state(task.key, task.value, strength, lag=lag)
    error = expressivity.error(expressivity.held(state), task.target)
    assert error < 1e-5 if gap >= lag else error > 0.1


def by_chunk(output: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Content of each token's gate chunk, in float64: [B, T, N, V]."""
    contents = np.zeros(output.shape)
    for row in range(output.shape[0]):
        for t in range(output.shape[1]):
            first = t // CHUNK * CHUNK - CHUNK
            if first >= 0 and ids[row, first] == ids[row, t]:
                contents[row, t] = output[row, first : first + CHUNK].mean(axis=0)
    return contents


def of_tokens(contents, position, length: int) -> np.ndarray:
    """Content of each token, read through projections that change nothing."""
    heads, width = contents.shape[2:]
    one = jnp.broadcast_to(jnp.eye(width), (heads, width, width))
    gate = ContentGate(one, one, CHUNK, 1.0, stop_gradient=False, norm=False, dtype=one.dtype)
    return np.asarray(shift_from_below(contents, gate, position, length))


def test_a_layer_hands_up_the_means_of_its_outputs() -> None:
    output = np.random.default_rng(0).standard_normal((2, 45, 2, 3)).astype(np.float32)
    ids = np.repeat([[0, 1, 2]], [16, 8, 21], axis=1).repeat(2, axis=0).astype(np.int32)
    for segment_ids in (np.zeros_like(ids), ids):
        contents, kept = content_of_outputs(jnp.asarray(output), None, segment_ids, CHUNK)
        assert kept is None
        found = of_tokens(contents, None, 45)
        np.testing.assert_allclose(found, by_chunk(output, segment_ids), atol=1e-6)


@pytest.mark.parametrize("split", [(1,) * 21, (5, 1, 15)])
def test_what_a_layer_hands_up_does_not_hang_on_the_calls(split: tuple[int, ...]) -> None:
    output = np.random.default_rng(1).standard_normal((2, 21, 2, 3)).astype(np.float32)
    kept = (jnp.zeros((2, 2, 3)), jnp.zeros((2, 2, 3)), jnp.zeros((2,), jnp.int32))
    found, start = [], 0
    for length in split:
        position, piece = kept[2], jnp.asarray(output[:, start : start + length])
        contents, kept = content_of_outputs(piece, kept, None, CHUNK)
        found.append(of_tokens(contents, position, length))
        start += length
    expected = by_chunk(output, np.zeros(output.shape[:2]))
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-6)
    np.testing.assert_allclose(kept[0], output[:, 8:16].mean(1), atol=1e-6)
    np.testing.assert_allclose(kept[1], output[:, 16:].sum(1), atol=1e-6)
    np.testing.assert_array_equal(kept[2], 21 % CHUNK)


def test_a_broken_document_hands_nothing_to_the_next() -> None:
    output = jnp.ones((1, 24, 1, 2)).at[:, 10].set(jnp.nan)
    ids = (jnp.arange(24)[None] >= 16).astype(jnp.int32)
    contents, _ = content_of_outputs(output, None, ids, CHUNK)
    np.testing.assert_array_equal(contents[0, :, 0, 0], [0, 1, 0])


def test_content_erase_is_solved_by_the_layer_above_the_one_that_holds_the_mode() -> None:
    """Layers set by hand: the lower one holds the mode and reads it at every token, the upper one
    erases as it was told; its own memory it does not see."""
    gap = expressivity.GATE_CHUNK
    task, late = expressivity.make_task(64, gap), expressivity.make_task(64, 1)
    for each, solved in ((task, True), (late, False)):
        ask = jnp.zeros_like(each.key).at[..., 0].set(1.0)
        ones, zeros = jnp.ones((*ask.shape[:3], 1)), jnp.zeros((*ask.shape[:3], 1))
        lower, _ = gated_delta_rule(
            ask, each.key, each.value, zeros, zeros, ones, scale=1.0, implementation="recurrent"
        )
        contents, _ = content_of_outputs(lower, None, None, gap)
        down = jnp.zeros((1, 1 + expressivity.VALUES, 1)).at[0, 0, 0].set(1.0)
        up = jnp.full((1, 1, 1 + expressivity.KEYS), expressivity.STRENGTHS[-1])
        gate = ContentGate(down, up, gap, 1.0, stop_gradient=False, norm=False, dtype=down.dtype)
        erase = jax.nn.sigmoid(shift_from_below(contents, gate, None, ask.shape[1]))
        state = expressivity.blind_state(each.key, each.value, erase)
        error = expressivity.error(expressivity.held(state), each.target)
        assert error < 1e-5 if solved else error > 0.1
