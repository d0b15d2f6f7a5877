"""What every number of a config may be: one table, looked up before anything is made.

A number out of its range trains to the end without a word: a negative clip climbs the loss, a beta
of 1.5 is no average, NaN compares with nothing.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from carve_jax.errors import UserError

INT32 = 2**31 - 1  # steps, tokens of a row and ids are counted in 32 bits
SEED = 2**32 - 1  # a larger one would be cut to 32 bits, and stand for another


class Range(NamedTuple):
    """Numbers from `least` to `most`, both allowed unless open.

    Attributes:
      whole: no fraction is allowed; a number is never a bool.
      note: what the field's zero or its bounds mean, as a clause.
      unset: whether None is allowed.
    """

    least: float
    most: float
    whole: bool = False
    open_least: bool = False
    open_most: bool = False
    note: str = ""
    unset: bool = False

    def has(self, value: Any) -> bool:
        """Whether a value is one of these numbers."""
        if value is None:
            return self.unset
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        if type(value) is float and not math.isfinite(value):
            return False
        above = value > self.least if self.open_least else value >= self.least
        return above and (value < self.most if self.open_most else value <= self.most)

    def __str__(self) -> str:
        """The range in words, such as "a whole number of at least 1 and at most 1,000,000"."""
        least = f"{'above' if self.open_least else 'of at least'} {self.least:,}"
        most = f" and {'below' if self.open_most else 'at most'} {self.most:,}"
        return f"{'a whole' if self.whole else 'a'} number {least}{most}{self.note}"


def whole(least: int, note: str = "", most: int = INT32, unset: bool = False) -> Range:
    """Whole numbers that 32 bits can count."""
    return Range(least, most, whole=True, note=note, unset=unset)


COUNT, OR_NONE = whole(1), whole(0, ", or 0 for none")
SHARE = Range(0.0, 1.0, open_most=True)
FACTOR = Range(0.0, 1e30, note=", and 0 turns it off")
AXIS = Range(-1, INT32, whole=True, note=", and not 0: -1 takes all the devices that are left")
SIZE, OPTIONAL = COUNT, whole(1, unset=True)
OPTIONAL_NUMBER = Range(0.0, 1e30, unset=True)

TABLE: Mapping[str, Range] = {
    **dict.fromkeys(
        (
            *("batch_size", "sequence_length", "steps", "loss_chunk"),
            *("eval_every", "log_every", "checkpoint_every", "keep_checkpoints"),
        ),
        COUNT,
    ),
    **dict.fromkeys(("keep_every", "keep_best", "log_norms_every", "sample_tokens"), OR_NONE),
    "seed": Range(0, SEED, whole=True),
    "z_loss": Range(0.0, 1e6),
    "watchdog_seconds": Range(0.0, 1e9, note=", of seconds, or 0 for no watchdog"),
    "optimizer.peak_learning_rate": Range(0.0, 1e6, open_least=True),
    "optimizer.warmup_fraction": SHARE._replace(note="; the official recipe uses 0.01"),
    "optimizer.final_fraction": Range(0.0, 1.0),
    "optimizer.weight_decay": Range(0.0, 1e6),
    "optimizer.beta1": SHARE,
    "optimizer.beta2": SHARE,
    "optimizer.clip_norm": Range(
        0.0, 1e30, open_least=True, note="; to clip nothing, give a large one, such as 1e9"
    ),
    "optimizer.accumulate_steps": COUNT,
    "optimizer.content_up_lr_factor": Range(0.0, 1e6, note=", and 0 leaves P_up as it starts"),
    **dict.fromkeys((f"mesh.{axis}" for axis in ("data", "fsdp", "tensor", "sequence")), AXIS),
    "guard.loss_factor": FACTOR,
    "guard.grad_factor": FACTOR,
    "guard.window": whole(2, most=1_000_000),
    "guard.limit": COUNT,
    **dict.fromkeys(
        (
            f"model.{name}"
            for name in (
                *("vocab_size", "d_model", "layers", "mlp_dim", "num_heads", "key_dim"),
                *("value_dim", "conv_width", "mimo_rank", "window"),
                "chunk_size",
            )
        ),
        SIZE,
    ),
    **dict.fromkeys(
        (
            f"model.{name}"
            for name in (
                *("num_key_heads", "attention_heads", "attention_kv_heads", "attention_head_dim"),
            )
        ),
        OPTIONAL,
    ),
    "model.gates.content_scale": Range(0.0, 1e6, open_least=True, unset=True),
    "model.gates.erase_bias": Range(-1e3, 1e3, unset=True),
    "model.rope_theta": Range(0.0, 1e30, open_least=True),
    "model.norm_eps": Range(0.0, 1.0, open_least=True),
    "data.vocab_size": COUNT,
    "data.eval_fraction": Range(0.0, 1.0, open_least=True, open_most=True),
    "data.num_pairs": COUNT,
    "data.num_queries": whole(0, ", and 0 asks for all"),
    "data.num_writes": COUNT,
    "data.power_a": Range(0.0, 1e6, open_least=True),
    "data.shortest": whole(0, ", and 0 makes all examples as long as a row"),
    "data.eval_examples": COUNT,
}


def check_number(name: str, value: Any, table: Mapping[str, Range] = TABLE) -> None:
    """Raises UserError for a number out of the range that the table gives for the dotted name."""
    allowed = table[name]
    if not allowed.has(value) or (allowed is AXIS and value == 0):
        raise UserError(f"config.{name} is {_shown(value)}, but must be {allowed}")


def check_numbers(
    section: Mapping[str, Any], where: str = "", table: Mapping[str, Range] = TABLE
) -> None:
    """Checks all numbers of a config, or of the section of a dotted name, that are there.

    Raises:
      UserError: one is out of its range; names it, and the range.
    """
    for name, allowed in table.items():
        if not name.startswith(where):
            continue
        found: Any = section
        for part in name.removeprefix(where).split("."):
            found = found.get(part, allowed) if isinstance(found, Mapping) else allowed
        if found is not allowed:  # it is there
            check_number(name, found, table)


def _shown(value: Any) -> str:
    if type(value) is int and abs(value) > 10**18:
        return f"a number of {len(str(abs(value)))} digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
