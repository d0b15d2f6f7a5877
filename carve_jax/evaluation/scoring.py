"""Log-likelihoods of continuations, in batches by length, with contexts read once.

A request is a context and a continuation, both tokens; its score is log P(continuation | context).
The whole of a long document is a request too: what was read is carried through the cache, so that
memory does not grow with its length and every token sees all that came before it.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from carve_jax.decoding import prefill
from carve_jax.errors import UserError
from carve_jax.evaluation.batching import LEAST_LENGTH, batches, bucket, pad
from carve_jax.mixers.base import Cache
from carve_jax.model import LanguageModel, LMConfig
from carve_jax.shapes import Array, Bool, Float, Float32, Int32

Tokens = Int32[np.ndarray, " T"]
LEAST_READ = 16  # tokens of a row behind a shared context
LEAST_SCORED = 16
LEAST_SHARED = 32  # tokens; a shorter context is read again for each of its continuations


class Request(NamedTuple):
    """Tokens that are given, at least one, and those whose likelihood is asked for."""

    context: Tokens
    continuation: Tokens


class Score(NamedTuple):
    """Of a continuation.

    Attributes:
      log_likelihood: in nats, summed over its tokens in float64.
      greedy: every token of it is the likeliest one.
    """

    log_likelihood: float
    greedy: bool


class Counts(NamedTuple):
    """Work done so far.

    Attributes:
      requested: tokens of contexts and continuations, each counted for each request.
      read: tokens that the model was run on.
      computed: those and the padding.
      programs: shapes that were compiled.
    """

    requested: int
    read: int
    computed: int
    programs: int


class _Row(NamedTuple):
    """A request on its way: what is still to read, of which the last targets are scored.

    Attributes:
      tokens: input, the last token of the continuation left out.
      targets: the continuation; the last of the input predicts its last.
      number: of the request.
      prefix: number of what was read before, or 0.
    """

    tokens: Tokens
    targets: Tokens
    number: int
    prefix: int = 0


class Scorer:
    """Scores requests with a model.

    Args:
      model: any pattern of mixers.
      params: its parameters.
      batch_size: most rows of a call.
      call_tokens: most tokens of a call, padding included; longer rows are read in several.
      max_length: most tokens of a row, context and continuation; None for no limit. Full attention
        sees what it was trained on, so that a limit is due; a recurrent model needs none.
      share_contexts: read a context that several requests share once, and go on from copies of the
        cache; the scores are the same to rounding.
      progress: show a bar.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Any,
        *,
        batch_size: int = 32,
        call_tokens: int = 16384,
        max_length: int | None = None,
        share_contexts: bool = True,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.params = params
        self.batch_size = batch_size
        # Calls start where a gate chunk does, so that padding may stand before a shared context.
        alignment = model.config.segment_alignment
        self.call_tokens = max(call_tokens - call_tokens % alignment, alignment)
        self.max_length = max_length
        self.share_contexts = share_contexts
        self.progress = progress
        self._requested = self._read = self._computed = 0
        self._programs: set[tuple[Any, ...]] = set()

    @property
    def counts(self) -> Counts:
        """Work done so far."""
        return Counts(self._requested, self._read, self._computed, len(self._programs))

    def score(
        self,
        requests: Sequence[Request],
        on_score: Callable[[int, Score], None] = lambda number, score: None,
    ) -> list[Score]:
        """One score a request; an empty continuation has log-likelihood 0 and is greedy.

        Args:
          requests: in any order.
          on_score: called with the number of a request and its score, as soon as there is one.

        Raises:
          UserError: a request that is longer than `max_length`, has no context, or has tokens that
            the model does not know.
        """
        requests = [Request(*(np.asarray(part, np.int32) for part in r)) for r in requests]
        for request in requests:
            self._check(request)
        scores: list[Score | None] = [
            Score(0.0, True) if len(request.continuation) == 0 else None for request in requests
        ]
        rows = [
            _Row(np.concatenate([context, continuation[:-1]]), continuation, number)
            for number, (context, continuation) in enumerate(requests)
            if len(continuation)
        ]
        self._requested += sum(len(row.tokens) + 1 for row in rows)
        alone, shared = self._split(requests, rows)
        with tqdm(
            total=len(rows), desc="scoring", unit="request", disable=not self.progress
        ) as bar:
            parts = self._score_shared(shared, bar), self._score_rows(alone, None, bar)
            for number, score in itertools.chain(*parts):
                scores[number] = score
                on_score(number, score)
        return [score for score in scores if score is not None]

    def _check(self, request: Request) -> None:
        context, continuation = request
        length = len(context) + len(continuation)
        check_length(self.model.config, length, self.max_length)
        if len(context) == 0:
            raise UserError("a request has no context: give one token at least, as the separator")
        largest = max(int(part.max()) for part in request if len(part))
        if largest >= self.model.config.vocab_size:
            raise UserError(
                f"a request has the token {largest}, but the model knows "
                f"{self.model.config.vocab_size}: its tokenizer is another"
            )

    def _split(
        self, requests: Sequence[Request], rows: list[_Row]
    ) -> tuple[list[_Row], dict[bytes, list[_Row]]]:
        """Rows that are read as they are, and by their context those that share one."""
        by_context: dict[bytes, list[_Row]] = collections.defaultdict(list)
        for row in rows:
            by_context[requests[row.number].context.tobytes()].append(row)
        alone: list[_Row] = []
        shared: dict[bytes, list[_Row]] = {}
        for key, members in by_context.items():
            length = self._shared_length(len(requests[members[0].number].context))
            long = LEAST_SHARED <= length <= self.call_tokens
            if self.share_contexts and len(members) > 1 and long:
                shared[key] = [
                    row._replace(tokens=row.tokens[length:], prefix=length) for row in members
                ]
            else:
                alone += members
        return alone, shared

    def _shared_length(self, context: int) -> int:
        """Tokens of a context to read once: not its last, which predicts."""
        alignment = self.model.config.segment_alignment
        return (context - 1) // alignment * alignment

    def _score_shared(
        self, shared: dict[bytes, list[_Row]], bar: Any
    ) -> Iterator[tuple[int, Score]]:
        """Scores of rows that share contexts: the contexts of a batch, then all their rows."""
        groups = [
            (np.frombuffer(key, np.int32)[: members[0].prefix], members)
            for key, members in shared.items()
        ]
        lengths = [len(context) for context, _ in groups]
        limits = {"most_rows": self.batch_size, "most_tokens": self.call_tokens}
        for numbers, count, length in batches(lengths, **limits):
            contexts = [groups[number][0] for number in numbers]
            contexts += contexts[:1] * (count - len(contexts))
            rows = [
                row._replace(prefix=place)
                for place, number in enumerate(numbers)
                for row in groups[number][1]
            ]
            rest = bucket(max(len(row.tokens) for row in rows))
            self._count(sum(lengths[number] for number in numbers), count * length, count, length)
            read = prefill(
                self.model,
                self.params,
                contexts,
                max_length=length + rest,
                chunk=self.call_tokens,
                pad_to=length,
            )
            yield from self._score_rows(rows, read.cache, bar)

    def _score_rows(
        self, rows: Sequence[_Row], prefixes: Cache | None, bar: Any
    ) -> Iterator[tuple[int, Score]]:
        """(number, score) of each row; `prefixes` are the caches that the rows go on from."""
        lengths = [len(row.tokens) for row in rows]
        limits = {"most_rows": self.batch_size, "most_tokens": self.call_tokens}
        least = LEAST_LENGTH if prefixes is None else LEAST_READ
        for numbers, count, length in batches(lengths, least=least, **limits):
            members = [rows[number] for number in numbers]
            cache = None
            if prefixes is not None:
                places = [row.prefix for row in members] + [0] * (count - len(members))
                cache = _take_rows(prefixes, np.array(places, np.int32))
            elif length > self.call_tokens:
                cache = self.model.init_cache(count, length)
            yield from self._score_batch(members, count, length, cache)
            bar.update(len(members))

    def _score_batch(
        self, rows: list[_Row], count: int, length: int, cache: Cache | None
    ) -> Iterator[tuple[int, Score]]:
        """Reads a batch, in several calls where it is long, and sums up what its tokens score."""
        firsts = np.array([len(row.tokens) - len(row.targets) for row in rows])
        sums = np.zeros(len(rows), np.float64)
        greedy = np.ones(len(rows), bool)
        width = self.call_tokens if length > self.call_tokens else length
        for start in range(0, length, width):
            here = min(width, length - start)
            tokens = pad([row.tokens[start : start + here] for row in rows], (count, here))
            # The part of each row's targets that this call predicts, and where.
            begins = np.maximum(firsts, start)
            ends = [min(len(row.tokens), start + here) for row in rows]
            spans = list(zip(rows, firsts, begins, ends, strict=True))
            most = max(0, *(end - begin for _, _, begin, end in spans))
            size = (count, min(here, _scored_size(int(most))))
            places = pad([np.arange(b - start, e - start) for _, _, b, e in spans], size)
            targets = pad([row.targets[b - f : max(e - f, 0)] for row, f, b, e in spans], size)
            self._count(
                sum(max(0, end - start) for end in ends), count * here, *size, here, cache is None
            )
            likelihoods, best, cache = _read_and_score(
                self.model, self.params, tokens, places, targets, cache
            )
            likelihoods, best = np.asarray(likelihoods, np.float64), np.asarray(best)
            for index, (_, _, begin, end) in enumerate(spans):
                scored = max(0, end - begin)
                sums[index] += likelihoods[index, :scored].sum()
                greedy[index] &= bool(best[index, :scored].all())
        for row, total, all_best in zip(rows, sums, greedy, strict=True):
            yield row.number, Score(float(total), bool(all_best))

    def _count(self, read: int, computed: int, *shape: Any) -> None:
        self._read += read
        self._computed += computed
        self._programs.add(shape)


def has_full_attention(config: LMConfig) -> bool:
    """Whether a layer sees all that came before, at a cost that grows with it."""
    return "attention" in config.pattern


def check_length(config: LMConfig, length: int, max_length: int | None) -> None:
    """Raises UserError for a row that is longer than it may be."""
    if max_length is None or length <= max_length:
        return
    why = "the model has full attention and" if has_full_attention(config) else "it"
    raise UserError(
        f"an input has {length:,} tokens, and {why} may have {max_length:,}: shorten the task's "
        "inputs, or give --max_length of at least that"
    )


def _scored_size(most: int) -> int:
    """Few sizes: 16, 128, 1024, …"""
    size = LEAST_SCORED
    while size < most:
        size *= 8
    return size


@jax.jit
def _take_rows(cache: Cache, rows: Int32[Array, " B"]) -> Cache:
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=1), cache)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read_and_score(
    model: LanguageModel,
    params: Any,
    tokens: Int32[Array, "B T"],
    places: Int32[Array, "B S"],
    targets: Int32[Array, "B S"],
    cache: Cache | None,
) -> tuple[Float32[Array, "B S"], Bool[Array, "B S"], Cache | None]:
    """Log-likelihoods of targets after what is read up to their places, and which are likeliest."""
    hidden, cache = model.apply({"params": params}, tokens, cache, method="hidden")
    picked = jnp.take_along_axis(hidden, places[..., None], axis=1)
    likelihoods, best = score_targets(model, params, picked, targets)
    return likelihoods, best, cache


def score_targets(
    model: LanguageModel,
    params: Any,
    hidden: Float[Array, "B S D"],
    targets: Int32[Array, "B S"],
    most: int = 4096,
) -> tuple[Float32[Array, "B S"], Bool[Array, "B S"]]:
    """Log-likelihoods of the targets, and which are likeliest; logits of ``most`` exist at once."""
    batch, length = targets.shape
    width = min(length, max(1, most // batch))
    pieces = -(-length // width)

    def cut(x: Array) -> Array:
        padding = [(0, 0), (0, pieces * width - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, pieces, width, *x.shape[2:]).swapaxes(0, 1)

    def score(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        x, target = piece
        logits = jnp.asarray(model.apply({"params": params}, x, method="logits"))
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        best = jnp.argmax(logits, axis=-1) == target
        return picked - jax.nn.logsumexp(logits, axis=-1), best

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(batch, pieces * width)[:, :length]

    likelihoods, best = jax.lax.map(score, (cut(hidden), cut(targets)))
    return join(likelihoods), join(best)
