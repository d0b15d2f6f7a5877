"""Weights from and to PyTorch; neither PyTorch nor safetensors is imported until asked for."""

from carve_jax.interop.convert import from_torch, save_safetensors, to_torch
from carve_jax.interop.errors import InteropError
from carve_jax.interop.tables import LAYOUTS

__all__ = ["LAYOUTS", "InteropError", "from_torch", "save_safetensors", "to_torch"]
