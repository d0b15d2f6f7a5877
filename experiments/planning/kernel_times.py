"""What the kernels of our own take in a train step, predicted from their record.

`pallas_kernels/compiling/budgets.json` has what `pallas_kernels.compiling` predicts of each kernel
from the instructions that XLA's code for it executes, at the official size of a call. Here that is
scaled to the rows, tokens and heads of a device: what is parallel over the sequence by all of them;
what scans it (`_walk…`) in its bytes by all, and in its code by the tokens and by the waves that
its programs take. A scan of few heads is cut into narrower blocks than the record's, which is left
out, and gates of one number per head count as gates of channels. CARVE with gate chunks of
`LONG_CHUNK` tokens or more takes GDN-2's kernels, one chunk after the other, as recorded at
`LONG_CHUNK`; with shorter ones its own, as recorded at 64.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from carve_jax.config import LMConfig
from carve_jax.errors import UserError
from carve_jax.mixers import MIXERS
from pallas_kernels.compiling.budgets import RECORD
from pallas_kernels.compiling.catalogue import OFFICIAL
from pallas_kernels.compiling.chips import CHIPS
from pallas_kernels.compiling.predict import together
from pallas_kernels.triton.op import LONG_CHUNK

Times = dict[tuple[str, str, str], float]
"""Seconds by mixer, "forward" or "backward", and the kernel's name."""
SMS = CHIPS["sm_90"].multiprocessors


def kernel_seconds(
    model: LMConfig, rows: int, length: int, sizes: Mapping[str, int], turns: int
) -> Times:
    """Seconds of all launches in one pass of a step through all layers.

    Args:
      model: whose layers.
      rows: of a batch that are computed at once, on all devices.
      length: tokens of a row.
      sizes: of the mesh, by axis.
      turns: parts that a batch is taken in.

    Raises:
      UserError: nothing is recorded of heads like a mixer's.
    """
    rows //= sizes["data"] * sizes["fsdp"]
    heads, length = model.num_heads // sizes["tensor"], length // sizes["sequence"]
    found: Times = {}
    for mixer in dict.fromkeys(model.pattern):
        if not MIXERS[mixer].state_size(model):
            continue
        layers = turns * model.repeats * model.pattern.count(mixer)
        for phase, kernel, row in _recorded(mixer, model):
            found[mixer, phase, kernel] = layers * _scaled(row, kernel, rows, length, heads)
    return found


def _recorded(mixer: str, model: LMConfig) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Phase, name and record of the kernels of a mixer's rule."""
    program, size = "gdn2", ""
    if MIXERS[mixer].content_lag(model):
        long = MIXERS[mixer].segment_alignment(model) >= LONG_CHUNK
        program, size = "carve", f"L{LONG_CHUNK}" if long else ""
    tile = rf"{program}/{model.key_dim}x{model.value_dim}c\d+{size}/{model.compute_dtype}"
    wanted = re.compile(rf"{tile}/(\w+)/(\w+)")
    kernels = json.loads(RECORD.read_text(encoding="utf-8"))["kernels"]
    found = [(m[1], m[2], row) for key, row in kernels.items() if (m := wanted.fullmatch(key))]
    if not found:
        raise UserError(
            f"--anatomy: no kernels of {mixer} with heads of {model.key_dim} by {model.value_dim} "
            f"in {model.compute_dtype} are recorded; see python -m pallas_kernels.aot --record"
        )
    yield from found


def _scaled(row: Mapping[str, Any], kernel: str, rows: int, length: int, heads: int) -> float:
    """Seconds of one layer's launches, of a kernel as recorded at the official size."""
    chains = rows * heads / (OFFICIAL.batch * OFFICIAL.value_heads)
    tokens = length / OFFICIAL.length
    code = chains
    if kernel.startswith("_walk"):
        resident = SMS * row["blocks"]
        now, then = (math.ceil(row["programs"] * part / resident) for part in (chains, 1))
        code = now / then
    code, moved = row["code_ms"] * code * tokens, row["bytes_ms"] * chains * tokens
    return together(code, moved) / 1e3
