"""Train steps of flash-linear-attention: its own layers, models and loss at our sizes."""

import gc
from collections.abc import Mapping
from typing import Any

from carve_jax.training.optimizer import OptimizerConfig
from experiments.measuring.timing import Contender, LeftOut, median_seconds
from experiments.measuring.train_steps import cost_of, model_config, recipe, step_figures
from experiments.peers.fla import Fla, Launched

MODELS = ("gdn2", "gdn2_swa", "transformer", "kda", "gdn")
REMAT = ("full", "none")


def fla_model(fields: Mapping[str, Any]) -> Any:
    """Its model with these fields of our section `model`, on PyTorch's default device.

    It has no model of GDN-2: this one is its KDA model with its GDN-2 layers. Softmax attention
    is that of flash-attn. The loss forms its gradient in the forward pass, without all logits.

    Raises:
      LeftOut: a package that these layers need is not here.
    """
    import fla.layers
    import fla.models

    ours = model_config(fields)
    sizes: dict[str, Any] = {
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.d_model,
        "num_hidden_layers": ours.layers,
        "intermediate_size": ours.mlp_dim,
        "norm_eps": ours.norm_eps,
        "tie_word_embeddings": ours.tie_embeddings,
        "use_cache": False,
    }
    heads = {"num_heads": ours.num_heads, "head_dim": ours.key_dim}
    spread = ours.value_dim / ours.key_dim
    fused = {"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True}
    sees: dict[str, Any] = {"num_heads": ours.attention_heads, "rope_theta": ours.rope_theta}
    mixers = ours.pattern * ours.repeats
    windowed = [i for i, mixer in enumerate(mixers) if mixer == "swa"]
    models, layers = fla.models, fla.layers
    try:
        if ours.pattern == ("attention",):
            return models.TransformerForCausalLM(models.TransformerConfig(**sizes, **fused, **sees))
        if ours.pattern == ("gdn",):
            its = models.GatedDeltaNetConfig(**sizes, **heads, **fused, expand_v=spread)
            return models.GatedDeltaNetForCausalLM(its)
        if windowed:
            sizes["attn"] = {**sees, "layers": windowed, "window_size": ours.window}
        # KDA's one field for the loss asks for the same as `fused`.
        its = models.KDAConfig(**sizes, **heads, fuse_cross_entropy=True, expand_v=spread)
        model = models.KDAForCausalLM(its)
        for i, block in enumerate(model.model.layers):
            if mixers[i] == "gdn2":
                block.attn = layers.GatedDeltaNet2(
                    hidden_size=ours.d_model, **heads, expand_v=spread, norm_eps=ours.norm_eps,
                    layer_idx=i,
                )  # fmt: skip
    except ImportError as error:
        raise LeftOut(f"flash-linear-attention: {error}") from error
    return model


def count(torch: Any, model: Any) -> tuple[int, int]:
    """Parameters of a PyTorch model, and those of its matrices, the embedding's not among them."""
    matrices = (m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    return sum(p.numel() for p in model.parameters()), sum(matrices)


class FlaStep:
    """A whole train step: loss, gradients, their clipped norm, AdamW.

    Weights are bfloat16, and AdamW (fused) updates float32 copies of them, which costs less than
    autocast does; ours too has float32 parameters and bfloat16 products.

    Args:
      torch: PyTorch.
      model: maps `input_ids` and `labels` to an object with a `loss`; it is changed.
      tokens: [B, T] ids, on the device where the model is.
      optimizer: the recipe; its schedule is left out.
    """

    def __init__(self, torch: Any, model: Any, tokens: Any, optimizer: OptimizerConfig) -> None:
        self._torch, self.model, self._tokens = torch, model, tokens
        self._clip_norm = optimizer.clip_norm
        trained = list(model.parameters())
        self._masters = [p.detach().clone().float().requires_grad_() for p in trained]
        model.to(torch.bfloat16).train()
        self._weights = list(model.parameters())
        decayed = [p for p in self._masters if p.dim() > 1]
        others = [p for p in self._masters if p.dim() <= 1]
        self._adamw = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=optimizer.peak_learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self.loss: Any = None

    def __call__(self) -> Launched:
        """One step."""
        loss = self.model(input_ids=self._tokens, labels=self._tokens).loss
        loss.backward()
        for master, weight in zip(self._masters, self._weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        self._torch.nn.utils.clip_grad_norm_(self._masters, self._clip_norm)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with self._torch.no_grad():
            self._torch._foreach_copy_(self._weights, self._masters)
        self.loss = loss.detach()
        return Launched(self._torch)

    @property
    def healthy(self) -> bool:
        """Whether the last loss and all weights are finite."""
        found = [self.loss, *self._masters]
        return all(bool(self._torch.isfinite(x).all()) for x in found)


def fla_step(fla: Fla, fields: Mapping[str, Any], remat: str, length: int, rows: int) -> FlaStep:
    """Its train step on random tokens; "full" checkpoints every block, "none" keeps all."""
    model, tokens = _made(fla, fields, length, rows)
    if remat == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return FlaStep(fla.torch, model, tokens, recipe())


def measure_fla(
    fla: Fla,
    fields: Mapping[str, Any],
    remat: str,
    length: int,
    sizes: tuple[int, ...],
    repeats: int,
) -> dict[str, Any]:
    """Figures of its train step with the most rows that fit, as `measure_step` gives ours.

    Steps are launched from Python, without `torch.compile`. Peak bytes are what PyTorch's allocator
    held at most, where ours are what XLA planned.

    Raises:
      LeftOut: not even the fewest rows fit, or a package that is needed is not here.
    """
    torch = fla.torch
    left_out: dict[str, str] = {}
    for rows in sizes:
        found = _tried(fla, fields, remat, length, rows, repeats)
        if found is not None:
            return {**found, "left_out": left_out}
        left_out[f"{rows} rows"] = "PyTorch ran out of the device's memory"
        gc.collect()
        torch.cuda.empty_cache()
    raise LeftOut("; ".join(f"{rows}: {reason}" for rows, reason in left_out.items()))


def _tried(
    fla: Fla, fields: Mapping[str, Any], remat: str, length: int, rows: int, repeats: int
) -> dict[str, Any] | None:
    """The figures with so many rows; None where memory does not suffice, which is then freed."""
    torch = fla.torch
    try:
        step = fla_step(fla, fields, remat, length, rows)
        step()  # tunes kernels, for which they may need more memory
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds({"step": Contender(step, (), 0)}, repeats)["step"]
    except torch.OutOfMemoryError:
        return None
    cost = cost_of(model_config(fields), length, count(torch, step.model))
    return {
        **step_figures(seconds, rows, length, cost, torch.cuda.get_device_name()),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "finite": step.healthy,
    }


def run_short(fla: Fla, fields: Mapping[str, Any], length: int) -> None:
    """Loss and gradients of one repeat of a model's pattern, which compiles all its kernels."""
    torch, pattern = fla.torch, model_config(fields).pattern
    model, tokens = _made(fla, {**fields, "layers": len(pattern)}, length, 1)
    model.to(torch.bfloat16).train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.cuda.synchronize()


def _made(fla: Fla, fields: Mapping[str, Any], length: int, rows: int) -> tuple[Any, Any]:
    """The model, and random tokens, on the GPU."""
    with fla.torch.device("cuda"):
        tokens = fla.torch.randint(0, model_config(fields).vocab_size, (rows, length))
        return fla_model(fields), tokens
