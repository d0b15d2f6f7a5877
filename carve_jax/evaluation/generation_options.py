"""What a harness task says of generation, as `generate` takes it.

Tasks and `--gen_kwargs` write for other libraries: numbers as text, 0 or -1 for "no limit", and
options that greedy or plain sampling does not have.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs

from carve_jax.errors import UserError
from carve_jax.files import shown

# Options that other libraries have, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "length_penalty": (1,),
    "min_p": (0,),
    "typical_p": (1,),
}
KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
WORDS = {"true": True, "false": False, "1": True, "0": False}
_said: set[str] = set()


class Generation(NamedTuple):
    """How texts are continued.

    Attributes:
      max_new_tokens: most tokens.
      stops: texts that end a continuation.
      temperature: 0 takes the likeliest token.
      top_k: of the likeliest tokens; None for all.
      top_p: share of the probability; None for all.
    """

    max_new_tokens: int
    stops: tuple[str, ...]
    temperature: float
    top_k: int | None
    top_p: float | None

    @property
    def drawn(self) -> bool:
        """Whether what is written is drawn at random."""
        return self.temperature > 0


def read_options(given: Mapping[str, Any], default_tokens: int) -> Generation:
    """The options of one request.

    An option that is not supported and would change what is written is said once, to stderr.

    Args:
      given: as the task has it.
      default_tokens: most tokens where it does not say.

    Raises:
      UserError: a value that makes no sense, with the option's name.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if "do_sample" in options:
        options["do_sample"] = _truth(options["do_sample"])
    for name in ("temperature", "top_k", "top_p", "max_gen_toks", "max_new_tokens", "max_tokens"):
        if name in options:
            options[name] = _number(name, options[name])
    if isinstance(options.get("until"), tuple):
        options["until"] = list(options["until"])
    if options.get("do_sample"):
        options.setdefault("temperature", 1.0)
    found = dict(normalize_gen_kwargs(options, default_tokens))
    stops = tuple(found.get("until") or ())
    for stop in stops:
        if not isinstance(stop, str):
            _refuse("until", stop, "texts")
    if found["max_gen_toks"] < 0:
        _refuse("max_gen_toks", found["max_gen_toks"], "0 or more")
    _say_unsupported(found)
    if not found["do_sample"]:
        return Generation(found["max_gen_toks"], stops, 0.0, None, None)
    temperature = float(found["temperature"])
    if temperature < 0:
        _refuse("temperature", temperature, "0 (greedy) or more")
    top_k = int(found["top_k"]) if "top_k" in found else 0
    top_p = float(found.get("top_p", 1.0))
    if not 0 < top_p <= 1:
        _refuse("top_p", top_p, "more than 0 and at most 1")
    return Generation(
        found["max_gen_toks"],
        stops,
        temperature,
        top_k if top_k > 0 else None,
        top_p if top_p < 1 else None,
    )


def _truth(value: Any) -> bool:
    truth = WORDS.get(str(value).strip().lower())
    return _refuse("do_sample", value, "true or false") if truth is None else truth


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (name not in ("temperature", "top_p") and number % 1):
        _refuse(name, value, "a number" if name in ("temperature", "top_p") else "a whole number")
    return number


def _refuse(name: str, value: Any, allowed: str) -> Any:
    raise UserError(
        f"the task's generation_kwargs or --gen_kwargs have {name}={shown(value)}: give {allowed}"
    )


def _say_unsupported(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in KNOWN or name in _said or value in NEUTRAL.get(name, ()):
            continue
        _said.add(name)
        print(
            f"generation option {name}={shown(value)} is not supported and is left out",
            file=sys.stderr,
        )
