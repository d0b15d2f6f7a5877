"""A trace is what the model does: its states are the caches, its gates those of the rule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from carve_jax.errors import UserError
from carve_jax.evaluation.trace import singular_values, trace
from carve_jax.mixers.changes import GateChanges
from carve_jax.model import LanguageModel, LMConfig
from tests.mixers.parameters import random_parameters, random_tokens

LENGTH = 12
CONFIG = LMConfig(
    vocab_size=40,
    d_model=32,
    layers=4,
    pattern=("carve", "swa"),
    mlp_dim=48,
    num_heads=2,
    num_key_heads=1,
    key_dim=8,
    value_dim=16,
    gates={"gate_chunk": 4, "content_rank": 4, "negative_eigenvalues": True},
    implementation="recurrent",
)
ROW = random_tokens(LENGTH, below=CONFIG.vocab_size)


@functools.cache
def traced(**changes):
    model = LanguageModel(dataclasses.replace(CONFIG, **changes))
    params = random_parameters(model, jnp.zeros((1, 1), jnp.int32))
    return model, params, trace(model, params, ROW)


def test_layers_and_axes():
    read = traced()[2]
    assert read.layers == ("0 carve", "2 carve")
    np.testing.assert_array_equal(read.tokens, ROW)
    shapes = {name: getattr(read, name).shape for name in read._fields[2:]}
    keys = dict.fromkeys(("query", "key", "log_decay", "erase", "blind_erase"), (2, LENGTH, 2, 8))
    values = dict.fromkeys(("value", "write", "content", "output"), (2, LENGTH, 2, 16))
    states = {"state": (2, LENGTH, 2, 8, 16), "state_norm": (2, LENGTH, 2)}
    assert shapes == keys | values | states
    assert all(getattr(read, name).dtype == np.float32 for name in shapes)


def test_states_and_contents_are_the_caches():
    model, params, read = traced()
    run = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache)[1])
    for count in (5, LENGTH):
        cache = run(ROW[None, :count], model.init_cache(1, LENGTH))["layer_0_carve"].state
        np.testing.assert_allclose(read.state[:, count - 1], cache.memory[:, 0], atol=2e-5)
        if count < LENGTH:
            np.testing.assert_allclose(read.content[:, count], cache.content[:, 0], atol=2e-5)
    norms = np.sqrt(np.square(read.state).sum(axis=(-2, -1)))
    np.testing.assert_allclose(read.state_norm, norms, rtol=1e-5)
    largest = np.linalg.norm(read.state[1, 3, 1], ord=2)
    np.testing.assert_allclose(singular_values(read)[1, 3, 1, 0], largest, rtol=1e-5)


def test_the_traced_quantities_obey_the_rule():
    """S and o follow from the traced gates, and m from the traced outputs, in plain NumPy."""
    read = traced()[2]
    before = np.zeros_like(read.state[:, 0])
    for t in range(LENGTH):
        decayed = np.exp(read.log_decay[:, t])[..., None] * before
        found = np.einsum("lnkv,lnk->lnv", decayed, read.erase[:, t] * read.key[:, t])
        edit = read.write[:, t] * read.value[:, t] - found
        before = decayed + read.key[:, t][..., None] * edit[..., None, :]
        np.testing.assert_allclose(read.state[:, t], before, atol=2e-5)
        output = np.einsum("lnkv,lnk->lnv", before, read.query[:, t] * 8**-0.5)
        np.testing.assert_allclose(read.output[:, t], output, atol=2e-5)
    chunks = read.output.reshape(2, 3, 4, 2, 16).mean(axis=2)
    assert not read.content[:, :4].any()
    np.testing.assert_allclose(read.content[:, 4::4], chunks[:, :2], atol=1e-5)
    np.testing.assert_array_equal(read.content[:, 4:7], read.content[:, 5:8])
    assert (read.log_decay <= 0).all()
    assert (read.erase > 0).all()
    assert (read.erase < 2).all()
    assert read.erase.max() > 1  # negative_eigenvalues
    assert (read.write[..., :1] == read.write).all()  # one per head in CARVE


def test_the_erase_gate_shifts_with_the_content():
    """Logit b moves by m P_down P_up, and with P_up = 0 not at all."""
    model, params, read = traced()
    blocks = params["blocks"]
    layer = blocks["layer_0_carve"]
    mixer = layer["mixer"]
    blind = {**mixer, "content_up": jnp.zeros_like(mixer["content_up"])}
    blind_blocks = {**blocks, "layer_0_carve": {**layer, "mixer": blind}}
    without = trace(model, {**params, "blocks": blind_blocks}, ROW, states=False)
    assert without.state is None

    def logits(erase):
        return np.log(erase / (2 - erase))

    # The first layer alone: what the second reads has already changed.
    moved = logits(read.erase[0]) - logits(without.erase[0])
    down, up = (np.asarray(mixer[f"content_{name}"][0]) for name in ("down", "up"))
    shift = np.einsum("tnv,nvr,nrk->tnk", read.content[0], down, up)
    np.testing.assert_allclose(moved, shift, atol=2e-5)
    assert np.abs(shift[4:]).max() > 0.01
    np.testing.assert_array_equal(without.erase[0, :, 0], without.erase[0, :, 1])  # a key head's


def test_mixers_whose_gates_are_one_a_head():
    _, _, read = traced(pattern=("gdn", "mamba3"), num_key_heads=None, gates=GateChanges())
    assert read.layers == ("0 gdn", "2 gdn")
    assert (read.erase == read.erase[..., :1]).all()
    np.testing.assert_array_equal(read.write[..., 0], read.erase[..., 0])  # tied
    assert not read.content.any()


def test_untraced_the_model_is_the_program_it_would_be_without(monkeypatch):
    model, params, _ = traced()
    assert set(jax.eval_shape(model.init, jax.random.key(0), ROW[None])) == {"params"}

    def program():
        return str(jax.make_jaxpr(lambda p: model.apply({"params": p}, ROW[None]))(params))

    as_it_is = program()
    monkeypatch.setattr(nn.Module, "sow", lambda *args: False)
    assert program() == as_it_is


def test_what_cannot_be_traced_says_so():
    model, params, read = traced()
    with pytest.raises(UserError, match="kept no states"):
        singular_values(read._replace(state=None))
    with pytest.raises(ValueError, match="token 40"):
        trace(model, params, [40])
    plain = LanguageModel(dataclasses.replace(CONFIG, pattern=("swa",), num_key_heads=None))
    with pytest.raises(UserError, match="no layer of the gated delta family"):
        trace(plain, {}, ROW)
