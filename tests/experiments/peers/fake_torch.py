"""As much of PyTorch as the peers' adapter touches, on NumPy; it remembers what was asked of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments import peers


class Tensor:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    shape = property(lambda self: self.array.shape)

    def clone(self) -> "Tensor":
        return Tensor(self.array.copy())

    detach = requires_grad_ = clone

    def float(self) -> "Tensor":
        return Tensor(self.array.astype(np.float32))

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize

    def norm(self) -> np.floating:
        return np.linalg.norm(self.array)

    def __sub__(self, other: "Tensor") -> "Tensor":
        return Tensor(self.array - other.array)


class Graph:
    def __init__(self, torch: "FakeTorch") -> None:
        self._torch = torch

    def replay(self) -> None:
        self._torch.calls.append("replay")


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


class FakeTorch:
    """`captures=False` refuses CUDA graphs, as a kernel that waits for the device makes it do."""

    def __init__(self, captures: bool = True) -> None:
        self.calls: list[str] = []
        self.captures = captures
        self.recording = False
        self.cuda = self.autograd = self
        self.Stream = Stream

    def from_dlpack(self, array: jax.Array) -> Tensor:
        return Tensor(np.asarray(array))

    @contextlib.contextmanager
    def no_grad(self) -> Iterator[None]:
        self.recording = True
        yield
        self.recording = False

    def grad(self, output: Any, leaves: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
        assert output.shape == cotangent.shape
        self.calls.append(f"grad {len(leaves)}")
        return tuple(leaves)

    def current_stream(self) -> Stream:
        return Stream()

    def stream(self, _: Stream) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    @contextlib.contextmanager
    def graph(self, _: Graph) -> Iterator[None]:
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        yield

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def memory_allocated(self) -> int:
        return 1000

    def max_memory_allocated(self) -> int:
        return 5000

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")

    def empty_cache(self) -> None:
        self.calls.append("empty")


def fake_fla(torch: FakeTorch) -> peers.Fla:
    def kernel(query: Tensor, *rest: Tensor) -> tuple[Tensor, None]:
        torch.calls.append(f"kernel {len(rest) + 1}")
        return Tensor(np.ones_like(query.array)), None

    return peers.Fla(torch, {"gdn2": kernel, "kda": kernel}, {"torch": "fake"})
