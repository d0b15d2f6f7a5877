"""Rows of tokens read in batches by length, and the likelihoods of what ends them."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.decoding import beside, prefill
from carve_jax.evaluation.batching import LEAST_LENGTH, batches, bucket, pad
from carve_jax.mixers.base import Cache
from carve_jax.model import LanguageModel
from carve_jax.shapes import Array, Bool, Float, Float32, Int32

Tokens = Int32[np.ndarray, " T"]
LEAST_READ = 16  # tokens of a row behind a shared context
LEAST_SCORED = 16


class Score(NamedTuple):
    """The score of a continuation.

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


class Row(NamedTuple):
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


class Reader:
    """Runs a model on rows, and counts what that took.

    Args:
      model: any pattern of mixers.
      params: its parameters.
      batch_size: most rows of a call.
      call_tokens: most tokens of a call, padding included; longer rows are read in several.
    """

    def __init__(
        self, model: LanguageModel, params: Any, batch_size: int, call_tokens: int
    ) -> None:
        self.model = model
        self.params = params
        self.batch_size = batch_size
        # Calls start where a gate chunk does, so that padding may stand before a shared context.
        alignment = model.config.segment_alignment
        self.call_tokens = max(call_tokens - call_tokens % alignment, alignment)
        self._requested = self._read = self._computed = 0
        self._programs: set[tuple[Any, ...]] = set()

    @property
    def counts(self) -> Counts:
        """Work done so far."""
        return Counts(self._requested, self._read, self._computed, len(self._programs))

    def request(self, tokens: int) -> None:
        """Counts tokens that were asked for."""
        self._requested += tokens

    def score_shared(
        self, groups: Sequence[tuple[Tokens, list[Row]]]
    ) -> Iterator[tuple[int, Score]]:
        """(number, score) of rows that share contexts: those of a batch, then all their rows.

        Args:
          groups: each a context, and the rows that go on from its end.
        """
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
            yield from self.score_rows(rows, read.cache)

    def score_rows(
        self, rows: Sequence[Row], prefixes: Cache | None = None
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
                cache = beside(self.params, self.model.init_cache(count, length))
            yield from self._score_batch(members, count, length, cache)

    def _score_batch(
        self, rows: list[Row], count: int, length: int, cache: Cache | None
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
    """Log-likelihoods of the targets, and which are likeliest; logits of `most` exist at once."""
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
