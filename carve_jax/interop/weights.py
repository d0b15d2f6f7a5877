"""Tensors from wherever they are, read when they are needed."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from carve_jax.interop.errors import InteropError

# Each of them is a float32 exactly.
READABLE = ("float32", "bfloat16", "float16")
_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Weight(NamedTuple):
    """One tensor: its shape, the name of its dtype, and a call that gives it as float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_weights(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Weight]:
    """The tensors of a state dict, a .safetensors file or a folder of such files, by name.

    Args:
      source: names to arrays (NumPy's, JAX's, PyTorch's), or a path.

    Raises:
      InteropError: when there is no such file, or it cannot be read, or something in the
        mapping is no tensor.
      ImportError: when a path is given and the package safetensors is not installed.
    """
    if isinstance(source, Mapping):
        return {name: _of_array(str(name), value) for name, value in source.items()}
    if not isinstance(source, str | os.PathLike):
        raise InteropError(
            f"the weights are a {type(source).__name__}; give a state dict (model.state_dict()) "
            "or the path of a .safetensors file."
        )
    weights: dict[str, Weight] = {}
    for path in _files(Path(source)):
        for name, weight in _of_file(path).items():
            if name in weights:
                raise InteropError(f"{name} is in two files of {source}; remove one of them.")
            weights[name] = weight
    return weights


def safetensors() -> Any:
    """The package, or ImportError with what to do."""
    try:
        # Not at the top: an optional dependency.
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            ".safetensors files need the package safetensors: pip install 'carve_jax[torch]'."
        ) from error
    return safetensors


def _of_array(name: str, value: Any) -> Weight:
    if isinstance(value, Mapping):
        raise InteropError(
            f"{name!r} is a mapping, not a tensor; give the state dict itself, "
            f"such as checkpoint[{name!r}]."
        )
    if hasattr(value, "detach"):  # PyTorch's, whose bfloat16 NumPy cannot take.
        dtype = str(value.dtype).removeprefix("torch.")
        return Weight(tuple(value.shape), dtype, lambda: value.detach().cpu().float().numpy())
    if not hasattr(value, "dtype"):
        raise InteropError(f"{name!r} is a {type(value).__name__}; expected an array.")
    return Weight(
        tuple(value.shape),
        value.dtype.name,
        lambda: np.asarray(value).astype(np.float32, copy=False),
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise InteropError(f"the folder {path} holds no .safetensors file.")
        return found
    if not path.is_file():
        raise InteropError(f"there is no file {path}; give a .safetensors file or their folder.")
    if path.suffix != ".safetensors":
        raise InteropError(
            f"{path} is no .safetensors file; read it in PyTorch, "
            "torch.load(path, weights_only=True), and give the state dict."
        )
    return [path]


def _of_file(path: Path) -> dict[str, Weight]:
    package = safetensors()
    try:
        file = package.safe_open(path, framework="np")
    except package.SafetensorError as error:
        raise InteropError(f"{path} cannot be read as safetensors: {error}.") from error

    def read(name: str) -> np.ndarray:
        return file.get_tensor(name).astype(np.float32, copy=False)

    weights = {}
    for name in file.keys():  # noqa: SIM118 (it is no mapping)
        part = file.get_slice(name)
        dtype = part.get_dtype()
        weights[name] = Weight(
            tuple(part.get_shape()),
            _SAFETENSORS_DTYPES.get(dtype, dtype),
            functools.partial(read, name),
        )
    return weights
