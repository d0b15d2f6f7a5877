"""The machine under a sweep: how many runs it takes at once, and how long they may take."""

import contextlib
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.accounting import forward_flops, train_flops
from carve_jax.config import LMConfig
from carve_jax.errors import UserError
from carve_jax.training.reports.utilisation import peak_flops
from carve_jax.training.settings import make_model_config
from experiments import cli, compile_cache
from experiments.sweeps.plan import Plan, PlannedRun
from experiments.sweeps.store import Store

PROBE = (
    "import json; from carve_jax.training.reports.provenance import describe_environment; "
    "print(json.dumps(describe_environment()))"
)
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
GPU_MEMORY = 0.9  # of a GPU's memory that runs share out; each process takes some besides
GPU_SHARE, CPU_SHARE = 0.4, 0.2  # of the peak, and of a product of matrices, that training reaches


def probe() -> dict[str, Any]:
    """`describe_environment` as the runs will see it; this process leaves the devices to them.

    Raises:
      UserError: JAX does not start.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise UserError(f"JAX does not start on this machine: {''.join(last)}")
    return json.loads(done.stdout.splitlines()[-1])


def make_slots(plan: Plan, facts: dict[str, Any], jobs: int | None) -> list[dict[str, str]]:
    """What the environment of each concurrent run has besides the sweep's own.

    A GPU run has as many devices as its mesh; on CPUs a run has one core if several run at once.
    Where more runs of one device are asked for than there are GPUs, they share them, and each has
    its part of a GPU's memory.

    Args:
      facts: of `probe`.
      jobs: how many at once; None for as many as have devices to themselves.

    Raises:
      UserError: more than there are GPUs for, of runs that take several.
    """
    if facts["backend"] == "gpu":
        ids = _visible(len(facts["devices"]))
        sizes = [math.prod(dict(run.config.mesh).values()) for run in plan.every]
        each = len(ids) if min(sizes) < 1 else max(sizes)  # -1: all there are
        groups = [ids[i : i + each] for i in range(0, len(ids) - each + 1, each)]
        if each == 1 and (jobs or 1) > len(ids):
            each = math.ceil((jobs or 1) / len(ids))
            return [_shared(ids[i % len(ids)], each) for i in range(jobs or 1)]
        if not groups or (jobs or 1) > len(groups):
            raise UserError(
                f"a run takes {each} GPUs and this machine has {len(ids)}: room for {len(groups)} "
                f"at once, not {jobs or 1}"
            )
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups[:jobs]]
    if facts["backend"] != "cpu":
        return [{}] * (jobs or 1)
    jobs = jobs or min(cli.usable_cores(), len(plan.every))
    if jobs == 1:
        return [{}]
    one_thread = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return [{"XLA_FLAGS": one_thread, "OMP_NUM_THREADS": "1"}] * jobs


def _shared(gpu: str, runs: int) -> dict[str, str]:
    """The environment of one of so many runs on a GPU: JAX takes a share of its memory at once."""
    memory = float(os.environ.get(FRACTION) or GPU_MEMORY) / runs
    return {"CUDA_VISIBLE_DEVICES": gpu, FRACTION: f"{memory:.3f}"}


def _visible(count: int) -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(count)]


@contextlib.contextmanager
def compiled() -> Iterator[dict[str, str]]:
    """The environment in which runs share what they compile: seeds differ in nothing else.

    What is compiled is code that a process runs without a look at it, so it does not lie in the
    sweep's directory, which may have come from elsewhere: it goes where this process keeps what it
    compiles, or if that is nowhere, to a folder of this process alone for as long as it lives.
    """
    given = compile_cache.directory()
    with contextlib.ExitStack() as stack:
        folder = given or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="carve_jax_compiled_", ignore_cleanup_errors=True)
        )
        yield {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }


def estimated_seconds(
    plan: Plan, store: Store, facts: dict[str, Any], jobs: int
) -> tuple[dict[str, float], str]:
    """Seconds of each run by id, and in words where they come from.

    Runs that are done tell how long others of their task take; without one, the model's arithmetic
    is held against the GPU's datasheet or against products of matrices timed here.
    """
    done = [run for run in plan.every if store.is_done(run)]
    rates: dict[tuple[str, ...], float] = {}
    for name, runs in itertools.chain(
        _grouped(done, lambda run: (run.task, run.variant)),
        _grouped(done, lambda run: (run.task,)),
    ):
        rates[name] = sum(store.status(r).seconds for r in runs) / sum(r.tokens for r in runs)
    if all((run.task,) in rates for run in plan.every):
        pace = {r.id: rates.get((r.task, r.variant), rates[(r.task,)]) for r in plan.every}
        words = f"from the {len(done)} runs that are done"
        return {run.id: pace[run.id] * run.tokens for run in plan.every}, words
    rate, words = _flops_a_second(facts, jobs)
    seconds = {}
    for run in plan.every:
        flops = _train_flops(make_model_config(run.config), run.config.sequence_length)
        seconds[run.id] = (
            flops * run.tokens / (rate * max(1, math.prod(dict(run.config.mesh).values())))
        )
    return seconds, f"a rough guess, compilation not counted, from {words}"


@functools.cache  # seeds share a model, and each look traces it
def _train_flops(model: LMConfig, length: int) -> float:
    """Floating-point operations per token of training."""
    return train_flops(forward_flops(model, length))


def _grouped(runs: Sequence[PlannedRun], key: Any) -> list[tuple[Any, list[PlannedRun]]]:
    return [(name, list(group)) for name, group in itertools.groupby(sorted(runs, key=key), key)]


def _flops_a_second(facts: dict[str, Any], jobs: int) -> tuple[float, str]:
    """Floating-point operations per second of one device of a run, and in words their source."""
    kind = facts["devices"][0]
    peak = peak_flops(kind)
    if peak is not None:
        return GPU_SHARE * peak, f"{GPU_SHARE:.0%} of the datasheet's peak of {kind}"
    size, repeats = 1024, 8
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(a).block_until_ready()
    begun = time.perf_counter()
    for _ in range(repeats):
        product(a).block_until_ready()
    rate = repeats * 2 * size**3 / (time.perf_counter() - begun) / jobs
    return CPU_SHARE * rate, (
        f"{CPU_SHARE:.0%} of {rate / 1e9:.0f} GFLOP/s, one run's share of products of matrices here"
    )
