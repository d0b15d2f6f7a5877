"""Synthetic tasks: what a small model must hold, overwrite, skip, follow and decide to forget."""

from collections.abc import Mapping

from carve_jax.data.synthetic.content_erase import ContentErase
from carve_jax.data.synthetic.mqar import MQAR
from carve_jax.data.synthetic.overwriting_recall import OverwritingRecall
from carve_jax.data.synthetic.ruler import Ruler
from carve_jax.data.synthetic.selective_copying import SelectiveCopying
from carve_jax.data.synthetic.state_tracking import StateTracking
from carve_jax.data.synthetic.task import (
    Example,
    Examples,
    MakeTask,
    Task,
    eval_batches,
    train_batches,
)

TASKS: Mapping[str, MakeTask] = {
    "mqar": MQAR,
    "overwriting_recall": OverwritingRecall,
    "selective_copying": SelectiveCopying,
    "state_tracking": StateTracking,
    "content_erase": ContentErase,
    "ruler": Ruler,
}
"""The tasks by the name of their source (`config.SYNTHETIC`)."""

__all__ = ["TASKS", "Example", "Examples", "MakeTask", "Task", "eval_batches", "train_batches"]
