"""Run by test_remesh.py as one of several processes: restores, saves, and agrees on a stop."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.processes.stopping import StopRequests


class Counter:
    """A data iterator that counts."""

    def __init__(self):
        self.position = 0

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def kernel(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(8, 6)).astype(np.float32)


def place(step: int, sharding: NamedSharding) -> jax.Array:
    values = kernel(step)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def holds(array: jax.Array, step: int) -> bool:
    """Whether this process's part of an array is that of `kernel(step)`."""
    values = kernel(step)
    return all(np.array_equal(part.data, values[part.index]) for part in array.addressable_shards)


def main(directory: str, address: str, count: str, index: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(index))
    mesh = Mesh(np.asarray(jax.devices()), ("rows",))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    like = {"kernel": jax.ShapeDtypeStruct((8, 6), np.float32, sharding=rows)}
    lines: list[str] = []
    counter = Counter()
    with Checkpoints(Path(directory), keep=3, say=lines.append) as checkpoints:
        restored = checkpoints.restore(like, counter)
        assert restored is not None
        found = {
            "step": restored.step,
            "same_bits": holds(restored.state["kernel"], restored.step),
            "position": counter.position,
            "lines": lines,
        }
        counter.position = 30
        checkpoints.save(3, {"kernel": place(3, rows)}, counter, {"eval_loss": 1.0})
        checkpoints.wait()
    with StopRequests() as stop:
        stop.received = 15 if index == "1" else 0  # the others hear nothing
        found["votes"] = [stop.agreed() for _ in range(3)]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
