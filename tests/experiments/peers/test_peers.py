"""Other projects' kernels as contenders, without the projects."""

import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule
from experiments import peers
from experiments.measuring.rule_calls import Shape, input_shapes, rule_inputs
from experiments.peers import fla_tuning
from experiments.peers import jla as jla_peer
from tests.experiments.peers.fake_torch import FakeTorch, Tensor, fake_fla

TINY = Shape(1, 64, 1, 16)


@pytest.mark.parametrize("captures", [True, False])
def test_a_peer_is_a_graph_or_says_why_not(captures: bool) -> None:
    torch = FakeTorch(captures)
    peer = peers.FlaAtShape(fake_fla(torch), rule_inputs(TINY))
    entry = peer.contender("gdn2", backward=True)
    assert entry.peak_bytes == 4000 + 6 * 4 * TINY.elements
    assert "kernel 6" in torch.calls
    assert "grad 6" in torch.calls
    torch.calls.clear()
    jax.block_until_ready(entry.compiled())
    expected = ["replay"] if captures else ["kernel 6", "grad 6"]
    assert torch.calls == [*expected, "synchronize"]
    assert ("no CUDA graph: operation not permitted" in peer.notes.get("fla gdn2", "")) != captures


def test_kda_takes_one_gate_a_head_and_no_gradient_forward() -> None:
    torch = FakeTorch()
    shapes = []

    def kernel(*arguments: Tensor) -> tuple[Tensor]:
        assert torch.recording
        shapes.append([a.shape for a in arguments])
        return (arguments[0],)

    fla = peers.Fla(torch, {"kda": kernel}, {})
    x = rule_inputs(TINY)
    peer = peers.FlaAtShape(fla, x)
    peer.contender("kda", backward=False)
    full = (1, 64, 1, 16)
    assert shapes[0] == [full, full, full, full, (1, 64, 1)]
    assert peer.difference("kda", 2 * x["query"]) == pytest.approx(1.0)


def test_a_missing_peer_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "fla", None)
    reason = peers.load_fla()
    assert isinstance(reason, str)
    assert "not installed" in reason
    assert "flash-linear-attention[cuda]==0.6.0" in reason


class Config(NamedTuple):
    kwargs: dict[str, int]
    num_warps: int
    num_stages: int


def test_shares_cover_every_variant_and_all_have_the_safest() -> None:
    configs = [Config({"BK": b}, w, s) for b in (32, 64) for w in (1, 4, 8) for s in (2, 3)]
    shares = [fla_tuning.share_of(configs, part, 5) for part in range(5)]
    assert all(any(c in share for share in shares) for c in configs)
    safest = Config({"BK": 32}, 4, 2)
    assert all(safest in share for share in shares)
    assert sum(len(share) for share in shares) == len(configs) + 4  # the safest is in all five


def test_a_share_is_compiled_and_not_timed() -> None:
    calls = []
    assert fla_tuning.run_once(lambda: calls.append(1), quantiles=(0.5, 0.2, 0.8)) == [1.0] * 3
    assert fla_tuning.run_once(lambda: calls.append(1)) == 1.0
    assert len(calls) == 2


def test_tritons_tuner_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    testing = pytest.importorskip("triton.testing")
    for owner, name in (
        (testing, "do_bench"),
        (tuner, "prune_configs"),
        (tuner, "check_disk_cache"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    configs = [Config({"BK": b}, 4, 2) for b in (32, 64, 128)]
    monkeypatch.setattr(tuner, "prune_configs", lambda self, kwargs: configs)
    fla_tuning._patch_triton(1, 3)
    assert tuner.prune_configs(None, {}) == configs[:2]  # the safest and the share's own
    assert testing.do_bench(lambda: None) == 1.0
    timed = []
    assert tuner.check_disk_cache(None, "key", configs, lambda: timed.append(1)) is False
    assert timed == [1]


def fake_jla(monkeypatch: pytest.MonkeyPatch, version: str = "0.1.0") -> list[tuple]:
    """As much of jax-linear-attention as is used, and the calls it got."""
    calls: list[tuple] = []

    def linear_attention(kind, q, k, v, *, impl, **gates):
        calls.append((kind, impl, {name: gate.shape for name, gate in gates.items()}))
        if kind == "kda":
            raise ValueError("mosaic_gpu KDA: K = 16 is not among (64, 128)\nand more")
        if kind == "gated_deltanet":
            gates = {"g": gates["g"][..., None], "b": gates["beta"][..., None]}
            gates["w"] = gates["b"]
        return gated_delta_rule(q, k, v, *gates.values(), implementation="recurrent")

    ops = types.SimpleNamespace(linear_attention=linear_attention)
    monkeypatch.setitem(sys.modules, "jla", types.SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "jla.ops", ops)
    monkeypatch.setattr(jla_peer.metadata, "version", lambda _: version)
    return calls


def test_jax_linear_attention_gets_its_gates_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_jla(monkeypatch)
    jla = peers.load_jla()
    assert isinstance(jla, peers.Jla)
    x = rule_inputs(TINY)
    output = jla_peer.jla_contender(jla, x, "gdn2", backward=False)
    ours, _ = gated_delta_rule(
        x["query"], x["key"], x["value"], x["log_decay"], x["erase"], x["write"]
    )
    np.testing.assert_allclose(output.compiled(*output.arguments), ours, atol=1e-5)
    both = jla_peer.jla_contender(jla, x, "gdn", backward=True)
    _, gradients = both.compiled(*both.arguments)
    assert [g.shape for g in gradients] == [(1, 64, 1, 16)] * 3 + [(1, 64, 1)] * 2
    assert calls == [
        ("gdn2", "mosaic_gpu", dict.fromkeys("gbw", (1, 64, 1, 16))),
        ("gated_deltanet", "mosaic_gpu", {"g": (1, 64, 1), "beta": (1, 64, 1)}),
    ]
    with pytest.raises(ValueError, match="mosaic_gpu KDA"):
        jla_peer.jla_contender(jla, x, "kda", backward=False)


def test_jax_linear_attention_compiles_from_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_jla(monkeypatch)
    jla = peers.load_jla()
    entry = jla_peer.jla_contender(jla, input_shapes(TINY, "float32"), "gdn", backward=True)
    assert all(isinstance(a, jax.ShapeDtypeStruct) for a in entry.arguments)
    assert entry.peak_bytes > 0


def test_jax_linear_attention_says_why_it_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_jla(monkeypatch, "0.2.0")
    assert "0.2.0 is installed, the comparison is with 0.1.0" in peers.load_jla()
    monkeypatch.setitem(sys.modules, "jla.ops", None)
    reason = peers.load_jla()
    assert "jax-linear-attention cannot be imported" in reason
    assert "pip install 'jax-linear-attention==0.1.0'" in reason
    assert jax.__version__ in reason


def test_the_adapter_and_the_package_agree() -> None:
    """Against the package's own plain implementation, where it is installed."""
    pytest.importorskip("jla")
    jla = peers.load_jla("chunked")
    assert isinstance(jla, peers.Jla), jla
    x = rule_inputs(TINY)
    for rule in jla_peer.RULES:
        entry = jla_peer.jla_contender(jla, x, rule, backward=False)
        beta = x["head_write"]
        decay = x["log_decay"][..., :1] if rule == "gdn" else x["log_decay"]
        gates = (x["erase"], x["write"]) if rule == "gdn2" else (beta, beta)
        ours, _ = gated_delta_rule(x["query"], x["key"], x["value"], decay, *gates)
        assert jnp.allclose(entry.compiled(*entry.arguments), ours, atol=1e-4), rule


def test_a_missing_ejkernel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ejkernel", None)
    reason = peers.ejkernel(Shape(1, 32, 1, 16))
    assert isinstance(reason, str)
    assert "not installed" in reason
