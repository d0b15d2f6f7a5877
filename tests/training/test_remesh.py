"""A checkpoint belongs to no mesh and to no number of processes."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from carve_jax.training.checkpoints.checkpoint import Checkpoints
from tests.devices import xla_flags
from tests.training.test_checkpoint import flip_a_bit, largest_file
from tests.training.two_processes import Counter, holds, kernel


def start(module, arguments, devices):
    """A process of its own on so many CPU devices."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", f"tests.training.{module}", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def records(process):
    """What it printed, a JSON object a line, once it has ended."""
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error[-3000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.mark.slow  # always: by another number of processes, below
def test_restored_on_other_meshes_to_the_bit(tmp_path):
    meshes = {"2,2,2": 8, "8,1,1": 8, "1,4,2": 8, "1,1,1": 1}
    found = records(start("remesh", [str(tmp_path), *meshes], devices=8))
    assert [record["mesh"] for record in found] == list(meshes)
    assert [record["devices"] for record in found] == list(meshes.values())
    for record in found:
        assert record["same_bits"]
        assert record["as_asked"]
        assert record["same_batch"]
    np.testing.assert_allclose([record["loss"] for record in found], found[0]["loss"], 1e-5)


def test_restored_by_another_number_of_processes_that_agree(tmp_path):
    counter = Counter()
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (1, 2):
            counter.position = 10 * step
            checkpoints.save(step, {"kernel": jax.numpy.asarray(kernel(step))}, counter, {})
    flip_a_bit(largest_file(tmp_path / "checkpoints" / "2" / "state"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [str(tmp_path / "checkpoints"), address, "2"]
    processes = [start("two_processes", [*arguments, str(i)], devices=2) for i in range(2)]
    for (record,) in map(records, processes):
        assert record["lines"][0].startswith("checkpoint of step 2 cannot be used: file ")
        assert (record["step"], record["position"]) == (1, 10)
        assert record["same_bits"]
        # The first vote is still out when it is cast; then both know.
        assert record["votes"] == [0, 15, 15]
    assert (tmp_path / "checkpoints_damaged" / "2_0").is_dir()
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        like = {"kernel": jax.ShapeDtypeStruct((8, 6), np.float32)}
        restored = checkpoints.restore(like, counter)
        assert checkpoints.best_step() == 3
    assert (restored.step, counter.position) == (3, 30)
    assert holds(restored.state["kernel"], 3)
