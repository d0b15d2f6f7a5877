"""Log-likelihoods of continuations, in batches by length, with contexts read once.

A request is a context and a continuation, both tokens; its score is log P(continuation | context).
The whole of a long document is a request too: what was read is carried through the cache, so that
memory does not grow with its length and every token sees all that came before it.
"""

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from carve_jax.errors import UserError
from carve_jax.evaluation.reading import Counts, Reader, Row, Score, Tokens
from carve_jax.model import LanguageModel, LMConfig

LEAST_SHARED = 32  # tokens; a shorter context is read again for each of its continuations


class Request(NamedTuple):
    """Tokens that are given, at least one, and those whose likelihood is asked for."""

    context: Tokens
    continuation: Tokens


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
        self._reader = Reader(model, params, batch_size, call_tokens)
        self.batch_size = self._reader.batch_size
        self.call_tokens = self._reader.call_tokens
        self.max_length = max_length
        self.share_contexts = share_contexts
        self.progress = progress

    @property
    def counts(self) -> Counts:
        """Work done so far."""
        return self._reader.counts

    def score(
        self,
        requests: Sequence[Request],
        on_score: Callable[[int, Score], None] = lambda number, score: None,
    ) -> list[Score]:
        """One score for each request; an empty continuation has log-likelihood 0 and is greedy.

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
            Row(np.concatenate([context, continuation[:-1]]), continuation, number)
            for number, (context, continuation) in enumerate(requests)
            if len(continuation)
        ]
        self._reader.request(sum(len(row.tokens) + 1 for row in rows))
        alone, shared = self._split(requests, rows)
        with tqdm(
            total=len(rows), desc="scoring", unit="request", disable=not self.progress
        ) as bar:
            parts = self._reader.score_shared(shared), self._reader.score_rows(alone)
            for number, score in itertools.chain(*parts):
                scores[number] = score
                on_score(number, score)
                bar.update()
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
        self, requests: Sequence[Request], rows: list[Row]
    ) -> tuple[list[Row], list[tuple[Tokens, list[Row]]]]:
        """Rows that are read as they are, and those that share a context, with it."""
        by_context: dict[bytes, list[Row]] = collections.defaultdict(list)
        for row in rows:
            by_context[requests[row.number].context.tobytes()].append(row)
        alone: list[Row] = []
        shared: list[tuple[Tokens, list[Row]]] = []
        for members in by_context.values():
            context = requests[members[0].number].context
            length = self._shared_length(len(context))
            long = LEAST_SHARED <= length <= self.call_tokens
            if self.share_contexts and len(members) > 1 and long:
                rests = [row._replace(tokens=row.tokens[length:]) for row in members]
                shared.append((context[:length], rests))
            else:
                alone += members
        return alone, shared

    def _shared_length(self, context: int) -> int:
        """Tokens of a context to read once: not its last, which predicts."""
        alignment = self.model.config.segment_alignment
        return (context - 1) // alignment * alignment


def check_length(config: LMConfig, length: int, max_length: int | None) -> None:
    """Raises UserError for a row that is longer than it may be."""
    if max_length is None or length <= max_length:
        return
    why = "the model has full attention and" if config.has_full_attention else "it"
    raise UserError(
        f"an input has {length:,} tokens, and {why} may have {max_length:,}: shorten the task's "
        "inputs, or give --max_length of at least that"
    )
