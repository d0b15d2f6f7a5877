"""The GDN-2 layer to the letter, and CARVE beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.mixers import GATES, MIXERS, GatedDeltaMixer, GateSpec
from carve_jax.mixers import gated_delta as module
from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from tests.mixers.parameters import random_normal, random_parameters

BATCH, LENGTH, WIDTH, HEADS, K, V = 2, 20, 24, 2, 8, 16
SIZES = {
    "num_heads": HEADS,
    "key_dim": K,
    "value_dim": V,
    "gate_chunk": 4,
    "content_rank": 3,
    "implementation": "recurrent",
}


def inputs():
    return random_normal(BATCH, LENGTH, WIDTH)


def parameters(mixer):
    return random_parameters(mixer, jnp.zeros((1, 1, WIDTH)))


def new(carve):
    """Parameters with the content gate as it is at initialisation."""
    params = parameters(carve)
    return params | {"content_up": jnp.zeros_like(params["content_up"])}


def run(mixer, params, x, cache=None):
    return jax.jit(mixer.apply)({"params": params}, x, cache)


def recorded(monkeypatch, mixer, params, x):
    """The arrays and the options with which the mixer calls its rule."""
    seen = {}

    def record(*arrays, **options):
        seen["arrays"], seen["options"] = arrays, options
        return arrays[2], None

    def apply(params, x):
        mixer.apply({"params": params}, x)
        return seen.pop("arrays")

    with monkeypatch.context() as patch:
        patch.setattr(module, "carve_rule" if mixer.gates.content else "gated_delta_rule", record)
        return jax.jit(apply)(params, x), seen["options"]


def gdn2_layer(params, x):
    """The official layer in float64 NumPy, one token and one head at a time."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64)

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    def linear(name, a=x):
        return a @ p[name]["kernel"] + p[name].get("bias", 0)

    def convolved(name):
        a = np.pad(linear(f"{name}_proj"), ((0, 0), (3, 0), (0, 0)))
        y = sum(p[f"{name}_conv"][i] * a[:, i : i + LENGTH] for i in range(4))
        return (y * sigmoid(y)).reshape(BATCH, LENGTH, HEADS, -1)

    def unit(a):
        return a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6)

    def heads(a):
        return a.reshape(BATCH, LENGTH, HEADS, -1)

    q, k, v = unit(convolved("q")), unit(convolved("k")), convolved("v")
    step = np.log1p(np.exp(linear("f_up", linear("f_down")) + p["dt_bias"]))
    g = -np.exp(p["A_log"])[:, None] * heads(step)
    b, w = heads(sigmoid(linear("b_proj"))), heads(sigmoid(linear("w_proj")))
    output = np.zeros((BATCH, LENGTH, HEADS, V))
    for i, h in np.ndindex(BATCH, HEADS):
        state = np.zeros((K, V))
        for t in range(LENGTH):
            at = (i, t, h)
            state = np.exp(g[at])[:, None] * state
            state += np.outer(k[at], w[at] * v[at] - state.T @ (b[at] * k[at]))
            output[at] = state.T @ q[at] / np.sqrt(K)
    norm = output / np.sqrt((output**2).mean(-1, keepdims=True) + 1e-5) * p["o_norm"]
    gate = heads(linear("g_up", linear("g_down")))
    gated = norm * gate * sigmoid(gate)
    return linear("o_proj", gated.reshape(BATCH, LENGTH, HEADS * V))


@pytest.mark.parametrize("implementation", ["recurrent", "chunked"])
def test_gdn2_is_the_layer_written_out(implementation):
    mixer = MIXERS["gdn2"](**SIZES | {"implementation": implementation})
    params = parameters(mixer)
    y, _ = run(mixer, params, inputs())
    np.testing.assert_allclose(y, gdn2_layer(params, inputs()), atol=2e-5)


def shapes(name, **changes):
    mixer = MIXERS[name](**SIZES | changes)
    tree = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_parameters_of_gdn2_are_those_of_the_official_layer():
    assert shapes("gdn2") == {
        "q_proj/kernel": (WIDTH, HEADS * K),
        "k_proj/kernel": (WIDTH, HEADS * K),
        "v_proj/kernel": (WIDTH, HEADS * V),
        "b_proj/kernel": (WIDTH, HEADS * K),
        "w_proj/kernel": (WIDTH, HEADS * V),
        "f_down/kernel": (WIDTH, V),
        "f_up/kernel": (V, HEADS * K),
        "g_down/kernel": (WIDTH, V),
        "g_up/kernel": (V, HEADS * V),
        "g_up/bias": (HEADS * V,),
        "o_proj/kernel": (HEADS * V, WIDTH),
        "q_conv": (4, HEADS * K),
        "k_conv": (4, HEADS * K),
        "v_conv": (4, HEADS * V),
        "A_log": (HEADS,),
        "dt_bias": (HEADS * K,),
        "o_norm": (V,),
    }


def test_carve_has_a_write_gate_a_head_and_the_content_gate_instead():
    expected = shapes("gdn2") | {
        "w_proj/kernel": (WIDTH, HEADS),
        "content_down": (HEADS, V, 3),
        "content_up": (HEADS, 3, K),
    }
    assert shapes("carve") == expected


def test_other_presets_have_the_parameters_of_their_gates_alone():
    gates = {"a_proj/kernel", "b_proj/kernel", "w_proj/kernel", "f_down/kernel", "f_up/kernel"}
    gates |= {"A_log", "dt_bias"}
    found = {name: sorted(gates & shapes(name).keys()) for name in GATES}
    channel = ["A_log", "dt_bias", "f_down/kernel", "f_up/kernel"]
    scalar = ["A_log", "a_proj/kernel", "dt_bias"]
    assert {name: sorted(gates) for name, gates in found.items()} == {
        "linear_attention": [],
        "retnet": [],
        "mamba2": scalar,
        "gla": channel,
        "deltanet": ["b_proj/kernel"],
        "gdn": sorted([*scalar, "b_proj/kernel"]),
        "kda": sorted([*channel, "b_proj/kernel"]),
        "gdn2": sorted([*channel, "b_proj/kernel", "w_proj/kernel"]),
        "carve": sorted([*channel, "b_proj/kernel", "w_proj/kernel"]),
    }


def test_initial_values():
    mixer = MIXERS["carve"](num_heads=4, key_dim=32, value_dim=64)
    params = jax.jit(mixer.init)(jax.random.key(1), jnp.zeros((1, 1, 128)))["params"]
    for name in ("q", "k", "v", "b", "w", "o"):
        kernel = np.asarray(params[f"{name}_proj"]["kernel"])
        bound = 2**-2.5 * np.sqrt(6 / sum(kernel.shape))
        assert 0.95 * bound < np.abs(kernel).max() <= bound * 1.000001, name
    for name in ("q_conv", "k_conv", "v_conv"):
        assert 0.45 < np.abs(params[name]).max() <= 0.5
    np.testing.assert_array_equal(params["g_up"]["bias"], 0)
    np.testing.assert_array_equal(params["o_norm"], 1)
    np.testing.assert_array_equal(params["content_up"], 0)
    np.testing.assert_allclose(np.std(params["content_down"]), 64**-0.5, rtol=0.05)


def test_a_new_carve_is_gdn2_with_its_write_gate_broadcast(monkeypatch):
    carve = MIXERS["carve"](**SIZES)
    params, x = new(carve), inputs()
    arrays, options = recorded(monkeypatch, carve, params, x)
    expected, carve_state = carve_rule(*arrays, **options)
    query, key, value, decay, logits, write, _, _ = arrays
    assert write.shape == (BATCH, LENGTH, HEADS, 1)
    erase = jax.nn.sigmoid(logits)
    broadcast = jnp.broadcast_to(write, value.shape)
    output, state = gated_delta_rule(
        query, key, value, decay, erase, broadcast, implementation="recurrent"
    )
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(state, carve_state.memory)

    shared = {k: v for k, v in params.items() if not k.startswith("content")}
    shared["w_proj"] = {"kernel": jnp.repeat(params["w_proj"]["kernel"], V, axis=1)}
    gdn2, _ = run(MIXERS["gdn2"](**SIZES), shared, x)
    np.testing.assert_allclose(run(carve, params, x)[0], gdn2, rtol=1e-5, atol=1e-5)


def test_gradient_of_a_new_content_gate_reaches_its_upper_half_alone():
    carve = MIXERS["carve"](**SIZES)
    params = new(carve)
    gradient = jax.jit(
        jax.grad(lambda p: jnp.sum(jnp.sin(carve.apply({"params": p}, inputs())[0])))
    )(params)
    np.testing.assert_array_equal(gradient["content_down"], 0)
    assert np.abs(gradient["content_up"]).max() > 0


@pytest.mark.parametrize("name", GATES)
def test_gates_reach_the_rule_unbroadcast_and_in_range(monkeypatch, name):
    spec = GATES[name]
    mixer = MIXERS[name](**SIZES)
    x = inputs().astype(jnp.bfloat16)
    mixer = mixer.clone(compute_dtype="bfloat16")
    arrays, _ = recorded(monkeypatch, mixer, parameters(mixer), x)
    _, key, value, decay, erase, write = arrays[:6]
    last = {"none": 1, "constant": 1, "scalar": 1, "channel": K}
    assert decay.shape == (BATCH, LENGTH, HEADS, last[spec.decay])
    assert erase.shape == (BATCH, LENGTH, HEADS, last[spec.erase])
    assert write.shape == (BATCH, LENGTH, HEADS, V if spec.write == "channel" else 1)
    assert decay.dtype == jnp.float32
    assert key.dtype == value.dtype == erase.dtype == write.dtype == jnp.bfloat16
    assert (decay == 0).all() if spec.decay == "none" else (decay < 0).all()
    if spec.write == "tied":
        np.testing.assert_array_equal(write, erase)
    if spec.write == "timestep":
        assert (write > 0).all()
    if spec.write == "one":
        assert (write == 1).all()
    np.testing.assert_allclose(jnp.linalg.norm(key.astype(jnp.float32), axis=-1), 1, atol=0.02)


def test_negative_eigenvalues_double_the_erase_gate(monkeypatch):
    gates = GateSpec(erase="scalar", write="tied")
    wide = GateSpec(erase="scalar", write="tied", negative_eigenvalues=True)
    params, x = parameters(GatedDeltaMixer(gates=gates, **SIZES)), inputs()
    single, _ = recorded(monkeypatch, GatedDeltaMixer(gates=gates, **SIZES), params, x)
    double, _ = recorded(monkeypatch, GatedDeltaMixer(gates=wide, **SIZES), params, x)
    for gate in (4, 5):
        np.testing.assert_array_equal(double[gate], 2 * single[gate])

    carve = MIXERS["carve"](**SIZES).clone(
        gates=GateSpec(write="scalar", content=True, negative_eigenvalues=True)
    )
    _, options = recorded(monkeypatch, carve, parameters(carve), x)
    assert options["erase_scale"] == 2.0


@pytest.mark.parametrize("name", ["carve", "mamba2"])
def test_values_may_be_grouped(name):
    grouped = {"num_heads": 4, "num_key_heads": 2}
    assert shapes(name, **grouped)["q_proj/kernel"] == (WIDTH, 2 * K)
    assert shapes(name, **grouped)["v_proj/kernel"] == (WIDTH, 4 * V)
    mixer = MIXERS[name](**SIZES | grouped)
    params, x = parameters(mixer), inputs()
    whole, _ = run(mixer, params, x)
    first, cache = run(mixer, params, x[:, :7], mixer.init_cache(BATCH, LENGTH))
    second, _ = run(mixer, params, x[:, 7:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5)


def test_refuses_key_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="num_key_heads=3 does not divide num_heads=4"):
        shapes("gdn2", num_heads=4, num_key_heads=3)
