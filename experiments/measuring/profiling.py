"""Time by kernel, as the profiler of the device sees it."""

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from experiments.measuring.timing import Contender, LeftOut

PLANE, LINE = "/device:GPU", "Stream"  # of a trace: the device, and what ran on it
CALLS = 3


def kernel_times(entry: Contender, calls: int = CALLS) -> dict[str, dict[str, float]]:
    """Seconds and launches of each kernel in one call of a contender, the longest first.

    Raises:
      LeftOut: the profiler saw no kernel, as where it has no leave to.
    """
    jax.block_until_ready(entry.compiled(*entry.arguments))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):  # what an earlier call gave may be the next one's to use up
                result = entry.compiled(*entry.arguments)
            jax.block_until_ready(result)
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        found = sum_by_kernel(ProfileData.from_file(str(traces[0])), calls) if traces else {}
    if not found:
        raise LeftOut("the profiler saw no kernel: it may lack permission for the GPU's counters")
    return found


def sum_by_kernel(
    trace: Any, calls: int, plane: str = PLANE, line: str = LINE
) -> dict[str, dict[str, float]]:
    """Seconds and launches per call of the events on a device's streams, by name.

    XLA numbers the copies of a kernel (score_1, score_2, …); they are one here.

    Args:
      trace: a `jax.profiler.ProfileData`.
      calls: that it holds.
      plane, line: parts of the names of what is summed.
    """
    seconds: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for device in trace.planes:
        if plane not in device.name:
            continue
        for stream in device.lines:
            if line not in stream.name:
                continue
            for event in stream.events:
                name = re.sub(r"(_\d+)+$", "", event.name)
                seconds[name] += event.duration_ns / 1e9
                launches[name] += 1
    return {
        name: {"seconds": total / calls, "launches": launches[name] / calls}
        for name, total in seconds.most_common()
    }
