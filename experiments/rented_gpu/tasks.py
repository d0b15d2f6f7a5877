"""What the tasks do. Each function runs in a process of its own, see `worker`.

Those that compile know shapes alone and hold no arrays, so that many of them fit on one card; what
they compile goes to the persistent cache, where the processes that measure find it.
"""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from carve_jax.training.reports.provenance import describe_environment
from experiments.benchmarks import tune
from experiments.benchmarks.decode_steps import (
    DecodePlan,
    decode_inputs,
    decode_program,
    decode_sizes,
    decode_steps,
    measure_decode,
)
from experiments.benchmarks.gpu import (
    OURS,
    TURN,
    Plan,
    compile_ours,
    make_all,
    our_makers,
)
from experiments.benchmarks.train_steps import TrainPlan, fitting_program, measure_mixer
from experiments.measuring.profiling import kernel_times
from experiments.measuring.rule_calls import (
    DIRECTIONS,
    Shape,
    input_shapes,
    rule_contender,
    rule_inputs,
)
from experiments.measuring.timing import (
    Contender,
    LeftOut,
    attempt,
    device_bytes,
    device_ceilings,
    median_seconds,
    peak_bytes,
    require_gpu,
)
from experiments.measuring.train_steps import Training, fitting, measure_step
from experiments.peers import Fla, FlaAtShape, Jla, load_fla, load_jla
from experiments.peers.fla_steps import measure_fla
from experiments.peers.fla_tuning import compile_share, compile_step_share
from experiments.peers.jla import jla_contender
from experiments.peers.jla_steps import jla_program
from experiments.rented_gpu.worker import Progress
from pallas_kernels import guard
from pallas_kernels.tiling import Tiles

REPEATS = 7


def probe(progress: Progress, need_gpu: bool = True) -> dict[str, Any]:
    """The machine and the code."""
    if need_gpu:
        require_gpu("rented_gpu")
    known = device_bytes()
    return {**describe_environment(), "device_bytes": None if math.isinf(known) else known}


def compile_rule(
    progress: Progress, shape: list[int], name: str, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """One of ours at a shape: forward, and forward and backward."""
    _without_selftest()
    at, plan = Shape(*shape), Plan(dtype=dtype)
    rule_inputs.lower(at, dtype).compile()
    x = input_shapes(at, dtype)
    return _compiled(lambda way: compile_ours(at, plan, x, OURS[name], way != "forward"))


def compile_jla(
    progress: Progress, shape: list[int], rule: str, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """One of jax-linear-attention's kernels: forward, and forward and backward."""
    jla, x = _jla(), input_shapes(Shape(*shape), dtype)
    return _compiled(lambda way: jla_contender(jla, x, rule, way != "forward"))


def compile_fla(
    progress: Progress,
    shape: list[int],
    rule: str,
    backward: bool,
    part: int,
    of: int,
    dtype: str = "bfloat16",
) -> None:
    """A share of the variants that flash-linear-attention tunes over."""
    compile_share(Shape(*shape), dtype, rule, backward, part, of)


def compile_decode(progress: Progress, plan: Mapping[str, Any] | None = None) -> None:
    """The decode loops."""
    _without_selftest()
    what = DecodePlan(**(plan or {}))
    for batch in what.batches:
        inputs, memory = jax.eval_shape(functools.partial(decode_inputs, what, batch))
        steps = decode_steps(what, decode_sizes(what, batch)[0], TURN)
        for backend in what.backends:
            made = functools.partial(decode_program, what, inputs, memory, backend, steps)
            outcome = attempt(made)
            if isinstance(outcome, str):
                print(f"{backend}, batch {batch}: {outcome}", flush=True)


def compile_training(
    progress: Progress, mixer: str, plan: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A mixer's train step, with the most rows that fit, and its first state."""
    _without_selftest()
    program = fitting_program(TrainPlan(**(plan or {})), mixer)
    init: Any = program.init
    init.lower().compile()
    return {"rows": program.rows, "peak_bytes": peak_bytes(program.step)}


def compile_jla_step(progress: Progress, plan: Mapping[str, Any]) -> dict[str, Any]:
    """A train step of jax-linear-attention's, with the most rows that fit, and its first state."""
    program = _jla_program(_jla(), TrainPlan(**plan))
    init: Any = program.init
    init.lower().compile()
    return {"rows": program.rows, "peak_bytes": peak_bytes(program.step)}


def compile_fla_step(
    progress: Progress, model: Mapping[str, Any], length: int, part: int, of: int
) -> None:
    """A share of the variants that the layers of flash-linear-attention's model tune over."""
    compile_step_share(model, length, part, of)


def compile_tiles(progress: Progress, part: list[Any], tiles: Mapping[str, Any] | None) -> None:
    """A first candidate of the tile search; for None, what candidates are compared with."""
    _without_selftest()
    search = tune.Part(*part)
    x = input_shapes(search.shape, search.dtype)
    if tiles is None:
        rule_contender(x, search.rule, "chunked", backward=True)
    else:
        rule_contender(x, search.rule, "pallas", backward=True, tiles=Tiles(**tiles))


def time_decode(progress: Progress, plan: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The machine's measured rates, and steps of decoding against the copy's."""
    figures: dict[str, Any] = {"ceilings": device_ceilings(REPEATS, TURN)}
    progress.save(figures)
    what, rate = DecodePlan(**(plan or {})), figures["ceilings"]["bytes_per_second"]
    return {**figures, "decode": measure_decode(what, rate, REPEATS, TURN)}


def time_ours(
    progress: Progress,
    shape: list[int],
    names: list[str],
    dtype: str = "bfloat16",
    repeats: int = REPEATS,
    turn_seconds: float = TURN,
) -> dict[str, Any]:
    """Ours at a shape, taking turns: forward, then forward and backward."""
    at = Shape(*shape)
    plan = Plan(ours={name: OURS[name] for name in names}, dtype=dtype)
    makers = our_makers(at, plan, rule_inputs(at, dtype))
    return _timed(progress, makers, repeats, turn_seconds)


def time_jla(
    progress: Progress, shape: list[int], rule: str, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """One of jax-linear-attention's rules: forward, then forward and backward."""
    jla, x = _jla(), rule_inputs(Shape(*shape), dtype)
    makers = {
        f"jla {rule}, {way}": functools.partial(jla_contender, jla, x, rule, way != "forward")
        for way in DIRECTIONS
    }
    return {**_timed(progress, makers), "versions": jla.versions}


def time_fla(
    progress: Progress, shape: list[int], rule: str, way: str, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """One of flash-linear-attention's rules in one direction."""
    fla = _fla()
    peer = FlaAtShape(fla, rule_inputs(Shape(*shape), dtype))
    make = functools.partial(peer.contender, rule, way != "forward")
    figures = _timed(progress, {f"fla {rule}, {way}": make})
    return {**figures, "versions": fla.versions, "notes": peer.notes}


def train_step(
    progress: Progress, mixer: str, plan: Mapping[str, Any] | None = None, repeats: int = 5
) -> dict[str, Any]:
    """A whole train step with one mixer, and its time by kernel."""
    return measure_mixer(TrainPlan(**(plan or {})), mixer, repeats, profile=True)


def jla_train_step(progress: Progress, plan: Mapping[str, Any], repeats: int = 5) -> dict[str, Any]:
    """A whole train step of one of jax-linear-attention's models."""
    jla, what = _jla(), TrainPlan(**plan)
    figures = measure_step(_jla_program(jla, what), what.length, repeats)
    return {**figures, **_of(what), "versions": jla.versions}


def fla_train_step(progress: Progress, plan: Mapping[str, Any], repeats: int = 5) -> dict[str, Any]:
    """A whole train step of one of flash-linear-attention's models."""
    fla, what = _fla(), TrainPlan(**plan)
    sizes = tuple(what.rows)
    figures = measure_fla(fla, what.model, what.remat, what.length, sizes, repeats)
    return {**figures, **_of(what), "versions": fla.versions}


def profile_ours(
    progress: Progress, shape: list[int], names: list[str], dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Time by kernel of each of ours, in both directions."""
    at = Shape(*shape)
    plan = Plan(ours={name: OURS[name] for name in names}, dtype=dtype)
    figures: dict[str, Any] = dict(progress.earlier or {})
    for name, make in our_makers(at, plan, rule_inputs(at, dtype)).items():
        if name not in figures:
            outcome = attempt(functools.partial(_profiled, make))
            figures[name] = {"left_out": outcome} if isinstance(outcome, str) else outcome
            progress.save(figures)
    return figures


def search_tiles(
    progress: Progress, part: list[Any], table: str, repeats: int = REPEATS
) -> dict[str, Any]:
    """The fastest tiles of a kind of rule, put into a table of one's own.

    It goes on after the candidates that an earlier run had measured.
    """
    _without_selftest()
    search, device = tune.Part(*part), jax.devices()[0].device_kind
    if search.unsupported_reason is not None:
        raise LeftOut(search.unsupported_reason)
    known = {
        Tiles(**one["tiles"]): one["outcome"] for one in (progress.earlier or {}).get("tried", [])
    }

    def save(tried: Mapping[Tiles, float | str]) -> None:
        progress.save({"tried": tune.tried_figures(tried)})

    found = tune.tune_part(search, device, repeats, known=known, save=save)
    tune.keep(search, found, device, Path(table))
    return tune.record(found)


def _without_selftest() -> None:
    """The kernels' test of themselves before their first call is left out: for tasks that call
    none, and for those that compare each call with another implementation anyway."""
    os.environ[guard.SWITCH] = "off"


def _profiled(make: Callable[[], Contender]) -> dict[str, Any]:
    return kernel_times(make())


def _jla() -> Jla:
    jla = load_jla()
    if isinstance(jla, str):
        raise LeftOut(jla)
    return jla


def _fla() -> Fla:
    fla = load_fla()
    if isinstance(fla, str):
        raise LeftOut(fla)
    return fla


def _jla_program(jla: Jla, plan: TrainPlan) -> Training:
    make = functools.partial(jla_program, jla, plan.model, plan.remat, plan.length)
    return fitting(make, tuple(plan.rows))


def _of(plan: TrainPlan) -> dict[str, Any]:
    """What a peer's step was asked for, beside its figures."""
    return {"remat": plan.remat, "length": plan.length, "model": plan.model}


def _compiled(compile_way: Callable[[str], Contender]) -> dict[str, Any]:
    """Seconds of compiling, and peak bytes, of each direction; or why it does not compile."""
    figures: dict[str, Any] = {}
    for way in DIRECTIONS:
        start = time.perf_counter()
        outcome = attempt(functools.partial(compile_way, way))
        if isinstance(outcome, str):
            figures[way] = {"left_out": outcome}
            print(f"{way}: {outcome}", flush=True)
        else:
            seconds = round(time.perf_counter() - start, 2)
            figures[way] = {"seconds": seconds, "peak_bytes": outcome.peak_bytes}
    return figures


def _timed(
    progress: Progress,
    makers: Mapping[str, Callable[[], Contender]],
    repeats: int = REPEATS,
    turn_seconds: float = TURN,
) -> dict[str, Any]:
    """Median seconds and peak bytes by contender, saved after each direction."""
    figures: dict[str, Any] = {"median_seconds": {}, "peak_bytes": {}, "left_out": {}}
    for way in DIRECTIONS:
        made = make_all({n: make for n, make in makers.items() if n.endswith(f", {way}")})
        times = median_seconds(made.contenders, repeats, turn_seconds=turn_seconds)
        figures["median_seconds"].update(times)
        figures["peak_bytes"].update({n: c.peak_bytes for n, c in made.contenders.items()})
        figures["left_out"].update(made.left_out)
        progress.save(figures)
    return figures
