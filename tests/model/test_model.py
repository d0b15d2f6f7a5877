import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.model import LanguageModel, LMConfig, count_parameters
from tests.mixers.parameters import random_normal, random_parameters, random_tokens

BATCH, LENGTH = 2, 24
CONFIG = LMConfig(
    vocab_size=40,
    d_model=32,
    layers=4,
    pattern=("carve", "swa"),
    mlp_dim=48,
    num_heads=2,
    key_dim=8,
    value_dim=16,
    gates={"gate_chunk": 8, "content_rank": 4},
    window=5,
    implementation="recurrent",  # It compiles fastest; tests/ops compares them all.
)


def build(**changes):
    model = LanguageModel(dataclasses.replace(CONFIG, **changes))
    return model, parameters(model)


def parameters(model):
    return random_parameters(model, jnp.zeros((1, 1), jnp.int32))


def tokens():
    return random_tokens(BATCH, LENGTH, below=CONFIG.vocab_size)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens, cache=None, segment_ids=None):
    return model.apply({"params": params}, tokens, cache, segment_ids)


def loss_and_gradients(model, params):
    def loss(params):
        logits, _ = model.apply({"params": params}, tokens())
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow  # always: of every mixer, and decoding
@pytest.mark.parametrize("lengths", [[1] * LENGTH, [12, 1, 11]], ids=["tokens", "uneven"])
def test_any_split_gives_the_same(lengths):
    model, params = build()
    whole, nothing = run(model, params, tokens())
    assert nothing is None
    assert whole.shape == (BATCH, LENGTH, CONFIG.vocab_size)
    assert whole.dtype == jnp.float32
    cache, parts = model.init_cache(BATCH, LENGTH), []
    for part in jnp.split(tokens(), np.cumsum(lengths)[:-1], axis=1):
        logits, cache = run(model, params, part, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-4)


def test_packed_documents_equal_documents_apart_and_later_tokens_change_no_bit():
    model, params = build()
    segment_ids = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < 8, 0, 1), (BATCH, LENGTH))
    packed, _ = run(model, params, tokens(), None, segment_ids)
    whole, _ = run(model, params, tokens())
    second, _ = run(model, params, jnp.roll(tokens(), -8, axis=1))
    np.testing.assert_allclose(packed[:, :8], whole[:, :8], atol=1e-4)
    np.testing.assert_allclose(packed[:, 8:], second[:, : LENGTH - 8], atol=1e-4)
    assert not np.allclose(packed[:, 8:], whole[:, 8:], atol=1e-2)

    changed, _ = run(model, params, tokens().at[:, 11:].set(3))
    np.testing.assert_array_equal(changed[:, :11], whole[:, :11])
    assert not np.allclose(changed[:, 12:], whole[:, 12:])


def layout(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def test_parameters_are_laid_out_as_documented():
    _, params = build()
    assert set(params) == {"embed", "blocks", "final_norm", "head"}
    assert set(params["blocks"]) == {"layer_0_carve", "layer_1_swa"}
    for block in params["blocks"].values():
        assert set(block) == {"mixer", "mlp", "mixer_norm", "mlp_norm"}
    shapes = layout(params)
    assert shapes["embed/embedding"] == (40, 32)
    assert shapes["head/kernel"] == (32, 40)
    assert shapes["final_norm/scale"] == (32,)
    assert shapes["blocks/layer_0_carve/mixer/A_log"] == (2, 2)
    assert shapes["blocks/layer_1_swa/mlp/down_proj/kernel"] == (2, 48, 32)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_initial_values():
    config = dataclasses.replace(CONFIG, pattern=("swa",), vocab_size=2000, attention_head_dim=64)
    model = LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    np.testing.assert_allclose(np.std(params["embed"]["embedding"]), 0.02, rtol=0.02)
    residual = (2 * config.layers) ** -0.5
    block = params["blocks"]["layer_0_swa"]
    bounds = {
        "up": (block["mlp"]["up_proj"]["kernel"], 32**-0.5),
        "down": (block["mlp"]["down_proj"]["kernel"], 48**-0.5 * residual),
        "query": (block["mixer"]["q_proj"]["kernel"], 32**-0.5),
        "output": (block["mixer"]["o_proj"]["kernel"], 128**-0.5 * residual),
        "head": (params["head"]["kernel"], 32**-0.5),
    }
    for name, (kernel, bound) in bounds.items():
        assert 0.98 * bound < np.abs(kernel).max() <= bound * 1.000001, name
    first, second, *_ = block["mlp"]["up_proj"]["kernel"]
    assert not np.allclose(first, second)


def assert_close_in_scale(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=3e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def as_they_are():
    """Parameters, the loss and its gradients."""
    model, params = build()
    return params, *loss_and_gradients(model, params)


def test_gradients_reach_every_parameter(as_they_are):
    for path, gradient in jax.tree.leaves_with_path(as_they_are[-1]):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"remat": "full"}, {"scan_layers": False, "remat": "dots"}], ids=str
)
def test_gradients_are_those_whatever_is_unrolled_or_computed_again(as_they_are, changes):
    params, loss, gradients = as_they_are
    model = LanguageModel(dataclasses.replace(CONFIG, **changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())["params"]
    assert layout(shapes) == layout(params)
    other_loss, other_gradients = loss_and_gradients(model, params)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    jax.tree.map(assert_close_in_scale, other_gradients, gradients)


PATTERNS = pytest.mark.parametrize(
    "pattern", [("gdn2",), pytest.param(CONFIG.pattern, marks=pytest.mark.slow)], ids="-".join
)


@PATTERNS
def test_program_does_not_grow_with_depth(pattern):
    def size(repeats, **changes):
        changes |= {"pattern": pattern, "layers": repeats * len(pattern)}
        model = LanguageModel(dataclasses.replace(CONFIG, **changes))
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())["params"]

        def loss(params, tokens):
            return model.apply({"params": params}, tokens)[0].sum()

        return len(jax.jit(jax.grad(loss)).lower(shapes, tokens()).as_text().splitlines())

    assert size(1) == size(8) < size(2, scan_layers=False)


@PATTERNS
def test_rematerialisation_stores_less(pattern):
    def stored(remat):
        model = LanguageModel(dataclasses.replace(CONFIG, pattern=pattern, remat=remat))
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())["params"]

        def residuals(params, tokens):
            return jax.vjp(lambda p: model.apply({"params": p}, tokens)[0], params)[1]

        shapes = jax.eval_shape(residuals, shapes, tokens())
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    assert stored("full") < stored("dots") < stored("none")


@pytest.mark.slow  # always: of every mixer
def test_bfloat16_changes_rounding_alone():
    exact, params = build()
    model, own = build(compute_dtype="bfloat16")
    assert {p.dtype for p in jax.tree.leaves(own)} == {jnp.dtype("float32")}
    logits, cache = run(model, params, tokens(), model.init_cache(BATCH, LENGTH))
    assert logits.dtype == jnp.float32
    assert cache["layer_0_carve"].state.memory.dtype == jnp.float32
    assert cache["layer_1_swa"].key.dtype == jnp.bfloat16
    reference, _ = run(exact, params, tokens())
    error = jnp.linalg.norm(logits - reference) / jnp.linalg.norm(reference)
    assert 1e-5 < error < 0.1
    _, gradients = jax.eval_shape(functools.partial(loss_and_gradients, model), params)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_tied_embeddings_are_the_head():
    model, params = build(tie_embeddings=True)
    assert "head" not in params
    assert count_parameters(params)["head"] == 0
    hidden = random_normal(BATCH, 3, CONFIG.d_model)
    logits = model.apply({"params": params}, hidden, method="logits")
    expected = hidden @ params["embed"]["embedding"].T
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_hidden_and_head_make_the_logits():
    model, params = build()
    hidden, _ = jax.jit(functools.partial(model.apply, method="hidden"))(
        {"params": params}, tokens()
    )
    some = model.apply({"params": params}, hidden[:, 3:5], method="logits")
    whole, _ = run(model, params, tokens())
    np.testing.assert_allclose(some, whole[:, 3:5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"pattern": ("gdn2",)},
            {"mixer": 530_180_640, "mlp": 772_374_528, "total": 1_450_096_416},
        ),
        (
            {"pattern": ("carve",)},
            {"mixer": 447_089_184, "mlp": 772_374_528, "total": 1_367_004_960},
        ),
        (
            {"pattern": ("gdn2", "swa"), "mlp_dim": 6784, "attention_heads": 18},
            {"mixer": 456_193_296, "mlp": 844_038_144, "total": 1_447_772_688},
        ),
    ],
    ids=["gdn2_1.3B", "carve_1.3B", "swa_gdn2_1.3B"],
)
def test_counts_at_the_official_sizes(changes, expected):
    sizes = {"d_model": 2304, "layers": 18, "mlp_dim": 6208, "num_heads": 16}
    sizes |= {"vocab_size": 32000, "key_dim": 128, "value_dim": 128}
    model = LanguageModel(LMConfig(**sizes | changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    counts = count_parameters(shapes["params"])
    assert {part: counts[part] for part in expected} == expected
    assert counts["embedding"] == counts["head"] == 32000 * 2304
    assert counts["norm"] == 37 * 2304


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (jnp.zeros((3,), jnp.int32), ValueError, "expected \\[B, T\\]"),
        (jnp.zeros((2, 0), jnp.int32), ValueError, "T >= 1"),
        (jnp.zeros((2, 3)), TypeError, "expected integers"),
    ],
)
def test_refuses_bad_tokens(bad, error, words):
    model = LanguageModel(CONFIG)
    with pytest.raises(error, match=words):
        jax.eval_shape(model.init, jax.random.key(0), bad)


def test_refuses_segments_and_caches_that_do_not_fit():
    model, params = build()
    with pytest.raises(ValueError, match="segment_ids have shape"):
        run(model, params, tokens(), None, jnp.zeros((BATCH, 3), jnp.int32))
    with pytest.raises(ValueError, match="batch=0"):
        model.init_cache(0, 4)
    with pytest.raises(ValueError, match="24 tokens after 0 do not fit a cache of 4"):
        run(model, params, tokens(), model.init_cache(BATCH, 4))
    misaligned = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < 7, 0, 1), (BATCH, LENGTH))
    with pytest.raises(ValueError, match="multiple of gate_chunk=8"):
        model.apply({"params": params}, tokens(), None, misaligned)
