"""A mesh changes where arrays lie, and nothing else: same loss, same gradients, and no
communication but what the mesh calls for."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from carve_jax.errors import UserError
from carve_jax.placement import check_mesh, state_specs
from carve_jax.sharding import AXES, constrain, make_mesh, spec
from carve_jax.training.run import build, make_model
from tests.devices import xla_flags
from tests.training.helpers import tiny_config

# What each mesh may send: gradients and sums are reduced over rows; parts of parameters are
# gathered (and their gradients reduced); partial products of heads and MLP are reduced.
CASES = {
    "carve": {
        "8,1,1,1": {"all-reduce"},
        "1,8,1,1": {"all-reduce", "all-gather", "reduce-scatter"},
        "2,1,4,1": {"all-reduce", "all-gather"},
        "2,2,2,1": {"all-reduce", "all-gather", "reduce-scatter"},
        "2,1,2,2": None,  # a state is handed on, convolutions look over the edge
    },
    "gdn2": {"2,2,2,1": {"all-reduce", "all-gather", "reduce-scatter"}},
    "linear_attention": {"2,2,2,1": {"all-reduce", "all-gather", "reduce-scatter"}},
    "mamba3+swa": {"2,2,2,1": {"all-reduce", "all-gather", "reduce-scatter"}},
    "kda+attention": {"2,1,1,4": None},
}

# This one has the collectives of the others, and compiles fastest.
ALWAYS = ("linear_attention", "2,2,2,1")
FOUR = {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 1}


@functools.cache
def measured(pattern, *meshes):
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(8),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.training.sharded", pattern, *meshes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {",".join(map(str, record["mesh"].values())): record for record in records}


@pytest.mark.parametrize(
    ("pattern", "mesh"),
    [
        pytest.param(*case, marks=() if case == ALWAYS else pytest.mark.slow)
        for case in ((pattern, mesh) for pattern in CASES for mesh in CASES[pattern])
    ],
)
def test_on_eight_devices(pattern, mesh):
    always = (pattern, mesh) == ALWAYS  # the others of a pattern in one process
    meshes = (mesh for mesh in CASES[pattern] if ((pattern, mesh) == ALWAYS) == always)
    record = measured(pattern, *meshes)[mesh]
    assert record["loss"] < 1e-4  # nats of 128 tokens
    assert record["gradients"] < 1e-5
    assert record["collectives"]["all-reduce"] > 0
    if CASES[pattern][mesh] is not None:
        assert record["collectives"].keys() <= CASES[pattern][mesh]
        assert record["in_the_rule"] == []
    _, fsdp, tensor, _ = map(int, mesh.split(","))
    assert record["part"] <= 1 / (fsdp * tensor)


def test_every_parameter_of_every_mixer_has_a_place():
    for pattern in (
        ("carve", "gla", "mamba2", "retnet"),
        ("mamba3_mimo", "attention"),
        ("comba", "rwkv7"),
    ):
        config = tiny_config(model__pattern=pattern, model__layers=4, model__vocab_size=64)
        model = make_model(config)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
        specs = state_specs(
            model.config, shapes["params"], {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 1}
        )
        assert jax.tree.structure(specs) == jax.tree.structure(
            jax.tree.map(lambda _: spec(), shapes["params"])
        )
    wrong = {"head": {"kernel": jnp.zeros((2, 2))}, "tail": {"kernel": jnp.zeros((2, 2))}}
    with pytest.raises(ValueError, match=r"\['tail'\]\['kernel'\] has no place on a mesh"):
        state_specs(model.config, wrong, FOUR)


def test_unknown_logical_axes_raise():
    with pytest.raises(ValueError, match="unknown logical axis 'rows'; there are batch"):
        spec("rows", None)


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x


@pytest.mark.parametrize(
    ("axis", "implementation"),
    [
        ("data", "chunked"),
        ("tensor", "pallas"),
        ("sequence", "chunked"),
    ],
)
@pytest.mark.slow  # tests/ops cuts the rule along heads and tokens too
def test_a_mesh_of_two_trains_here(axis, implementation):
    """In this process, which has two devices, so that the path runs under every interpreter; the
    kernels (interpreted) too."""
    alone = second_loss(implementation)
    assert second_loss(implementation, axis) == pytest.approx(alone, rel=1e-5)


@functools.cache
def second_loss(implementation, axis=None):
    """Nats of the second step, on two devices along that axis, or on one."""
    config = tiny_config(model__vocab_size=64, model__implementation=implementation)
    if axis is not None:
        config.mesh[axis] = -1
    run = build(config)
    assert (run.mesh is None) == (axis is None)
    state, batches = run.init(), run.pipeline.train_iterator()
    for _ in range(2):
        state, metrics = run.train_step(state, next(batches))
    return float(metrics.sums.nats)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh__data": 3}, "does not make up the 2 devices there are"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, "one of them may be -1"),
        ({"mesh__data": 0}, "config.mesh.data is 0, but must be"),
        ({"mesh__data": 2, "batch_size": 3}, "batch_size=3 is no multiple of data x fsdp = 2"),
        ({"mesh__tensor": 2, "model__num_heads": 3}, "does not divide num_heads=3"),
        ({"mesh__tensor": 2, "model__mlp_dim": 33}, "does not divide mlp_dim=33"),
        ({"mesh__fsdp": 2, "model__d_model": 33}, "fsdp=2 of the mesh does not divide d_model=33"),
        ({"mesh__sequence": 2, "sequence_length": 48}, "into multiples of 16 tokens"),
        ({"mesh__sequence": 2, "model__pattern": ("mamba3",)}, "is not cut along the sequence"),
        ({"mesh__tensor": 2, "model__num_key_heads": 1}, "does not divide num_key_heads=1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told(changes, words):
    with pytest.raises(UserError, match=words):
        build(tiny_config(**changes))


def test_meshes_are_checked_by_name_and_size():
    with pytest.raises(
        ValueError, match="mesh has no axis 'rows'; there are data, fsdp, tensor, sequence"
    ):
        make_mesh({"rows": 2})
    assert dict(make_mesh({"tensor": -1}).shape) == dict(zip(AXES, (1, 1, 2, 1), strict=True))
    config = make_model(tiny_config(model__pattern=("mamba2",), model__num_key_heads=1)).config
    check_mesh(
        config, {"data": 1, "fsdp": 1, "tensor": 2, "sequence": 1}, 2, 32
    )  # shared keys may stay whole
