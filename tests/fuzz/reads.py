"""Finds the code that reads files, so that none is left out of the kinds."""

import ast
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("carve_jax", "experiments", "pallas_kernels")
# Last parts of the names of what opens or parses files, and functions that do so for others.
READS = frozenset(
    {
        *("open", "fdopen", "read_text", "read_bytes", "open_regular", "read_regular"),
        *("parse_json", "read_json", "read_json_lines", "file_digest", "mmap", "memmap"),
        *("fromfile", "loadtxt", "genfromtxt", "safe_open", "load_file", "ParquetFile"),
        *("from_file", "from_pretrained", "run_path", "run_module", "TaskManager", "load_dataset"),
        *("try_lock", "restore", "PyTreeCheckpointer", "safe_load", "read_table", "read_record"),
        *("iter_batches", "digest_of", "SentencePieceProcessor"),
    }
)
OF_MODULES = {"json": ("load", "loads"), "np": ("load",), "numpy": ("load",), "yaml": ("load",)}

# Sites that open no file which anybody could have touched, each with the reason.
_OWN = "the package's own file, as its code is"
_PROC = "of the system"
_WRITES = "it writes"
_MADE = "of a file that this process, or its own child, has just made"
_WORDS = "of text in memory, from another process or its own"
_SHARED = "it hands on what a kind's reader gives"
_PINNED = "of a wheel that was held against its digest in the project's table"
_GENERAL = "what the kinds' readers call: it takes any path"
NOT_FILES = {
    "carve_jax.decoding_file:_plain": _WORDS,
    "carve_jax.evaluation.answers:Answers.add": _WRITES,
    "carve_jax.files.durable:read_regular": _GENERAL,
    "carve_jax.files.durable:read_text": _GENERAL,
    "carve_jax.files.durable:replacing": _WRITES,
    "carve_jax.files.durable:sync_directory": _WRITES,
    "carve_jax.files.durable:write_synced": _WRITES,
    "carve_jax.files.json_files:parse_json": _GENERAL,
    "carve_jax.files.json_files:read_json": _GENERAL,
    "carve_jax.files.json_files:read_json_lines": _GENERAL,
    "carve_jax.files.locks:machine": _PROC,
    "carve_jax.files.paths:open_regular": _GENERAL,
    "carve_jax.training.processes.messages:_short": _WORDS,
    "carve_jax.training.processes.messages:require_same": _WORDS,
    "carve_jax.training.processes.messages:together": _WORDS,
    "carve_jax.training.checkpoints.checkpoint:Checkpoints._steps_of_first": _WORDS,
    "carve_jax.data.token_files.shard_writer:ShardWriter.__enter__": _WRITES,
    "carve_jax.data.sources.stdlib:_modules": "Python's own text",
    "carve_jax.data.tokenizers.tokenizer:LibraryTokenizer.__init__": _WORDS,
    "carve_jax.data.tokenizers.files:_from_hub": "of a server, through its own library",
    "carve_jax.training.processes.distributed:_Watch._listen": _WORDS,
    "carve_jax.training.run:restore_or_init": _SHARED,
    "carve_jax.training.reports.metrics:MetricsLog._files": _WRITES,
    "carve_jax.training.run:load_trained": _SHARED,
    "carve_jax.training.loop:Loop._rewind": _SHARED,
    "experiments.__main__:main": _OWN,
    "experiments.__main__:page": _OWN,
    "experiments.benchmarks.data:measure_preparing": _WRITES,
    "experiments.claims.records:Records.every": "the project's own, committed results",
    "experiments.planning.kernel_times:_recorded": _OWN,
    "experiments.planning.few_heads:_recorded": _OWN,
    "experiments.planning.measured_steps:held_against": "the project's own, committed results",
    "experiments.planning.rates:reached_rates": "the project's own, committed results",
    "experiments.cli:call": "the null device",
    "experiments.preparation.package_docs.made:_key": _OWN,
    "experiments.preparation.package_docs.made:made_file": _MADE,
    "experiments.preparation.package_docs.readers:_json": _PINNED,
    "experiments.preparation.package_docs.wheels:_fetch": _MADE,
    "experiments.measuring.memory:PeakResident._look": _PROC,
    "experiments.fault_injection.kills:Trainer.finish": _MADE,
    "experiments.fault_injection.kills:Trainer.said": _MADE,
    "experiments.fault_injection.kills:Trainer.start": _MADE,
    "experiments.fault_injection.outcome:outcome": _MADE,
    "experiments.measuring.profiling:kernel_times": _MADE,
    "experiments.rented_gpu.__main__:main": _WRITES,
    "experiments.rented_gpu.record:code_name": _OWN,
    "experiments.rented_gpu.schedule:Running.__init__": _MADE,
    "experiments.rented_gpu.schedule:Running.new_figures": _MADE,
    "experiments.rented_gpu.worker:Progress.__init__": _MADE,
    "experiments.rented_gpu.worker:main": _WORDS,
    "experiments.reporting.page:render": _OWN,
    "experiments.reporting.text:write": _OWN,
    "experiments.sweeps.machine:probe": _MADE,
    "experiments.sweeps.runner:Runner._start": _WRITES,
    "experiments.sweeps.process:peak_rss": _PROC,
    "pallas_kernels.compiling.budgets:fingerprint": _OWN,
    "pallas_kernels.compiling.mosaic:compile_kernels": _MADE,
    "pallas_kernels.compiling.xla:_dumped": _MADE,
    "pallas_kernels.compiling.xla:compile_program": _MADE,
    "pallas_kernels.aot:_judge": _OWN,
    "pallas_kernels.aot:_with_xla": _OWN,
    "pallas_kernels.compiling.predict:calibration": _OWN,
    "pallas_kernels.tiling:choose": _OWN,
    "pallas_kernels.tiling:read_table": _OWN,
    "pallas_kernels.verdicts:_driver": _PROC,
    "pallas_kernels.verdicts:sources_digest": _OWN,
    "pallas_kernels.verdicts:write": _WRITES,
}


def sites(source: str, module: str) -> Iterator[str]:
    """Functions, as "module:name", in which a call reads a file."""
    for name, call in _calls(ast.parse(source), ""):
        told = ast.unparse(call.func)
        holder, _, last = told.rpartition(".")
        if last in READS or last in OF_MODULES.get(holder, ()):
            yield f"{module}:{name or '<module>'}"


def _calls(node: ast.AST, name: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}".lstrip(".")
        if isinstance(child, ast.Call):
            yield name, child
        yield from _calls(child, inner)


@functools.cache
def all_sites() -> set[str]:
    """Those of the whole project."""
    found: set[str] = set()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.update(sites(path.read_text("utf-8"), module))
    return found


def called(function: Callable[[], Any]) -> set[str]:
    """The project's functions that run while a function does, as "module:name"."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.split(".")[0] in ROOMS:
            found.add(f"{module}:{frame.f_code.co_qualname.replace('.<locals>', '')}")

    import threading

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found
