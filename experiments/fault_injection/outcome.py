"""How a training run ended, and what differs between two such ends, to the bit."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.reports.metrics import CLOCK, read_metrics
from carve_jax.training.run import build
from carve_jax.training.workdir import CHECKPOINTS


def outcome(config: Any, workdir: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Final state, data position, and figures without those of a clock."""
    run = build(config)
    iterator = run.pipeline.train_iterator()
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        restored = checkpoints.restore(run.state_shapes, iterator, step=config.steps)
    assert restored is not None  # else restore raises
    lines = [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in read_metrics(workdir)
    ]
    return jax.device_get(restored.state), iterator.get_state(), lines


def differences(found: Any, expected: Any) -> list[str]:
    """What differs between two outcomes, in words."""
    different = []
    for path, value in jax.tree_util.tree_leaves_with_path(expected[0]):
        other = dict(jax.tree_util.tree_leaves_with_path(found[0]))[path]
        if np.asarray(value).tobytes() != np.asarray(other).tobytes():
            different.append(f"array {jax.tree_util.keystr(path)}")
    if found[1] != expected[1]:
        different.append("the data position")
    for line, other in zip(expected[2], found[2], strict=False):
        if line != other:
            different.append(f"the figures of step {line['step']}")
    if len(found[2]) != len(expected[2]):
        different.append(f"{len(found[2])} lines of figures in place of {len(expected[2])}")
    return different
