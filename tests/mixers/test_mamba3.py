"""Mamba-3 against its recurrence written out, and what every mixer promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.mixers import mamba3 as module
from carve_jax.mixers.mamba3 import Mamba3Mixer
from carve_jax.ops.gated_delta import gated_delta_rule
from carve_jax.ops.rotation import UNITS
from tests.mixers.parameters import random_normal, random_parameters

BATCH, LENGTH, WIDTH, HEADS, K, V = 2, 22, 24, 4, 8, 6
SIZES = {"num_heads": HEADS, "key_dim": K, "value_dim": V, "implementation": "recurrent"}
KINDS = {
    "siso": {"rope_fraction": 1.0},
    "mimo": {"mimo_rank": 3, "num_key_heads": 2},
}

# A rank of one is the simpler; it is tested by day where it is another path, or published.
EACH = [pytest.param("siso", marks=pytest.mark.slow), "mimo"]


def make(kind, **changes):
    return Mamba3Mixer(**SIZES | KINDS[kind] | changes)


def inputs(seed=0):
    return random_normal(BATCH, LENGTH, WIDTH, seed=seed)


def parameters(mixer):
    """Random ones, with gains about 1 and larger angles."""
    params = random_parameters(mixer, jnp.zeros((1, 1, WIDTH)))
    gains = {name: 1 + params[name] for name in params if name[:4] in ("b_no", "c_no", "mimo")}
    angles = {"angle_proj": {"kernel": 3 * params["angle_proj"]["kernel"]}}
    return params | gains | angles | {"dt_bias": params["dt_bias"] + 3}


@functools.partial(jax.jit, static_argnums=0)
def run(mixer, params, x, cache=None, segment_ids=None):
    return mixer.apply({"params": params}, x, cache, segment_ids)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softplus(a):
    return np.log1p(np.exp(a))


def rotated(a, angle):
    """Pairs of the last axis as complex numbers, times exp(i·angle)."""
    turned = a.copy()
    pairs = (a[..., 0::2] + 1j * a[..., 1::2])[..., : angle.shape[-1]] * np.exp(1j * angle)
    turned[..., 0 : 2 * angle.shape[-1] : 2] = pairs.real
    turned[..., 1 : 2 * angle.shape[-1] : 2] = pairs.imag
    return turned


def layer(mixer, params, x):
    """The paper's equations in float64 NumPy: the state itself, one token after the other."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, rank, groups = np.asarray(x, np.float64), mixer.mimo_rank, mixer.key_heads

    def linear(name, a=x):
        return a @ p[name]["kernel"]

    def keys(name):
        a = linear(f"{name}_proj").reshape(BATCH, LENGTH, rank, groups, K)
        a = a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5) * p[f"{name}_norm"]
        return a.repeat(HEADS // groups, axis=3).swapaxes(2, 3) + p[f"{name}_bias"]

    ones = np.ones((HEADS, 1, V))
    gain = {name: p.get(name, ones) for name in ("mimo_x", "mimo_z", "mimo_o")}
    timestep = softplus(linear("dt_proj") + p["dt_bias"])
    decay = np.exp(-np.maximum(softplus(linear("a_proj")), 1e-4) * timestep)
    mix, turn = sigmoid(linear("trap_proj")), np.pi * np.tanh(linear("angle_proj"))
    key, query = keys("b"), keys("c")
    value, z = (
        linear(name).reshape(BATCH, LENGTH, HEADS, 1, V) * gain[f"mimo_{name[0]}"]
        for name in ("x_proj", "z_proj")
    )
    y = np.zeros((BATCH, LENGTH, HEADS, V))
    for i, h in np.ndindex(BATCH, HEADS):
        state, last, angle = np.zeros((K, V)), np.zeros((K, V)), 0.0
        for t in range(LENGTH):
            at = (i, t, h)
            angle = angle + turn[i, t] * timestep[at]
            now = rotated(key[at], angle).T @ value[at]
            state = decay[at] * state
            state += (1 - mix[at]) * timestep[at] * decay[at] * last
            state += mix[at] * timestep[at] * now
            out = rotated(query[at], angle) @ state + p["D"][h] * value[at]
            y[at] = (gain["mimo_o"][h] * out * z[at] * sigmoid(z[at])).sum(0)
            last = now
    return linear("o_proj", y.reshape(BATCH, LENGTH, HEADS * V))


def assert_close(found, expected):
    """Compares to float32 rounding in the scale of the whole: outputs of 50 stand beside 0.1."""
    atol = max(2e-5, 2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("implementation", ["recurrent", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_recurrence_written_out(kind, implementation):
    mixer = make(kind, implementation=implementation, chunk_size=16)
    params = parameters(mixer)
    y, nothing = run(mixer, params, inputs())
    assert nothing is None
    expected = layer(mixer, params, inputs())
    assert np.abs(expected).max() > 1
    assert_close(y, expected)


def test_the_kernels_give_the_same():
    mixer = make("mimo", implementation="pallas", mimo_rank=2)
    params, x = parameters(mixer), inputs()[:, :5]
    reference, _ = run(make("mimo", mimo_rank=2), params, x)
    np.testing.assert_allclose(run(mixer, params, x)[0], reference, rtol=1e-4, atol=1e-4)


def shapes(kind, **changes):
    mixer = make(kind, **changes)
    tree = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_parameters_are_those_of_the_official_layer():
    both = {
        "z_proj/kernel": (WIDTH, HEADS * V),
        "x_proj/kernel": (WIDTH, HEADS * V),
        "dt_proj/kernel": (WIDTH, HEADS),
        "a_proj/kernel": (WIDTH, HEADS),
        "trap_proj/kernel": (WIDTH, HEADS),
        "o_proj/kernel": (HEADS * V, WIDTH),
        "b_norm": (K,),
        "c_norm": (K,),
        "dt_bias": (HEADS,),
        "D": (HEADS,),
    }
    assert shapes("siso") == both | {
        "b_proj/kernel": (WIDTH, HEADS * K),
        "c_proj/kernel": (WIDTH, HEADS * K),
        "angle_proj/kernel": (WIDTH, K // 2),
        "b_bias": (HEADS, 1, K),
        "c_bias": (HEADS, 1, K),
    }
    assert shapes("mimo") == both | {
        "b_proj/kernel": (WIDTH, 3 * 2 * K),
        "c_proj/kernel": (WIDTH, 3 * 2 * K),
        "angle_proj/kernel": (WIDTH, K // 4),
        "b_bias": (HEADS, 3, K),
        "c_bias": (HEADS, 3, K),
        "mimo_x": (HEADS, 3, V),
        "mimo_z": (HEADS, 3, V),
        "mimo_o": (HEADS, 3, V),
    }


def test_initial_values_are_the_published_ones():
    mixer = make("mimo", output_scale=0.5)
    params = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))["params"]
    for name, value in (("b_bias", 1), ("c_bias", 1), ("b_norm", 1), ("c_norm", 1), ("D", 1)):
        np.testing.assert_array_equal(params[name], np.full(params[name].shape, value))
    for name, value in (("mimo_x", 1 / 3), ("mimo_z", 1), ("mimo_o", 1 / 3)):
        np.testing.assert_allclose(params[name], np.full(params[name].shape, value), rtol=1e-6)
    step = softplus(np.asarray(params["dt_bias"]))
    assert (step >= 0.99e-3).all()
    assert (step <= 1.01e-1).all()
    for name, bound in (("x_proj", WIDTH**-0.5), ("o_proj", 0.5 * (HEADS * V) ** -0.5)):
        assert 0.9 * bound < np.abs(params[name]["kernel"]).max() <= bound


def test_dead_ranks_leave_siso():
    """Rank 3 of which one reads, writes and is read with gain 1 is rank 1."""
    siso, mimo = make("siso", rope_fraction=0.5), make("mimo", num_key_heads=None)
    params = parameters(siso)
    live = jnp.zeros((HEADS, 3, V)).at[:, 1].set(1)
    wide = parameters(mimo) | dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), live)
    middle = slice(HEADS * K, 2 * HEADS * K)
    for name in params:
        if name in ("b_proj", "c_proj"):
            kernel = wide[name]["kernel"].at[:, middle].set(params[name]["kernel"])
            wide[name] = {"kernel": kernel}
        elif name in ("b_bias", "c_bias"):
            wide[name] = wide[name].at[:, 1].set(params[name][:, 0])
        else:
            wide[name] = params[name]
    expected, _ = run(siso, params, inputs())
    np.testing.assert_allclose(run(mimo, wide, inputs())[0], expected, rtol=1e-5, atol=1e-5)


def test_without_the_past_key_and_angle_it_is_eulers_rule(monkeypatch):
    """λ = 1 and angles of 0: the plain rule with write Δ, as in Mamba-2."""
    mixer = make("siso")
    params = parameters(mixer) | {"angle_proj": {"kernel": jnp.zeros((WIDTH, K // 2))}}
    params |= {"trap_proj": {"kernel": jnp.full((WIDTH, HEADS), 1e4)}}
    x = jnp.abs(inputs())

    def euler(query, key, value, log_decay, timestep, trapezoid, **options):
        arrays = (a[:, :, 0] for a in (query, key, value))
        gates = (log_decay[..., None], jnp.zeros_like(log_decay)[..., None], timestep[..., None])
        output, state = gated_delta_rule(*arrays, *gates, scale=1.0, implementation="recurrent")
        return output[:, :, None], state

    y, _ = run(mixer, params, x)
    monkeypatch.setattr(module, "trapezoidal_rule", euler)
    expected, _ = jax.jit(mixer.apply)({"params": params}, x)  # not run: it remembers
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def stream(mixer, params, x, lengths):
    cache, outputs, start = mixer.init_cache(BATCH, LENGTH), [], 0
    for length in lengths:
        y, cache = run(mixer, params, x[:, start : start + length], cache)
        outputs.append(y)
        start += length
    assert start == x.shape[1]
    return jnp.concatenate(outputs, axis=1), cache


def assert_same_cache(mine, theirs):
    turns = (np.asarray(mine.angle, np.float64) - np.asarray(theirs.angle)) / UNITS
    np.testing.assert_allclose(turns - np.round(turns), 0, atol=2e-6)
    for a, b in zip(mine.state, theirs.state, strict=True):
        # Angles may differ by 2e-6 of a turn, which moves a state by its own size times 1.3e-5.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("kind", EACH)
def test_any_split_gives_the_same(kind):
    mixer = make(kind)
    params, x = parameters(mixer), inputs()
    whole, last = run(mixer, params, x, mixer.init_cache(BATCH, LENGTH))
    for lengths in ([1] * LENGTH, [9, 1, 12]):
        parts, cache = stream(mixer, params, x, lengths)
        assert_close(parts, whole)
        assert_same_cache(cache, last)


@pytest.mark.parametrize("kind", EACH)
def test_packed_documents_equal_documents_apart(kind):
    mixer = make(kind)
    params, x = parameters(mixer), inputs()
    _, cache = run(mixer, params, inputs(5), mixer.init_cache(BATCH, LENGTH))
    ends = [0, 7, 8, LENGTH]
    ids = jnp.repeat(jnp.array([2, 3, 7]), jnp.diff(jnp.array(ends)))[None].repeat(BATCH, 0)
    packed, last = run(mixer, params, x, cache, ids)
    for i in range(3):
        document = slice(ends[i], ends[i + 1])
        start = cache if i == 0 else mixer.init_cache(BATCH, LENGTH)
        apart, own = run(mixer, params, x[:, document], start)
        assert_close(packed[:, document], apart)
    assert_same_cache(last, own)


@pytest.mark.parametrize("implementation", ["recurrent", "chunked"])
@pytest.mark.parametrize("kind", EACH)
def test_later_tokens_change_no_bit(kind, implementation):
    mixer = make(kind, implementation=implementation, chunk_size=16)
    params, x = parameters(mixer), inputs()
    whole, _ = run(mixer, params, x)
    changed, _ = run(mixer, params, x.at[:, 11:].set(inputs(7)[:, 11:]))
    np.testing.assert_array_equal(changed[:, :11], whole[:, :11])
    assert not np.allclose(changed[:, 11:], whole[:, 11:])


@pytest.mark.parametrize("kind", EACH)
def test_gradients_are_finite_and_reach_every_parameter(kind):
    mixer = make(kind, num_key_heads=2)
    params, x = parameters(mixer), inputs()
    ids = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < 9, 0, 1), (BATCH, LENGTH))

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(run(mixer, p, x, None, ids)[0])), (0, 1))(
            params, x
        )

    for path, gradient in jax.tree.leaves_with_path(gradients(params, x)):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("kind", EACH)
def test_bfloat16_keeps_parameters_and_state_in_float32(kind):
    mixer, exact = make(kind, compute_dtype="bfloat16"), make(kind)
    params, x = parameters(exact), inputs()
    initial = jax.eval_shape(mixer.init, jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    y, cache = run(mixer, params, x.astype(jnp.bfloat16), mixer.init_cache(BATCH, LENGTH))
    assert y.dtype == cache.state.key.dtype == cache.state.value.dtype == jnp.bfloat16
    assert cache.state.memory.dtype == cache.state.weight.dtype == jnp.float32
    reference, _ = run(exact, params, x)
    error = jnp.linalg.norm(y - reference) / jnp.linalg.norm(reference)
    assert 1e-5 < error < 0.05


def test_the_cache_has_one_size_and_one_state_whatever_the_rank():
    siso, mimo = (make(kind).init_cache(BATCH, 10) for kind in KINDS)
    assert siso.state.memory.shape == mimo.state.memory.shape == (BATCH, HEADS, K, V)
    for kind in KINDS:
        long, short = (jax.tree.map(jnp.shape, make(kind).init_cache(1, n)) for n in (9, 9999))
        assert long == short


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_heads": 3}, "num_key_heads=3 does not divide num_heads=4"),
        ({"mimo_rank": 0}, "mimo_rank=0; it must be 1"),
        ({"rope_fraction": 1.5}, "rope_fraction=1.5 of key_dim=8"),
        ({"rope_fraction": 0.1}, "rope_fraction=0.1 of key_dim=8"),
    ],
)
def test_refuses_settings_that_fit_no_layer(changes, words):
    with pytest.raises(ValueError, match=words):
        shapes("siso", **changes)


def test_caches_of_another_batch_are_refused():
    mixer = make("siso")
    with pytest.raises(ValueError, match=r"cache\.angle has shape"):
        run(mixer, parameters(mixer), inputs(), mixer.init_cache(BATCH + 1, LENGTH))
