"""Inputs of the decode step for tests, and the step in float64 NumPy."""

from typing import NamedTuple

import ml_dtypes
import numpy as np


class StepCase(NamedTuple):
    """Sizes, gates and dtypes of one step; `gate_dtype` is the dtype of the others if empty."""

    batch: int = 2
    key_heads: int = 2
    value_heads: int = 2
    key_channels: int = 32
    value_channels: int = 32
    decay: str = "channel"  # channel | head
    erase: str = "channel"
    write: str = "head"
    dtype: str = "float32"
    gate_dtype: str = ""


CASES = {
    "plain": StepCase(),
    "bfloat16": StepCase(dtype="bfloat16"),
    "bfloat16, float32 gates": StepCase(dtype="bfloat16", gate_dtype="float32", write="channel"),
    "float16": StepCase(dtype="float16", write="channel"),
    "channel write": StepCase(write="channel"),
    "scalar gates": StepCase(decay="head", erase="head"),
    "scalar decay": StepCase(decay="head", write="channel"),
    "scalar erase": StepCase(erase="head"),
    "grouped values": StepCase(value_heads=6, write="channel"),
    "grouped scalar gates": StepCase(3, 1, 4, 16, 64, decay="head", erase="head"),
    "odd sizes": StepCase(2, 2, 4, 20, 48, dtype="bfloat16"),
    "odder sizes": StepCase(1, 3, 3, 23, 37, write="channel"),
    "odd key alone": StepCase(1, 2, 2, 48, 64),
    "odd value alone": StepCase(1, 2, 2, 64, 100, write="channel", dtype="float16"),
    "largest": StepCase(1, 1, 2, 256, 256, write="channel", dtype="bfloat16"),
    "large odd": StepCase(1, 1, 1, 192, 160, dtype="bfloat16", gate_dtype="float32"),
    "smallest": StepCase(1, 1, 1, 16, 16),
    "one channel": StepCase(1, 1, 2, 1, 1),
    "one key channel": StepCase(2, 1, 2, 1, 5, write="channel"),
    "one sequence of the official layer": StepCase(1, 16, 16, 128, 128, dtype="bfloat16"),
}


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def make_step(case: StepCase, seed: int = 0) -> list[np.ndarray]:
    """The seven arrays of a step, in the case's dtypes; some channels are reset (g = −1000)."""
    rng = np.random.default_rng(seed)
    keys = (case.batch, case.key_heads, case.key_channels)
    values = (case.batch, case.value_heads, case.value_channels)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def gate(shape: tuple[int, ...], habit: str, top: float) -> np.ndarray:
        return rng.uniform(0.0, top, shape if habit == "channel" else (*shape[:2], 1))

    decay = -gate(keys, case.decay, 3.0)
    decay = np.where(rng.uniform(size=decay.shape) < 0.1, -1000.0, decay)
    arrays = [
        unit(rng.standard_normal(keys)),
        unit(rng.standard_normal(keys)),
        rng.standard_normal(values),
        decay,
        gate(keys, case.erase, 2.0),
        gate(values, case.write, 1.0),
    ]
    gates = numpy_dtype(case.gate_dtype or case.dtype)
    dtypes = [numpy_dtype(case.dtype)] * 3 + [gates] * 3
    cast = [x.astype(dtype) for x, dtype in zip(arrays, dtypes, strict=True)]
    memory = 3.0 * rng.standard_normal((*values[:2], case.key_channels, case.value_channels))
    return [*cast, memory.astype(np.float32)]


def reference_step(arrays: list[np.ndarray], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Output and memory in float64, head by head and straight from the formula."""
    query, key, value, log_decay, erase, write, memory = (x.astype(np.float64) for x in arrays)
    group = value.shape[1] // key.shape[1]
    output = np.empty_like(value)
    new = np.empty_like(memory)
    for b in range(value.shape[0]):
        for n in range(value.shape[1]):
            h = n // group
            decayed = np.exp(log_decay[b, h])[:, None] * memory[b, n]
            read = decayed.T @ (erase[b, h] * key[b, h])
            new[b, n] = decayed + np.outer(key[b, h], write[b, n] * value[b, n] - read)
            output[b, n] = new[b, n].T @ (scale * query[b, h])
    return output, new


def check_step(case: StepCase, output: np.ndarray, memory: np.ndarray, scale: float) -> None:
    """Compare with float64: the memory to float32's rounding, the output to its own dtype's."""
    arrays = make_step(case)
    expected, expected_memory = reference_step(arrays, scale)
    assert output.dtype == arrays[2].dtype
    assert memory.dtype == np.float32
    np.testing.assert_allclose(memory, expected_memory, rtol=1e-5, atol=2e-5)
    rounding = 1e-5 + float(ml_dtypes.finfo(output.dtype).eps)
    np.testing.assert_allclose(output.astype(np.float64), expected, rtol=rounding, atol=2e-5)
