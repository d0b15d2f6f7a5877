"""The GDN-2 layer to the letter, and CARVE beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.mixers import FAMILY, MIXERS, GatedDeltaMixer, GateSpec
from carve_jax.mixers import gated_delta as module
from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from tests.mixers.parameters import random_normal, random_parameters
from tests.mixers.published import HEADS, PUBLISHED, WIDTH, K, Layer, V

BATCH, LENGTH = 2, 20
OTHERS = {"num_heads": HEADS, "key_dim": K, "value_dim": V, "implementation": "recurrent"}
SIZES = OTHERS | {"gate_chunk": 4, "content_rank": 3}


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


# A layer asks for its rule by name; that the rules are one is tested in tests/ops.
CHUNKED = ("gdn2", "mamba2")


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, "recurrent") for name in PUBLISHED),
        *(
            pytest.param(name, "chunked", marks=() if name in CHUNKED else pytest.mark.slow)
            for name in PUBLISHED
        ),
    ],
)
def test_the_layer_is_the_published_one_written_out(name, implementation):
    groups = {"num_key_heads": 1} if name == "mamba2" else {}
    mixer = MIXERS[name](**OTHERS | groups | {"implementation": implementation})
    params = parameters(mixer)
    y, _ = run(mixer, params, inputs())
    expected = PUBLISHED[name](Layer(params, inputs()))
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


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


def test_presets_have_the_parameters_of_their_gates_and_layer_alone():
    common = {"q_proj/kernel", "k_proj/kernel", "v_proj/kernel", "o_proj/kernel", "o_norm"}
    conv = {"q_conv", "k_conv", "v_conv"}
    scalar = {"A_log", "a_proj/kernel", "dt_bias"}
    channel = {"A_log", "dt_bias", "f_down/kernel", "f_up/kernel"}
    erase, write, full = {"b_proj/kernel"}, {"w_proj/kernel"}, {"g_proj/kernel"}
    low_rank = {"g_down/kernel", "g_up/kernel", "g_up/bias"}
    gdn2 = conv | channel | erase | write | low_rank
    expected = {
        "linear_attention": set(),
        "retnet": full,
        "gla": {"f_down/kernel", "f_up/kernel", "f_up/bias"} | full,
        "mamba2": conv | {f"{name}_bias" for name in conv} | scalar | {"D"} | full,
        "deltanet": conv | erase,
        "gdn": conv | scalar | erase | full,
        "comba": conv | scalar | erase | full | {"b_share", "q_correction"},
        "kda": conv | channel | erase | low_rank,
        "gdn2": gdn2,
        "carve": gdn2 | {"content_down", "content_up"},
    }
    assert {name: set(shapes(name)) for name in FAMILY} == {
        name: common | own for name, own in expected.items()
    }
    assert shapes("gla")["f_down/kernel"] == (WIDTH, 16)
    assert shapes("mamba2")["o_norm"] == (HEADS * V,)


ABLATIONS = {
    "content gate on a channel write": {"content": True},
    "scalar write": {"write": "scalar"},
    "scalar erase": {"erase": "scalar"},
    "scalar decay": {"decay": "scalar"},
    "no decay": {"decay": "none"},
    "bounded decay": {"decay_form": "bounded"},
    "bounded scalar decay": {"decay": "scalar", "decay_form": "bounded"},
    "decay through log σ": {"decay_form": "logsigmoid", "decay_rank": 5},
    "negative eigenvalues": {"negative_eigenvalues": True},
    "content of rank 2 and length 5": {"content": True, "content_rank": 2, "gate_chunk": 5},
    "no gradient through content": {"content": True, "stop_gradient_content": True},
    "normalised content": {"content": True, "content_norm": True},
    "content of two chunks back": {"content": True, "content_source": "two_chunks_back"},
}


# Those of a kind of their own; the others are a published layer's, or two of these together.
OWN = (
    *("content gate on a channel write", "bounded decay", "decay through log σ"),
    *("negative eigenvalues", "no gradient through content", "normalised content"),
)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=() if name in OWN else pytest.mark.slow)
        for name, changes in ABLATIONS.items()
    ],
)
def test_every_ablation_is_a_value_that_changes_the_layer(changes):
    base = {"gate_chunk": 4} | ({"content": True} if len(changes) > 1 else {})
    mixer, plain = MIXERS["gdn2"](**OTHERS, **base | changes), MIXERS["gdn2"](**OTHERS, **base)
    assert mixer == MIXERS["gdn2"](gates=GateSpec(**base | changes), **OTHERS)
    params = parameters(mixer)
    y, other = run(mixer, params, inputs())[0], run(plain, parameters(plain), inputs())[0]
    assert np.isfinite(y).all()
    if "stop_gradient_content" not in changes:
        assert np.abs(y - other).max() > 1e-4
        return
    np.testing.assert_array_equal(y, other)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(mixer, params):
        return jax.grad(lambda p: jnp.sin(mixer.apply({"params": p}, inputs())[0]).sum())(params)

    cut, whole = (gradient(m, params)["v_proj"]["kernel"] for m in (mixer, plain))
    assert np.abs(cut - whole).max() > 1e-5


def test_a_bounded_decay_is_the_published_gate_and_is_promised_to_the_rule(monkeypatch):
    mixer = MIXERS["kda"](**OTHERS, decay_form="bounded")
    params = parameters(mixer)
    arrays, options = recorded(monkeypatch, mixer, params, inputs())
    layer = Layer(params, inputs())
    logits = layer.low_rank("f") + layer.p["dt_bias"].reshape(HEADS, K)
    expected = -5 / (1 + np.exp(-np.exp(layer.p["A_log"])[:, None] * logits))
    np.testing.assert_allclose(arrays[3], expected, rtol=1e-5)
    assert options["log_decay_floor"] == -5.0


def test_initial_values_of_mamba2_are_pytorchs():
    mixer = MIXERS["mamba2"](num_heads=4, key_dim=32, value_dim=64, output_scale=0.5)
    params = jax.jit(mixer.init)(jax.random.key(1), jnp.zeros((1, 1, 128)))["params"]
    for name, bound in (("q", 128**-0.5), ("a", 128**-0.5), ("o", 256**-0.5 / 2)):
        kernel = np.asarray(params[f"{name}_proj"]["kernel"])
        assert 0.95 * bound < np.abs(kernel).max() <= bound * 1.000001, name
    assert 0.45 < np.abs(params["v_conv_bias"]).max() <= 0.5
    np.testing.assert_array_equal(params["D"], 1)


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
    assert "bias" not in params["b_proj"]


def test_the_content_gate_may_start_louder_and_the_erase_gate_with_a_bias():
    plain, changed = (
        MIXERS["carve"](**SIZES, **changes)
        for changes in ({}, {"content_scale": 8.0, "erase_bias": -2.0})
    )
    x = inputs()[:1, :1]
    first, second = (jax.jit(m.init)(jax.random.key(1), x)["params"] for m in (plain, changed))
    np.testing.assert_allclose(second["content_down"], 8 * first["content_down"], rtol=1e-6)
    np.testing.assert_array_equal(second["b_proj"].pop("bias"), np.full(HEADS * K, -2.0))
    for name in first.keys() - {"content_down"}:
        jax.tree.map(np.testing.assert_array_equal, first[name], second[name])


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


@pytest.mark.parametrize("name", FAMILY)
def test_gates_reach_the_rule_unbroadcast_and_in_range(monkeypatch, name):
    spec = FAMILY[name].gates
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
    if spec.write == "tied" and not spec.closed_loop:
        np.testing.assert_array_equal(write, erase)
    if spec.write == "timestep":
        assert (write > 0).all()
    if spec.write == "one":
        assert (write == 1).all()
    if FAMILY[name].layer.qk_norm == "l2":
        np.testing.assert_allclose(jnp.linalg.norm(key.astype(jnp.float32), axis=-1), 1, atol=0.02)


def test_negative_eigenvalues_double_the_erase_gate(monkeypatch):
    gates = GateSpec(erase="scalar", write="tied")
    wide = GateSpec(erase="scalar", write="tied", negative_eigenvalues=True)
    params, x = parameters(GatedDeltaMixer(gates=gates, **OTHERS)), inputs()
    single, _ = recorded(monkeypatch, GatedDeltaMixer(gates=gates, **OTHERS), params, x)
    double, _ = recorded(monkeypatch, GatedDeltaMixer(gates=wide, **OTHERS), params, x)
    for gate in (4, 5):
        np.testing.assert_array_equal(double[gate], 2 * single[gate])

    carve = MIXERS["carve"](**SIZES).clone(
        gates=GateSpec(write="scalar", content=True, negative_eigenvalues=True)
    )
    _, options = recorded(monkeypatch, carve, parameters(carve), x)
    assert options["erase_scale"] == 2.0


@pytest.mark.parametrize("name", ["carve", "kda"])
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
