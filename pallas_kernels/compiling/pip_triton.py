"""Compiles Triton kernels for a GPU that need not be present, and says what each one takes.

The `triton` package brings its own assembler (ptxas), so neither a GPU nor CUDA is needed. The
figures are those of the installed Triton: the one inside XLA, which compiles the kernels in
production, may be of another version.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pallas_kernels.compiling.sass import CountError, execute
from pallas_kernels.compiling.toolchain import disassemble


@dataclass(frozen=True)
class TritonFunction:
    """A `@triton.jit` function (`package.module:function`) and the types it is compiled for."""

    path: str
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Request:
    """One kernel to compile; equal requests are one piece of work.

    `source` is Triton IR as text, or a Triton function. `arch` is a name such as `sm_90`.
    """

    source: str | TritonFunction
    num_warps: int
    num_stages: int
    arch: str


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
      registers: 32-bit registers per thread (255 at most).
      stack_bytes: local-memory frame of a thread; spilled values and indexed arrays live there.
      spill_bytes: bytes that spilling stores and loads per thread, counted once per instruction.
      shared_bytes: shared memory per block.
      tensor_memory_columns: of tensor memory per block (sm_100; 0 elsewhere).
      wgmma, mma_sync, tcgen05: tensor-core instructions in the PTX, by family.
      wgmma_serialized: ptxas gave up overlapping wgmma instructions, which costs speed.
      seconds: wall time of the compilation, from IR to machine code.
      executed: instructions of one warp by category; empty where the code does not tell how often
        a loop runs.
    """

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    tensor_memory_columns: int
    wgmma: int
    mma_sync: int
    tcgen05: int
    wgmma_serialized: bool
    seconds: float
    executed: Mapping[str, int] = field(default_factory=dict)

    @property
    def tensor_core_instructions(self) -> int:
        """Instructions of all families of tensor cores together."""
        return self.wgmma + self.mma_sync + self.tcgen05


def compile_triton_ir(ir_text: str, num_warps: int, num_stages: int, arch: str) -> Resources:
    """Compiles a module of Triton IR (text) that holds one kernel.

    Raises:
      Exception: whatever the compiler or the assembler raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ttir")
        path.write_text(ir_text, encoding="utf-8")
        return _compile(str(path), num_warps, num_stages, arch)


def compile_triton_function(
    function: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    arch: str,
) -> Resources:
    """Compiles a `@triton.jit` function; its pointers are taken as 16-byte aligned, as JAX's are.

    Args:
      function: the decorated function.
      signature: Triton type of each runtime argument by name (`*bf16`, `fp32`, `i32`).
      constexprs: value of each compile-time argument by name.
      num_warps, num_stages: as at the call.
      arch: a name such as `sm_90`.

    Raises:
      ValueError: an argument without a type or value, or one that the function does not have.
      Exception: whatever the compiler or the assembler raised.
    """
    from triton.compiler import ASTSource

    given = {**signature, **constexprs}
    if set(given) != set(function.arg_names):
        raise ValueError(
            f"{function.__name__} takes the arguments {function.arg_names}, but types or values "
            f"are given for {sorted(given)}; give each argument one of the two"
        )
    types = {name: signature.get(name, "constexpr") for name in function.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(function.arg_names)
        if types[name].startswith("*")
    }
    source = ASTSource(function, types, dict(constexprs), aligned)
    return _compile(source, num_warps, num_stages, arch)


def compile_kernel(request: Request) -> Resources:
    """Compiles what a request asks for; raises what the compiler raises."""
    source, options = request.source, (request.num_warps, request.num_stages, request.arch)
    if isinstance(source, str):
        return compile_triton_ir(source, *options)
    module, _, name = source.path.partition(":")
    function = getattr(importlib.import_module(module), name)
    return compile_triton_function(
        function, dict(source.signature), dict(source.constexprs), *options
    )


def compile_all(
    requests: Sequence[Request], workers: int | None = None
) -> dict[Request, Resources | str]:
    """Compiles each distinct request once, in parallel processes (in this one if `workers` is 1).

    A compiler that takes its process down (LLVM aborts on internal errors) fails that kernel alone.

    Returns:
      By request, its resources or, in one line, why it does not compile.
    """
    distinct = list(dict.fromkeys(requests))
    workers = min(workers or os.cpu_count() or 1, len(distinct))
    if workers <= 1:
        return {request: _attempt(request) for request in distinct}
    done = _run_in_pool(distinct, workers)
    for request in distinct:  # those that a crash took along, each apart: one of them is to blame
        if request not in done:
            crashed = f"the compiler crashed (num_warps={request.num_warps})"
            done[request] = _run_in_pool([request], 1).get(request, crashed)
    return done


def _run_in_pool(requests: Sequence[Request], workers: int) -> dict[Request, Resources | str]:
    """Compiles in fresh processes; requests whose process (or pool) died are left out."""
    done: dict[Request, Resources | str] = {}
    # Spawned, not forked: JAX runs threads, and a fork of a threaded process can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Request, Future[Resources | str]] = {}
        with contextlib.suppress(BrokenProcessPool):
            for request in requests:
                futures[request] = pool.submit(_attempt, request)
        for request, future in futures.items():
            with contextlib.suppress(BrokenProcessPool):
                done[request] = future.result()
    return done


def _attempt(request: Request) -> Resources | str:
    try:
        return compile_kernel(request)
    except Exception as error:  # Triton raises many types; all mean that there is no kernel
        return summary(error)


def summary(error: Exception) -> str:
    """An exception in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _compile(source: Any, num_warps: int, num_stages: int, arch: str) -> Resources:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    # Fused multiply-adds, as in XLA and jax_triton; Triton's own default is about to change.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    log = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as cache,
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        knobs.cache.dir = cache
        knobs.compilation.always_compile = True  # a cached kernel has no log and takes no time
        knobs.nvidia.dump_ptxas_log = True  # printed on stdout
        start = time.perf_counter()
        kernel = triton.compile(source, target=target, options=options)
        seconds = time.perf_counter() - start
    ptx = kernel.asm["ptx"]
    return Resources(
        **read_assembler_log(log.getvalue()),
        shared_bytes=kernel.metadata.shared,
        tensor_memory_columns=getattr(kernel.metadata, "tmem_size", None) or 0,
        wgmma=len(re.findall(r"\bwgmma\.mma_async", ptx)),
        mma_sync=len(re.findall(r"\bmma\.sync", ptx)),
        tcgen05=len(re.findall(r"\btcgen05\.mma", ptx)),
        wgmma_serialized="wgmma.mma_async instructions are serialized" in log.getvalue(),
        seconds=seconds,
        executed=_executed(kernel.asm["cubin"]),
    )


def _executed(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (code,) = disassemble(Path(file.name)).values()
    try:
        return dict(execute(code).instructions.most_common())
    except CountError:
        return {}


def read_assembler_log(log: str) -> dict[str, int]:
    """Registers, stack and spilled bytes from what `ptxas -v` says of one kernel.

    Raises:
      RuntimeError: it says none of this.
    """
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    registers = re.findall(r"Used (\d+) registers", log)
    if not frames or not registers:
        raise RuntimeError(f"ptxas reported no registers and stack; it said: {log[-200:]!r}")
    return {
        "registers": max(int(count) for count in registers),
        "stack_bytes": sum(int(stack) for stack, _, _ in frames),
        "spill_bytes": sum(int(stores) + int(loads) for _, stores, loads in frames),
    }
