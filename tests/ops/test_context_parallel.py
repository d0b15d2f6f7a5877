"""A sequence cut over eight devices gives what one device gives, forward and every gradient."""

import functools
import json
import os
import subprocess
import sys

import pytest

from carve_jax.ops.gated_delta.context_parallel import bubble, carve_rule_over
from tests.devices import xla_flags
from tests.ops.cases import Case, make_arrays
from tests.ops.over_devices import CASES

# By day CARVE's with segments, which are handed on; GDN-2's, which are composed, by night.
SLOW = ("gdn2", "gdn2, segments", "carve")


@functools.cache
def measured(*names):
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(8),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.ops.over_devices", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {record["name"]: record for record in records}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def test_eight_shards_are_one_sequence(name):
    names = (other for other in CASES if (other in SLOW) == (name in SLOW))
    record = measured(*names)[name]
    assert record["outputs"] < 5e-6
    assert record["gradients"] < 5e-6
    # Plain: maps gathered, and gradients brought back. CARVE: a state handed on. Never the tokens.
    if name.startswith("carve"):
        assert record["collectives"]["collective-permute"] > 0
    else:
        assert "collective-permute" not in record["collectives"]
    assert "all-to-all" not in record["collectives"]


def test_bubble_is_the_share_of_idle_steps():
    assert bubble(8, 8) == pytest.approx(7 / 15)
    assert bubble(4, 1) == 0


def test_micro_batches_must_divide_the_rows():
    arrays = make_arrays(Case(batch=3))
    with pytest.raises(ValueError, match="micro_batches=2 does not divide the 3 rows"):
        carve_rule_over("sequence", *arrays[:8], micro_batches=2)
