"""Fills Triton's cache with flash-linear-attention's tuning variants, shared out over processes.

At its first call a kernel of the peer compiles and times each of its variants, some 300 for one
rule, one after another on one core. Here N processes compile every N-th variant each and time none,
so that the process that measures finds them all compiled.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.measuring.rule_calls import Shape, rule_inputs
from experiments.measuring.timing import LeftOut
from experiments.peers.fla import Fla, FlaAtShape, load_fla
from experiments.peers.fla_steps import run_short


def compile_share(shape: Shape, dtype: str, rule: str, backward: bool, part: int, of: int) -> None:
    """Compiles the part-th of `of` shares of a rule's variants; changes Triton in this process.

    Args:
      shape: batch, heads and channels must be those that are measured, which variants depend on;
        the length may be a small one, and the processes then fit on one card.
      dtype: of the inputs.
      rule: "gdn2" or "kda".
      backward: those of forward and backward, or of forward alone.
      part, of: which share, counted from 0.

    Raises:
      LeftOut: the peer is not here.
    """
    fla = _patched(part, of)
    x = rule_inputs(shape, dtype)
    jax.block_until_ready(x)
    FlaAtShape(fla, x).call(rule, backward)


def compile_step_share(model: Mapping[str, Any], length: int, part: int, of: int) -> None:
    """The same of the layers of a model: forward and backward of one repeat of its pattern.

    Args:
      model: fields of our section `model`.
      length: tokens of the one row, which may be few.
      part, of: which share, counted from 0.

    Raises:
      LeftOut: the peer, or a package that its layers need, is not here.
    """
    run_short(_patched(part, of), model, length)


def _patched(part: int, of: int) -> Fla:
    fla = load_fla()
    if isinstance(fla, str):
        raise LeftOut(fla)
    _patch_triton(part, of)
    return fla


def share_of(configs: list[Any], part: int, of: int) -> list[Any]:
    """Every of-th variant from the part-th on, and the safest one, with which the kernel then runs.

    A process that has only variants that this card refuses could not go on to the next kernel: the
    safest has the most usual warps, the fewest stages and the smallest blocks.
    """

    def risk(config: Any) -> tuple[int, int, int]:
        blocks = sum(value for value in config.kwargs.values() if isinstance(value, int))
        return abs((config.num_warps or 4) - 4), config.num_stages or 2, blocks

    safest = min(configs, key=risk)
    return [c for i, c in enumerate(configs) if i % of == part or c is safest]


def run_once(function: Callable[[], Any], *_: Any, quantiles: Any = None, **__: Any) -> Any:
    """In place of Triton's timing of a variant: compiled and run once, all equally fast."""
    function()
    return [1.0] * len(quantiles) if quantiles else 1.0


def _patch_triton(part: int, of: int) -> None:
    import triton.testing
    from triton.runtime.autotuner import Autotuner

    every = Autotuner.prune_configs

    def pruned(self: Any, kwargs: Any) -> list[Any]:
        return share_of(every(self, kwargs), part, of)

    def not_from_disk(self: Any, key: Any, configs: Any, time_all: Callable[[], None]) -> bool:
        # Nor to it: a process that measures would take these times, all alike, for a choice.
        time_all()
        return False

    triton.testing.do_bench = run_once
    Autotuner.prune_configs = pruned
    Autotuner.check_disk_cache = not_from_disk
