"""Other projects' train steps: which model of theirs is built, and how a step goes.

What needs the packages runs where they are installed; the rest has stand-ins.
"""

import json
import sys
import types
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments import peers
from experiments.measuring.timing import LeftOut
from experiments.measuring.train_steps import cost_of, fitting, measure_step, model_config, recipe
from experiments.measuring.train_steps import model_fields as fields_of
from experiments.peers import fla_steps, jla_steps
from tests.experiments.peers.fake_torch import FakeTorch

TINY = {
    "vocab_size": 32, "d_model": 32, "layers": 2, "mlp_dim": 32, "num_heads": 2, "key_dim": 16,
    "value_dim": 16,
}  # fmt: skip
JLA = peers.Jla(lambda *_: None, "mosaic_gpu", {})


class Made:
    """What was given to a class of a peer."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given, self.named = given, named


def jla_fields(name: str) -> dict[str, Any]:
    return {**fields_of(name), **jla_steps.CHANGES.get(name, {})}


@pytest.fixture
def jla_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax-linear-attention's classes of configuration, which remember what they were given."""
    names = ("AttentionConfig", "LinearAttentionConfig", "ModelConfig", "SSMConfig")
    module = types.SimpleNamespace(**{name: type(name, (Made,), {}) for name in names})
    for name in ("jla", "jla.models", "jla.models.config"):
        monkeypatch.setitem(sys.modules, name, module)


def test_its_gdn2_has_our_sizes_and_a_narrower_mlp(jla_models: None) -> None:
    made = jla_steps.jla_config(JLA, jla_fields("gdn2"), "full").named
    sizes = (made["vocab_size"], made["d_model"], made["n_layers"], made["d_ff"])
    assert sizes == (32000, 2304, 18, 5632)
    assert made["layer_types"] == ("gdn2",) * 18
    assert made["linear_attention"].given == (16, 16, 128, 128)
    assert made["linear_attention"].named == {"implementation": "mosaic_gpu"}
    assert (made["remat"], made["compute_dtype"]) == ("full", "bfloat16")
    assert made["tie_embeddings"] is False


def test_its_hybrid_and_transformer_have_our_heads_and_window(jla_models: None) -> None:
    hybrid = jla_steps.jla_config(JLA, jla_fields("gdn2_swa"), "none").named
    assert hybrid["layer_types"] == ("gdn2", "attention") * 9
    assert hybrid["attention"].given == (18, 18, 128)
    assert hybrid["attention"].named == {"qk_norm": False, "sliding_window": 2048}
    assert (hybrid["remat"], hybrid["lean_vjp"]) == ("none", True)
    full = jla_steps.jla_config(JLA, jla_fields("transformer"), "full").named
    assert full["layer_types"] == ("attention",) * 18
    assert full["attention"].named["sliding_window"] is None


def test_its_mamba2_has_a_state_of_our_channels(jla_models: None) -> None:
    made = jla_steps.jla_config(JLA, jla_fields("mamba2"), "full").named
    assert made["ssm"].named == {"d_state": 64, "head_dim": 64, "implementation": "mosaic_gpu"}
    assert made["layer_types"] == ("mamba2",) * 18


class Weight(NamedTuple):
    weight: Any


class LowRank(NamedTuple):
    down: Weight
    up: Weight


class Mlp(NamedTuple):
    gate_up: Any
    down: Weight


class Block(NamedTuple):
    q_proj: Weight
    f_proj: LowRank
    q_conv: Weight
    A_log: Any
    mlp: Mlp


class Model(NamedTuple):
    embed: Weight
    blocks: tuple[Block, ...]
    final_norm: Weight
    head: Any


def test_its_matrices_are_told_from_the_rest() -> None:
    def of(size: int) -> Weight:
        return Weight(np.zeros(size))

    mlp = Mlp(np.zeros(100), of(1000))
    block = Block(of(1), LowRank(of(10), of(20)), of(7), np.zeros(7), mlp)
    model = Model(of(7), (block, block), of(7), np.zeros(5000))
    parameters, matrices = jla_steps.count(model)
    assert matrices == 2 * (1 + 10 + 20 + 100 + 1000) + 5000
    assert parameters == matrices + 2 * (7 + 7) + 7 + 7


@pytest.mark.parametrize("name", jla_steps.MODELS)
def test_its_models_have_as_many_parameters_as_ours(name: str) -> None:
    equinox = pytest.importorskip("equinox")
    models = pytest.importorskip("jla.models")
    jla = peers.load_jla("chunked")
    assert isinstance(jla, peers.Jla), jla
    config = jla_steps.jla_config(jla, jla_fields(name), "full")
    counts = jla_steps.count(
        equinox.filter_eval_shape(models.build_model, config, key=jax.random.key(0))
    )
    ours = cost_of(model_config(fields_of(name)), 4096)
    theirs = cost_of(model_config(jla_fields(name)), 4096, counts)
    assert theirs.parameters == pytest.approx(ours.parameters, rel=0.003)
    assert theirs.flops == pytest.approx(ours.flops, rel=0.003)
    if name not in jla_steps.CHANGES:
        assert theirs == ours


@pytest.mark.slow
@pytest.mark.parametrize("name", jla_steps.MODELS)
@pytest.mark.parametrize("remat", jla_steps.REMAT)
def test_its_step_trains(name: str, remat: str) -> None:
    pytest.importorskip("jla")
    jla = peers.load_jla("chunked")
    assert isinstance(jla, peers.Jla), jla
    tiny = {**fields_of(name), **TINY}
    if "attention_heads" in tiny:
        tiny["attention_heads"] = 2
    if name == "mamba2":
        tiny["num_heads"] = 4
    given = json.loads(json.dumps(tiny))
    with jax.numpy_rank_promotion("allow"):  # it does promote
        program = fitting(lambda rows: jla_steps.jla_program(jla, given, remat, 64, rows), (2,))
    state, batch, losses = program.init(), program.make_batch(), []
    for _ in range(8):
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert bool(state.healthy)
    assert losses[0] == pytest.approx(np.log(32), rel=0.2)
    assert losses[-1] < losses[0]
    assert measure_step(program, 64, 1)["finite"]


class Layers(types.ModuleType):
    """flash-linear-attention's layers and models, which remember what they were given."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not name.endswith("ForCausalLM"):
            return type(name, (Made,), {})

        def model(config: Made) -> types.SimpleNamespace:
            blocks = [types.SimpleNamespace(attn=None) for _ in range(18)]
            inner = types.SimpleNamespace(layers=blocks)
            return types.SimpleNamespace(name=name, config=config, model=inner)

        return model


@pytest.fixture
def fla_models(monkeypatch: pytest.MonkeyPatch) -> Layers:
    module, package = Layers("fla.models"), types.ModuleType("fla")
    package.layers = package.models = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.layers", module)
    monkeypatch.setitem(sys.modules, "fla.models", module)
    return module


def test_gdn2_of_the_torch_peer_is_its_kda_model_with_its_gdn2_layers(fla_models: Layers) -> None:
    model = fla_steps.fla_model(fields_of("gdn2"))
    assert model.name == "KDAForCausalLM"
    sizes = model.config.named
    assert (sizes["hidden_size"], sizes["intermediate_size"]) == (2304, 6208)
    assert (sizes["num_heads"], sizes["head_dim"], sizes["expand_v"]) == (16, 128, 1.0)
    layers = [block.attn for block in model.model.layers]
    assert all(type(layer).__name__ == "GatedDeltaNet2" for layer in layers)
    assert [layer.named["layer_idx"] for layer in layers] == list(range(18))
    assert layers[0].named["hidden_size"] == 2304


def test_its_hybrid_keeps_every_other_layer_of_attention(fla_models: Layers) -> None:
    model = fla_steps.fla_model(fields_of("gdn2_swa"))
    attention = model.config.named["attn"]
    assert attention["layers"] == list(range(1, 18, 2))
    assert (attention["num_heads"], attention["window_size"]) == (18, 2048)
    assert [block.attn is None for block in model.model.layers] == [False, True] * 9


def test_its_other_models_are_its_own_with_the_loss_that_forms_its_gradient(
    fla_models: Layers,
) -> None:
    for name, kind in (("transformer", "Transformer"), ("gdn", "GatedDeltaNet")):
        model = fla_steps.fla_model(fields_of(name))
        assert model.name == f"{kind}ForCausalLM"
        assert model.config.named["fuse_linear_cross_entropy"] is True
    kda = fla_steps.fla_model(fields_of("kda"))
    assert kda.name == "KDAForCausalLM"
    fuses = {name: given for name, given in kda.config.named.items() if name.startswith("fuse")}
    assert fuses == {"fuse_cross_entropy": True}
    assert all(block.attn is None for block in kda.model.layers)


def test_a_package_that_its_attention_needs_is_named(
    fla_models: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: Made) -> None:
        raise ImportError("Please install Flash Attention")

    monkeypatch.setattr(fla_models, "TransformerForCausalLM", refuse, raising=False)
    with pytest.raises(LeftOut, match="flash-linear-attention: Please install Flash Attention"):
        fla_steps.fla_model(fields_of("transformer"))


class Trained:
    """A tensor that is trained, as far as a step touches one."""

    def __init__(self, log: list[str], name: str, dims: int) -> None:
        self.log, self.name, self.dims, self.grad = log, name, dims, None

    def dim(self) -> int:
        return self.dims

    def float(self) -> "Trained":
        return Trained(self.log, f"float32 {self.name}", self.dims)

    def clone(self) -> "Trained":
        return self

    detach = requires_grad_ = clone


class StepTorch(FakeTorch):
    """PyTorch with an optimizer and a model of a matrix and a bias; a step is in `calls`."""

    bfloat16 = "bfloat16"

    def __init__(self) -> None:
        super().__init__()
        self.optim = self.nn = self.utils = self
        self.weights = [Trained(self.calls, "matrix", 2), Trained(self.calls, "bias", 1)]
        self.groups: list[Any] = []
        self.options: dict[str, Any] = {}

    # The model.
    def parameters(self) -> list[Trained]:
        return self.weights

    def to(self, dtype: str) -> "StepTorch":
        self.calls.append(f"to {dtype}")
        return self

    def train(self) -> None:
        self.calls.append("train")

    def __call__(self, input_ids: Any, labels: Any) -> types.SimpleNamespace:
        assert input_ids is labels
        loss = types.SimpleNamespace(backward=self.backward, detach=lambda: "the loss")
        return types.SimpleNamespace(loss=loss)

    def backward(self) -> None:
        self.calls.append("backward")
        for weight in self.weights:
            weight.grad = Trained(self.calls, f"of {weight.name}", weight.dims)

    # The optimizer.
    def AdamW(self, groups: list[Any], **options: Any) -> types.SimpleNamespace:
        self.groups, self.options = groups, options
        return types.SimpleNamespace(
            step=lambda: self.calls.append("step"), zero_grad=lambda **_: self.calls.append("zero")
        )

    def clip_grad_norm_(self, masters: list[Trained], norm: float) -> None:
        self.calls.append(f"clip {[m.grad.name for m in masters]} to {norm}")  # type: ignore[union-attr]

    def _foreach_copy_(self, weights: list[Trained], masters: list[Trained]) -> None:
        self.calls.append(f"copy {[m.name for m in masters]} to {[w.name for w in weights]}")


def test_a_step_of_the_torch_peer_updates_float32_copies() -> None:
    torch = StepTorch()
    step = fla_steps.FlaStep(torch, torch, "tokens", recipe())
    assert torch.calls == ["to bfloat16", "train"]
    assert [[p.name for p in group["params"]] for group in torch.groups] == [
        ["float32 matrix"], ["float32 bias"],
    ]  # fmt: skip
    assert torch.groups[1]["weight_decay"] == 0.0
    assert torch.options == {
        "lr": 4e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True,
    }  # fmt: skip
    torch.calls.clear()
    jax.block_until_ready(step())
    assert torch.calls == [
        "backward",
        "clip ['float32 of matrix', 'float32 of bias'] to 1.0",
        "step",
        "zero",
        "copy ['float32 matrix', 'float32 bias'] to ['matrix', 'bias']",
        "synchronize",
    ]
    assert step.loss == "the loss"
    assert all(weight.grad is None for weight in torch.weights)


class Full(Exception):
    """No memory is left."""


class MeasuredTorch(FakeTorch):
    """PyTorch on a card that has room for two rows."""

    OutOfMemoryError = Full

    def get_device_name(self) -> str:
        return "NVIDIA H200"


def test_the_torch_peer_takes_the_rows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = MeasuredTorch()

    def made(fla: Any, fields: Any, remat: str, length: int, rows: int) -> Any:
        assert (remat, length) == ("none", 256)

        def run() -> jax.Array:
            if rows > 2:
                raise Full
            return jax.numpy.zeros(())

        run.model, run.healthy = "a model", True  # type: ignore[attr-defined]
        return run

    monkeypatch.setattr(fla_steps, "fla_step", made)
    monkeypatch.setattr(fla_steps, "count", lambda *_: (1000, 900))
    fla = peers.Fla(torch, {}, {})
    figures = fla_steps.measure_fla(fla, fields_of("gdn2"), "none", 256, (4, 2), 1)
    assert (figures["rows"], figures["parameters"], figures["peak_bytes"]) == (2, 1000, 5000)
    assert figures["left_out"] == {"4 rows": "PyTorch ran out of the device's memory"}
    rate = figures["tokens_per_second"]
    assert rate == 2 * 256 / figures["median_seconds"]
    assert figures["mfu"] == rate * figures["model_flops_per_token"] / 989e12
    assert torch.calls.index("empty") < torch.calls.index("reset")  # between the two tries
    with pytest.raises(LeftOut, match=r"8 rows: PyTorch ran out .*; 4 rows: PyTorch ran out"):
        fla_steps.measure_fla(fla, fields_of("gdn2"), "none", 256, (8, 4), 1)


@pytest.mark.parametrize("name", fla_steps.MODELS)
def test_models_of_the_torch_peer_cost_what_ours_cost(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("fla")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that there is no GPU, and of its loss
            model = fla_steps.fla_model(fields_of(name))
    except LeftOut as reason:
        pytest.skip(str(reason))
    config = model_config(fields_of(name))
    counts = fla_steps.count(torch, model)
    assert cost_of(config, 4096, counts) == cost_of(config, 4096)


def test_a_step_of_real_torch_learns() -> None:
    torch = pytest.importorskip("torch")

    class Small(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 32)

        def forward(self, input_ids: Any, labels: Any) -> Any:
            logits = self.head(self.embed(input_ids)).reshape(-1, 32).float()
            loss = torch.nn.functional.cross_entropy(logits, labels.reshape(-1))
            return types.SimpleNamespace(loss=loss)

    torch.manual_seed(0)
    step = fla_steps.FlaStep(torch, Small(), torch.randint(0, 32, (4, 64)), recipe())
    losses = []
    for _ in range(30):
        step()
        losses.append(float(step.loss))
    assert losses[-1] < losses[0] - 0.1
    assert step.healthy
    assert fla_steps.count(torch, step.model) == (32 * 16 + 16 * 32 + 32, 16 * 32)
