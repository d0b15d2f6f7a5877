"""The evaluate suite: what an evaluation keeps of a forward pass's throughput, at what length.

Shares are tokens per second of an evaluation (tokens that are given and asked for, without padding)
over those of plain forward passes with all logits at full batches of 512 tokens per row. They may
exceed 1: logits are computed where they are asked for alone, and a shared context is read once.
Compilation is over before the clock starts, as it is once for thousands of requests.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.evaluation.continuing import continue_texts
from carve_jax.evaluation.scoring import Request, Scorer
from carve_jax.model import LanguageModel
from experiments.benchmarks import patterns
from experiments.measuring.memory import PeakResident
from experiments.measuring.timing import Contender, median_seconds

ROW = 512  # tokens of a row of the plain forward pass
CALL = 4096  # most tokens of a call, and those of a plain forward pass


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
      patterns: of mixers, joined by "+".
      contexts: of the multiple-choice requests; lengths are log-normal, as those of questions.
      choices: of each context.
      documents: scored whole.
      document: tokens of each.
      lengths: of one document that is scored whole; rising.
      model: fields of `LMConfig`.
    """

    patterns: tuple[str, ...] = ("carve", "gdn2")
    contexts: int = 48
    choices: int = 4
    documents: int = 4
    document: int = 8192
    lengths: tuple[int, ...] = (1024, 8192, 32_768, 131_072)
    model: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "vocab_size": 2048,
            "d_model": 128,
            "layers": 2,
            "mlp_dim": 352,
            "num_heads": 2,
            "key_dim": 32,
            "value_dim": 64,
        }
    )


def make_plan(lengths: list[str], only: tuple[str, ...]) -> Plan:
    """The plan of the command's flags.

    Raises:
      UserError: lengths that are no rising numbers, or no such pattern.
    """
    plan = Plan()
    told = patterns.Plan(patterns=plan.patterns, lengths=plan.lengths)
    told = patterns.make_plan(lengths, only, told)
    return dataclasses.replace(plan, patterns=told.patterns, lengths=told.lengths)


def evaluate_suite(
    repeats: int, save: Callable[[dict[str, Any]], None], plan: Plan
) -> dict[str, Any]:
    """Every pattern of the plan; `save` is called with what there is so far."""
    figures: dict[str, Any] = {"plan": dataclasses.asdict(plan), "patterns": {}}
    for name in plan.patterns:
        model, params = patterns.random_model(name, patterns.Plan(model=plan.model))
        at: dict[str, Any] = figures["patterns"].setdefault(name, {})
        at |= measure_shares(model, params, plan, repeats)
        print_shares(name, at)
        save(figures)
        at["growth"] = measure_growth(model, params, plan, repeats)
        print_growth(name, at["growth"])
        save(figures)
    return figures


def choice_requests(plan: Plan, vocabulary: int) -> list[Request]:
    """Questions of about 110 tokens with choices of about 10."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(plan.contexts):
        length = int(np.clip(draw.lognormal(4.6, 0.5), 16, ROW))
        context = draw.integers(0, vocabulary, length, np.int32)
        for _ in range(plan.choices):
            size = int(np.clip(draw.lognormal(2.1, 0.6), 1, 64))
            found.append(Request(context, draw.integers(0, vocabulary, size, np.int32)))
    return found


def measure_shares(model: LanguageModel, params: Any, plan: Plan, repeats: int) -> dict[str, Any]:
    """Tokens per second of each kind of evaluation, and their share of the forward pass's."""
    vocabulary = model.config.vocab_size
    draw = np.random.default_rng(1)
    choices = choice_requests(plan, vocabulary)
    documents = [
        Request(row[:1], row[1:])
        for row in draw.integers(0, vocabulary, (plan.documents, plan.document), np.int32)
    ]
    prompts = [request.context for request in choices[:: plan.choices]]
    make = functools.partial(Scorer, model, params, batch_size=32, call_tokens=CALL)
    alone, shared = make(share_contexts=False), make()
    tokens = jnp.asarray(draw.integers(0, vocabulary, (CALL // ROW, ROW), np.int32))
    forward = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens)[0])
    write = functools.partial(
        continue_texts, model, params, prompts, str, max_new_tokens=32, end=-1, call_tokens=CALL
    )
    asked = sum(len(r.context) + len(r.continuation) for r in choices)
    kinds: dict[str, tuple[Callable[[], Any], int]] = {
        "forward pass": (lambda: forward(params, tokens), tokens.size),
        "multiple choice": (lambda: shared.score(choices), asked),
        "multiple choice, contexts read again": (lambda: alone.score(choices), asked),
        "long documents": (lambda: shared.score(documents), plan.documents * plan.document),
        "continuations of 32 tokens": (write, sum(len(p) + 32 for p in prompts)),
    }
    work = {}
    for name, scorer in (("shared", shared), ("alone", alone)):
        scorer.score(choices)
        work[name] = scorer.counts._asdict()
    seconds = median_seconds(
        {name: Contender(run, (), 0) for name, (run, _) in kinds.items()}, repeats
    )
    rates = {name: count / seconds[name] for name, (_, count) in kinds.items()}
    return {
        "share_of_forward": {
            name: round(rate / rates["forward pass"], 3) for name, rate in rates.items()
        },
        "tokens_per_second": rates,
        "multiple_choice_work": work,
        "read_over_requested": round(work["shared"]["read"] / work["shared"]["requested"], 3),
    }


def measure_growth(model: LanguageModel, params: Any, plan: Plan, repeats: int) -> dict[str, Any]:
    """Seconds to score one document of each length, and the most that the process then held."""
    draw = np.random.default_rng(2)
    scorer = Scorer(model, params, call_tokens=CALL)
    rows = {n: draw.integers(0, model.config.vocab_size, n, np.int32) for n in plan.lengths}
    asked = {n: [Request(row[:1], row[1:])] for n, row in rows.items()}
    for requests in asked.values():
        scorer.score(requests)
    taken: dict[int, list[float]] = {n: [] for n in plan.lengths}
    held = dict.fromkeys(plan.lengths, 0)
    for _ in range(max(3, repeats // 3)):
        for length, requests in asked.items():
            with PeakResident() as resident:
                start = time.perf_counter()
                scorer.score(requests)
                taken[length].append(time.perf_counter() - start)
            held[length] = max(held[length], resident.bytes)
    median = {n: float(np.median(times)) for n, times in taken.items()}
    # Length by length behind the first, which is one call and not many.
    long = [n for n in plan.lengths if n > CALL]
    slope = np.polyfit(np.log(long), np.log([median[n] for n in long]), 1)[0] if long[1:] else None
    return {
        "power": None if slope is None else round(float(slope), 3),
        "memory_ratio": round(held[plan.lengths[-1]] / held[plan.lengths[0]], 3),
        "lengths": {
            str(n): {
                "seconds": round(median[n], 4),
                "microseconds_a_token": round(1e6 * median[n] / n, 3),
                "resident_bytes": held[n],
            }
            for n in plan.lengths
        },
    }


def print_shares(name: str, figures: Mapping[str, Any]) -> None:
    """A line for each kind of evaluation, the ratio first."""
    print(f"{name:<40} {'share of forward':>17} {'tokens/s':>10}")
    for kind, share in figures["share_of_forward"].items():
        print(f"  {kind:<38} {share:>17.2f} {figures['tokens_per_second'][kind]:>10,.0f}")
    print(f"  {'tokens read / asked, contexts shared':<38} {figures['read_over_requested']:>17.2f}")


def print_growth(name: str, figures: Mapping[str, Any]) -> None:
    """A line for each length."""
    print(f"  one document, time ~ length^{figures['power']}, memory × {figures['memory_ratio']}")
    for length, at in figures["lengths"].items():
        print(
            f"  {int(length):>10,} tokens {at['seconds']:>9.2f} s "
            f"{at['microseconds_a_token']:>9.1f} µs per token {at['resident_bytes'] / 1e6:>8.0f} MB"
        )
