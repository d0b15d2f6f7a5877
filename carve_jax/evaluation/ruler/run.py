"""A probe put to a model: prompts read in chunks, replies decoded greedily, scored as RULER does.

A model whose caches are of constant size needs the same memory at every length: a prompt is read
`prefill_chunk` tokens at a time, and what is kept of it is the cache.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any

import numpy as np

from carve_jax.data.ruler.haystack import Haystack
from carve_jax.data.ruler.probes import Probe, example
from carve_jax.data.sources.stdlib import stdlib_documents
from carve_jax.data.tokenizers.tokenizer import Tokenizer
from carve_jax.evaluation.ruler.score import score
from carve_jax.evaluation.tasks import Result, mean
from carve_jax.generate import generate
from carve_jax.model import LanguageModel
from carve_jax.shapes import Int32

DEPTHS = 5  # parts of the filler that scores are told of apart


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a probe is put to a model.

    Attributes:
      count: examples.
      seed: of the examples.
      haystack: filler of the probes that take one; None for each probe's own: noise, or for those
        that hide in a text the language reference of the Python that runs.
      new_tokens: room for the reply; None for RULER's.
      batch_size: prompts that are read together.
      prefill_chunk: most tokens of them read in one call.
    """

    count: int = 100
    seed: int = 0
    haystack: Haystack | None = None
    new_tokens: int | None = None
    batch_size: int = 8
    prefill_chunk: int = 2048


def language_reference() -> Haystack:
    """The text that every Python carries; it differs a little from version to version.

    Raises:
      UserError: this Python lacks it.
    """
    documents = stdlib_documents(("topics",))
    return Haystack.text("\n".join(d.text.decode() for d in documents), name="language reference")


def run_probe(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    probe: Probe,
    length: int,
    asking: Asking = Asking(),
) -> Result:
    """The accuracy of a model in a probe at one length.

    Args:
      model: the model.
      params: its parameters.
      tokenizer: the model's; prompts begin with its separator, and replies end at it.
      probe: one of PROBES, or another.
      length: tokens of prompt (separator included) and reply together.
      asking: how.

    Returns:
      `accuracy`, the mean score of an example. Of the facts, `forms` says how often each form of
      the probe came, and `accuracy_by_depth` is the mean score of examples by the mean depth of
      their answers, from the first part of the filler to the last.

    Raises:
      UserError: see `example`.
    """
    haystack = asking.haystack
    if haystack is None and probe.filler == "text":
        haystack = language_reference()
    start = np.array([tokenizer.separator], np.int32)

    def encode(text: str) -> Int32[np.ndarray, " tokens"]:
        return np.concatenate([start, tokenizer.encode(text)])

    make = functools.partial(
        example,
        probe,
        length=length,
        encode=encode,
        seed=asking.seed,
        haystack=haystack,
        new_tokens=asking.new_tokens,
    )
    scores: list[float] = []
    parts: list[list[float]] = [[] for _ in range(DEPTHS)]
    forms: Counter[str] = Counter()
    for first in range(0, asking.count, asking.batch_size):
        last = min(first + asking.batch_size, asking.count)
        batch = [make(index) for index in range(first, last)]
        new = generate(
            model,
            params,
            [encode(one.prompt) for one in batch],
            max_new_tokens=max(one.max_new_tokens for one in batch),
            stop_tokens=(tokenizer.separator,),
            prefill_chunk=asking.prefill_chunk,
        )
        for row, one in zip(np.asarray(new), batch, strict=True):
            reply = tokenizer.decode(row[: one.max_new_tokens])
            scores.append(score(reply, one.answers, probe.match))
            forms[one.form] += 1
            if one.depths:
                parts[int(np.mean(one.depths) * DEPTHS)].append(scores[-1])
    facts = {
        "length": length,
        "seed": asking.seed,
        "haystack": haystack.name if haystack is not None else probe.filler,
        "forms": {form: count for form, count in forms.items() if form},
        "accuracy_by_depth": [float(np.mean(part)) if part else None for part in parts],
    }
    return Result({"accuracy": mean(scores)}, facts)
