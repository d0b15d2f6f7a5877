"""Where content comes from: what each source computes, and what it can and cannot know."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import CarveState, carve_rule
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
    [("recurrent", (1,) * 45), ("recurrent", (20, 25)), ("chunked", (20, 25))],
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
