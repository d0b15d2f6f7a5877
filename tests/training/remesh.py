"""Run by test_remesh.py in processes of their own: saves on one mesh, restores on others."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from carve_jax.sharding import AXES
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.run import build
from tests.training.helpers import tiny_config


def run_on(mesh: str):
    """The run of a tiny config on a mesh such as "2,2,2"."""
    sizes = zip(AXES, map(int, mesh.split(",")), strict=False)  # those left out are 1
    config = tiny_config(model__vocab_size=64, model__num_heads=4, model__mlp_dim=64, batch_size=8)
    config.mesh.update(dict(sizes))
    return build(config)


def bits(state) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def main(directory: str, first: str, *others: str) -> None:
    run = run_on(first)
    batches = run.pipeline.train_iterator()
    state, _ = run.train_step(run.init(), next(batches))
    with Checkpoints(Path(directory)) as checkpoints:
        checkpoints.save(1, state, batches, {})
        checkpoints.wait()
        saved, following = bits(state), next(batches)
        for mesh in (first, *others):
            run = run_on(mesh)
            batches = run.pipeline.train_iterator()
            restored = checkpoints.restore(run.state_shapes, batches)
            leaves = zip(
                jax.tree.leaves(restored.state), jax.tree.leaves(run.state_shapes), strict=True
            )
            record = {
                "mesh": mesh,
                "same_bits": bits(restored.state) == saved,
                "as_asked": all(leaf.sharding == like.sharding for leaf, like in leaves),
                "same_batch": np.array_equal(next(batches)["tokens"], following["tokens"]),
                "devices": len(restored.state.params["head"]["kernel"].sharding.device_set),
            }
            # And training goes on from there.
            _, metrics = run.train_step(restored.state, following)
            record["loss"] = float(metrics.sums.nats)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
