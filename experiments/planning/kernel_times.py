"""What one launch of each kernel of our own takes in a model's layers, predicted.

The mixer's layer, forward and backward, is compiled for an absent GPU, with the rows that a device
has of the batch; `pallas_kernels.compiling` counts what its kernels execute and predicts their
time. Nothing runs.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.config import LMConfig
from carve_jax.errors import UserError
from carve_jax.mixers import MIXERS
from experiments.measuring.timing import with_pullback
from pallas_kernels.compiling import counts, xla
from pallas_kernels.compiling.catalogue import Program

ARCH = "sm_90"
"""The chip that the model of `pallas_kernels.compiling.predict` is calibrated for: an H100."""


def kernel_seconds(
    model: LMConfig, rows: int, length: int, sizes: Mapping[str, int]
) -> dict[tuple[str, str, str], float]:
    """Seconds of a launch, by mixer, "forward" or "backward", and the kernel's name.

    Where a pass launches a kernel more than once, as for each part of the sequence, it is their
    mean. Mixers without kernels of ours have none.

    Args:
      model: whose layers.
      rows: of the whole batch that are computed at once.
      length: tokens of a row.
      sizes: of the mesh, by axis.

    Raises:
      UserError: nothing compiles here, or a layer's kernels cannot be counted.
    """
    if reason := xla.unsupported_reason():
        raise UserError(f"--anatomy counts what the kernels execute: {reason}")
    own = dataclasses.replace(
        model,
        num_heads=model.num_heads // sizes["tensor"],
        num_key_heads=model.num_key_heads and max(1, model.num_key_heads // sizes["tensor"]),
    )
    x = jax.ShapeDtypeStruct(
        (rows // (sizes["data"] * sizes["fsdp"]), length // sizes["sequence"], model.d_model),
        jnp.dtype(model.compute_dtype),
    )
    found: dict[tuple[str, str, str], float] = {}
    for mixer in dict.fromkeys(model.pattern):
        if MIXERS[mixer].state_size(model):
            found |= _of_mixer(mixer, own, x)
    return found


def _of_mixer(
    mixer: str, model: LMConfig, x: jax.ShapeDtypeStruct
) -> dict[tuple[str, str, str], float]:
    layer: Any = MIXERS[mixer].of_model(model)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    function = with_pullback(lambda params, x: layer.apply(params, x)[0])
    program = Program(mixer, "layer", x.dtype.name, function, (x, params, x))
    counted = counts.count(program, ARCH)
    if counted.error and "no Pallas kernel" not in counted.error:
        raise UserError(f"the kernels of {mixer} cannot be counted: {counted.error}")
    launches: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in counted.kernels:
        name = row.kernel.partition("#")[0]
        launches[mixer, row.phase, name].append(row.prediction.total_ms / 1e3)
    return {key: sum(times) / len(times) for key, times in launches.items()}
