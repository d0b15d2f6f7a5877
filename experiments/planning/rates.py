"""What a device does in a second: by its datasheet, or as the benchmark measured it."""

import math
from pathlib import Path
from typing import NamedTuple

from carve_jax.errors import UserError
from carve_jax.files import (
    Maybe,
    check_shape,
    local_path,
    parse_json,
    read_json,
    read_text,
    reason_of,
)
from experiments.planning.chips import CHIPS, MACHINE, Chip

FIGURES = Path(__file__).parents[1] / "results" / "2026-11-27_h100" / "figures.json"
"""What was measured on one H100."""
MEASURED = {
    "ceilings": {"flop_per_second": float, "bytes_per_second": float},
    "devices": Maybe([str]),
}
"""What a result of the gpu suite holds, as `check_shape` takes it."""


class Rates(NamedTuple):
    """What a device does in a second, and who says so."""

    flops: float
    bandwidth: float
    sending: float
    source: str


def datasheet_rates(chip: Chip, chips: int) -> Rates:
    """The chip's rates; more than one machine is as slow as the network between them."""
    inside = chips <= MACHINE
    link = "NVLink within the machine" if inside else "the network between machines"
    return Rates(
        chip.flops,
        chip.bandwidth,
        chip.nvlink if inside else chip.network,
        f"the datasheet's; devices send over {link}",
    )


def reached_rates(chip: Chip, chips: int) -> Rates:
    """What a chip does if it reaches of its datasheet what one H100 was measured to reach."""
    ceilings = read_json(FIGURES)["ceilings"]
    h100, own = CHIPS["h100"], datasheet_rates(chip, chips)
    return Rates(
        ceilings["bfloat16_product_flop_per_second"] / h100.flops * own.flops,
        ceilings["copy_bytes_per_second"] / h100.bandwidth * own.bandwidth,
        own.sending,
        "of a copy and of a bfloat16 product as one H100 was measured to reach them "
        f"(experiments/results/{FIGURES.parent.name}), other chips in proportion to their "
        f"datasheets; sending is {own.source}",
    )


def find_rates(path: str | None, chip: Chip, chips: int) -> Rates:
    """The datasheet's rates, or those that the gpu suite of the benchmark measured.

    Raises:
      UserError: a file without them.
    """
    rates = datasheet_rates(chip, chips)
    if not path:
        return rates
    try:
        record = parse_json(read_text(local_path(path, "--rates")))
        check_shape(record, MEASURED)
        measured = record["ceilings"]
        found = measured["flop_per_second"], measured["bytes_per_second"]
        if not all(0 < rate < math.inf for rate in found):
            raise ValueError("a rate must be a number above 0")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--rates={path} holds no measured rates ({reason_of(error)}): give a result of "
            "experiments.benchmark --suite=gpu"
        ) from error
    where = ", ".join(sorted(set(record.get("devices") or ["a device without a name"])))
    return Rates(*found, rates.sending, f"measured on {where} ({path}); sending by the datasheet")
