"""Run by test_sharding.py in a process of its own with eight CPU devices: prints what it finds."""

import collections
import json
import re
import sys

import jax
import numpy as np

from carve_jax.sharding import AXES
from carve_jax.training.run import build
from tests.training.helpers import tiny_config

COLLECTIVE = re.compile(
    r"(%[\w.-]+) = \S+ (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\(.*?op_name=\"([^\"]*)\""
)


def config_of(pattern: str, **changes):
    return tiny_config(
        model__pattern=tuple(pattern.split("+")),
        model__layers=2 * len(pattern.split("+")),
        model__vocab_size=64,  # tensor cuts it; 257 it would leave whole
        model__num_heads=4,
        model__mlp_dim=64,
        model__window=12,
        model__implementation="recurrent",
        batch_size=8,
        **changes,
    )


def gradients(config):
    """One step of training from scratch: the program, its state, metrics and moments."""
    run = build(config)
    batch = next(run.pipeline.train_iterator())
    step = run.train_step.lower(run.state_shapes, batch).compile()
    state, metrics = step(run.init(), batch)
    # Adam's first moment after one step is the gradient, clipped, times a constant.
    paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(state)]
    return step.as_text(), state, metrics, [leaf for path, leaf in paths if ".mu" in path]


def difference(found, expected) -> float:
    """The largest, of what is largest."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / (np.abs(expected).max() + 1e-12))


def main(pattern: str, *meshes: str) -> None:
    _, _, expected, moments = gradients(config_of(pattern))
    for text in meshes:
        sizes = dict(zip(AXES, map(int, text.split(",")), strict=True))
        changes = {f"mesh__{axis}": size for axis, size in sizes.items()}
        program, state, metrics, found = gradients(config_of(pattern, **changes))
        lines = COLLECTIVE.findall(program)
        worst = max(map(difference, found, moments))
        record = {
            "mesh": sizes,
            "loss": abs(float(metrics.sums.nats) - float(expected.sums.nats)),
            "gradients": worst,
            "collectives": collections.Counter(kind for _, kind, _ in lines),
            "in_the_rule": [name for _, _, name in lines if "shard_map" in name],
            "part": min(
                leaf.addressable_shards[0].data.size / leaf.size
                for leaf in jax.tree.leaves(state.params)
            ),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
