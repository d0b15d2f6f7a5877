"""flash-linear-attention (PyTorch and Triton); its kernels tune themselves at their first call."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.measuring.timing import Contender

VERSION = "0.6.0"
INPUTS = {
    "gdn2": ("query", "key", "value", "log_decay", "erase", "write"),
    "kda": ("query", "key", "value", "log_decay", "beta"),
}


class Fla(NamedTuple):
    """What is used of flash-linear-attention (PyTorch and Triton), and of PyTorch.

    Attributes:
      torch: the package.
      kernels: `chunk_gdn2` under "gdn2" and `chunk_kda` under "kda": functions of q, k [B,T,H,K],
        v [B,T,H,V], log-decay [B,T,H,K], then b [B,T,H,K] and w [B,T,H,V], or β [B,T,H]; they
        return the output first.
      versions: of the packages.
    """

    torch: Any
    kernels: Mapping[str, Callable[..., Any]]
    versions: dict[str, str]


def load_fla() -> Fla | str:
    """flash-linear-attention, or why it is not here."""
    install = f"pip install 'flash-linear-attention[cuda]=={VERSION}' (it brings PyTorch)"
    try:
        import fla
        import torch
        import triton
        from fla.ops.gdn2 import chunk_gdn2
        from fla.ops.kda import chunk_kda
    except ImportError as error:
        return f"not installed ({error.name}): {install}"
    if fla.__version__ != VERSION:
        return f"{fla.__version__} is installed, the comparison is with {VERSION}: {install}"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU: install its CUDA build"
    versions = {
        "flash-linear-attention": fla.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    return Fla(torch, {"gdn2": chunk_gdn2, "kda": chunk_kda}, versions)


class Launched:
    """Work on the GPU that PyTorch has begun; `jax.block_until_ready` waits for it."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def block_until_ready(self) -> "Launched":
        """Waits until the GPU is idle."""
        self._torch.cuda.synchronize()
        return self


class FlaAtShape:
    """The peer's kernels on the very numbers of `rule_inputs`.

    β of KDA is the first channel of the write gate. Decays are given, keys are of unit norm, and so
    nothing is fused into the peer's kernels that is outside of ours.

    Attributes:
      notes: what a reader of the figures must know, by contender.
    """

    def __init__(self, fla: Fla, x: Mapping[str, jax.Array]) -> None:
        self._fla = fla
        names = {name for names in INPUTS.values() for name in names} - {"beta"}
        given = {name: x[name] for name in (*names, "cotangent")}
        given["beta"] = x["head_write"][..., 0]
        jax.block_until_ready(given)
        # Cloned, so that a gradient can be asked of it and neither package frees the other's.
        self._tensors = {name: fla.torch.from_dlpack(a).clone() for name, a in given.items()}
        self.notes: dict[str, str] = {}

    def contender(self, rule: str, backward: bool) -> Contender:
        """A kernel, forward without autograd, or forward and backward with every gradient.

        It is replayed as a CUDA graph, which frees it from the cost of launching from Python; as it
        stands where it cannot be captured, with a note.
        """
        function, torch = self._function(rule, backward), self._fla.torch
        self.call(rule, backward)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        inputs = sum(x.numel() * x.element_size() for x in self._arguments(rule))
        peak = torch.cuda.max_memory_allocated() - before + inputs
        launch = self._captured(function, f"fla {rule}")

        def run() -> Launched:
            launch()
            return Launched(torch)

        return Contender(run, (), peak)

    def call(self, rule: str, backward: bool) -> None:
        """Runs a kernel once, which compiles and tunes it."""
        self._function(rule, backward)()
        self._fla.torch.cuda.synchronize()

    def difference(self, rule: str, output: jax.Array) -> float:
        """‖ours − theirs‖ / ‖theirs‖ of an output."""
        theirs = self._function(rule, backward=False)().float()
        ours = self._fla.torch.from_dlpack(jax.block_until_ready(output)).float()
        return float((ours - theirs).norm() / theirs.norm())

    def close(self) -> None:
        """Hands PyTorch's unused memory back to the device."""
        self._tensors.clear()
        self._fla.torch.cuda.empty_cache()

    def _arguments(self, rule: str) -> tuple[Any, ...]:
        return tuple(self._tensors[name] for name in INPUTS[rule])

    def _function(self, rule: str, backward: bool) -> Callable[[], Any]:
        torch, kernel = self._fla.torch, self._fla.kernels[rule]
        arguments, cotangent = self._arguments(rule), self._tensors["cotangent"]

        def forward() -> Any:
            with torch.no_grad():
                return kernel(*arguments)[0]

        def both() -> Any:
            leaves = [x.detach().requires_grad_() for x in arguments]
            output = kernel(*leaves)[0]
            return output, torch.autograd.grad(output, leaves, cotangent)

        return both if backward else forward

    def _captured(self, function: Callable[[], Any], name: str) -> Callable[[], Any]:
        cuda = self._fla.torch.cuda
        aside = cuda.Stream()  # PyTorch asks for warm-up beside the stream of everything else
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(3):
                function()
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                kept = function()
        except RuntimeError as error:
            cuda.synchronize()
            reason = str(error).splitlines()[0]
            self.notes[name] = f"timed as launched from Python, no CUDA graph: {reason}"
            return function

        def replay() -> Any:
            graph.replay()
            return kept  # the graph writes there

        return replay
