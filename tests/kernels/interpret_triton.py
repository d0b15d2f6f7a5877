"""Run the Triton decode kernel in Triton's interpreter over all cases (TRITON_INTERPRET=1).

A program of its own, run by `test_step.py`: the interpreter is chosen as Triton is imported.
"""

import os

import numpy as np

from pallas_kernels.decode.step_sizes import StepSizes, StepTiles, default_tiles, triton_constants
from pallas_kernels.decode.triton_step import step_kernel
from tests.kernels.step_cases import CASES, StepCase, check_step, make_step

SCALE = 0.3
TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class HostArray:
    """A NumPy array with as much of a torch tensor as the interpreter asks for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype = TYPES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def same(self, *_: object, **__: object) -> "HostArray":
        """The array itself: it is in host memory already, and moving or filling it is no work."""
        return self

    untyped_storage = cpu = new_empty = set_ = storage_offset = size = stride = copy_ = same


def run(case: StepCase, tiles: StepTiles | None = None) -> None:
    arrays = make_step(case)
    gates = [x.shape[-1] for x in arrays[3:6]]
    sizes = StepSizes(*case[:5], *gates)
    tiles = default_tiles(sizes) if tiles is None else tiles
    output = np.zeros_like(arrays[2])
    memory = arrays[6]  # edited in place
    given = [HostArray(x) for x in (*arrays, output, memory)]
    step_kernel[(sizes.programs(tiles),)](*given, **triton_constants(sizes, tiles, SCALE))
    check_step(case, output, memory, SCALE)


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    for name, case in CASES.items():
        run(case)
        print("right:", name)
    run(CASES["odd sizes"], StepTiles(64, 1))
    print("right: a tile wider than the state")
