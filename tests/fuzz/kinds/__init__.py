"""All kinds of files that the project reads."""

from tests.fuzz.kinds import (
    checkpoints,
    data,
    evaluation,
    machines,
    models,
    run_directory,
    sweeps,
)

ROOMS = (run_directory, checkpoints, data, models, evaluation, sweeps, machines)
KINDS = tuple(kind for room in ROOMS for kind in room.KINDS)
