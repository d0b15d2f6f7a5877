"""What the `data` section of a config may say, with its defaults and its checks."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from carve_jax.errors import UserError

SYNTHETIC = (
    "mqar", "overwriting_recall", "selective_copying", "state_tracking", "content_erase", "ruler",
)  # fmt: skip
"""The sources that are tasks of `synthetic`, made up and not read."""
SOURCES = ("stdlib", "token_files", "mixture", *SYNTHETIC)
GROUPS = {"parity": 2, "s3": 3, "s5": 5}
"""Groups of "state_tracking": all permutations of so many things."""

PARTS = ("topics", "docstrings", "sources")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data section.

    Attributes:
      source: "stdlib" (text of the Python that runs), "token_files", "mixture", or a synthetic task
        ("mqar", "overwriting_recall", "selective_copying", "state_tracking", "content_erase",
        "ruler").
      parts: of "stdlib": any of "topics" (the language reference), "docstrings", "sources".
      tokenizer: of "stdlib": "bytes", "bpe" (trained on the training documents), the path of a
        tokenizer's file, or "hf:NAME" (see `open_tokenizer`). Token files name their own.
      vocab_size: of "bpe" (separator included) and of the tasks, but for "state_tracking", whose
        tokens are the elements of its group, and "ruler", whose are bytes.
      path: the directory of the token files, as `experiments.prepare_data` writes it; of "ruler": a
        text file to hide needles in, where noise will not do.
      paths: of "mixture": directories of token files, all of one tokenizer.
      weights: of "mixture": the share of the rows that comes from each path; their sum is the
        whole.
      verify: of "token_files" and "mixture": whether every byte is held against its SHA-256 before
        training. Without it, sizes, headers and offsets are, and tokens when they are first read.
      eval_fraction: of "stdlib": expected share of the documents that is held out.
      num_pairs: of "mqar", "overwriting_recall" and "content_erase": different keys of an example.
      num_queries: of the same: how many of the keys are asked for; 0 asks for all, as Zoology does.
        Of "selective_copying": tokens to copy.
      num_writes: of "overwriting_recall" and "content_erase": how often each key is written.
      power_a: of "mqar": exponent of the law of the gaps; 1 is uniform, small favours short gaps.
      group: of "state_tracking": "parity", "s3" or "s5" (all permutations of 2, 3 or 5 things).
      probe: of "ruler": the name of one of RULER's probes, such as "niah_single_1".
      shortest: of "ruler": examples of mixed lengths, from so many tokens to a row's, as many of
        each doubling; 0 for all as long as the row.
      eval_examples: of the tasks: size of the fixed held-out set.

    Raises:
      UserError: a value that is not allowed; the sentence says what is.
    """

    source: str = "stdlib"
    parts: tuple[str, ...] = ("topics", "docstrings")
    tokenizer: str = "bytes"
    vocab_size: int = 1024
    path: str = ""
    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    verify: bool = False
    eval_fraction: float = 0.05
    num_pairs: int = 8
    num_queries: int = 0
    num_writes: int = 3
    power_a: float = 0.01
    group: str = "parity"
    probe: str = "niah_single_1"
    shortest: int = 0
    eval_examples: int = 1024

    def __post_init__(self) -> None:
        check_name("data.source", self.source, SOURCES)
        if not self.parts:
            raise UserError(f"data.parts is empty; give at least one of {_listed(PARTS)}.")
        for part in self.parts:
            check_name("data.parts", part, PARTS)
        if {"docstrings", "sources"} <= set(self.parts):
            raise UserError(
                "data.parts names both 'docstrings' and 'sources', but the sources hold the "
                "docstrings; give one of the two."
            )
        check_fraction("data.eval_fraction", self.eval_fraction)
        if self.source == "mixture":
            self._check_mixture()

    def _check_mixture(self) -> None:
        if not self.paths or len(self.paths) != len(self.weights):
            raise UserError(
                f"data.paths names {len(self.paths)} directories and data.weights has "
                f"{len(self.weights)} numbers; a mixture needs one weight for each directory."
            )
        for path, weight in zip(self.paths, self.weights, strict=True):
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise UserError(f"data.weights gives {path!r} {weight!r}; give a number above 0.")
            if not 0.0 < weight < float("inf"):
                raise UserError(
                    f"data.weights gives {path!r} the weight {weight}; give a finite number above "
                    "0, or leave the directory out."
                )
            if self.paths.count(path) > 1:
                raise UserError(
                    f"data.paths names {path!r} more than once; name it once, with the sum of its "
                    "weights."
                )

    @classmethod
    def from_config(cls, config: "Mapping[str, Any] | DataConfig") -> "DataConfig":
        """Reads a ConfigDict or any mapping, whose absent keys take the defaults.

        Raises:
          UserError: a key that is not a field (the nearest one is offered), or a bad value.
        """
        if isinstance(config, DataConfig):
            return config
        values = dict(config)
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            check_name("the data section", name, names, what="key")
        for name in ("parts", "paths"):
            if name in values:
                given = values[name]
                values[name] = (given,) if isinstance(given, str) else tuple(given)
        if "weights" in values:
            given = values["weights"]
            values["weights"] = (given,) if isinstance(given, (int, float)) else tuple(given)
        return cls(**values)


def check_name(where: str, given: str, allowed: Iterable[str], what: str = "value") -> None:
    """Raises UserError naming the allowed values, the nearest first, unless `given` is one."""
    allowed = tuple(allowed)
    if given in allowed:
        return
    near = difflib.get_close_matches(str(given), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(f"{where} has the {what} {given!r}, allowed are {_listed(allowed)}{hint}")


def check_fraction(where: str, value: float) -> None:
    """Raises UserError unless 0 < value < 1."""
    if not 0.0 < value < 1.0:
        raise UserError(f"{where} is {value}; give a share between 0 and 1, both excluded.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
