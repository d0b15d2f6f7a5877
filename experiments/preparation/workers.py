"""Processes that read and tokenise for prepare_data; results come in the order of the work."""

import collections
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import tqdm

from carve_jax.data.sources.documents import is_held_out
from carve_jax.data.token_files.shard_header import DTYPES, sha256
from carve_jax.data.token_files.shard_writer import token_dtype
from carve_jax.data.tokenizers.checks import LARGEST_FILE
from carve_jax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_json
from carve_jax.errors import UserError
from carve_jax.files import read_text, reason_of
from experiments.preparation.sources import read_work, survey
from experiments.preparation.work import Columns, Source, Surveyed, Work, WorkSize

_T = TypeVar("_T")
_R = TypeVar("_R")


class Tokens(NamedTuple):
    """Tokenised documents.

    Attributes:
      ids: of all of them, end to end.
      lengths: tokens of each.
      held_out: whether each is held out.
      text_bytes: bytes that the tokens of each stand for.
      exact: whether these are the bytes of its text.
      without: documents left out, for the tokenizer made no tokens of their text.
    """

    ids: np.ndarray
    lengths: np.ndarray
    held_out: np.ndarray
    text_bytes: np.ndarray
    exact: np.ndarray
    without: int = 0

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.lengths)

    def cut(self, start: int, end: int) -> "Tokens":
        """The documents start … end-1."""
        first, last = (int(self.lengths[:n].sum()) for n in (start, end))
        columns = (self.lengths, self.held_out, self.text_bytes, self.exact)
        lengths, held_out, text_bytes, exact = (column[start:end] for column in columns)
        return Tokens(self.ids[first:last], lengths, held_out, text_bytes, exact)

    def of_split(self, held_out: bool) -> tuple[np.ndarray, list[int], int]:
        """Ids, lengths and bytes of the documents on one side."""
        here = self.held_out == held_out
        ids = self.ids[np.repeat(here, self.lengths)]
        return ids, self.lengths[here].tolist(), int(self.text_bytes[here].sum())


@dataclasses.dataclass(frozen=True)
class Survey:
    """Reads a source through once, in this process or another.

    Attributes:
      columns: of JSON lines and Parquet files.
      most: where to cut.
    """

    columns: Columns
    most: WorkSize

    def __call__(self, source: Source) -> Surveyed:
        """See `survey`."""
        return survey(source, self.columns, self.most)


@dataclasses.dataclass(frozen=True)
class Tokenise:
    """Tokenises work, in this process or another; a document without tokens is left out, and
    counted unless its text is white space.

    Attributes:
      tokenizer: its JSON's path.
      tokenizer_sha256: of that file.
      columns: of JSON lines and Parquet files.
      eval_fraction: expected share of the documents held out.
    """

    tokenizer: Path
    tokenizer_sha256: str
    columns: Columns
    eval_fraction: float

    def __call__(self, work: Work) -> Tokens:
        """Tokenises one piece of work.

        Raises:
          UserError: what cannot be read, or is not text for this tokenizer.
        """
        tokenizer = _tokenizer(self.tokenizer, self.tokenizer_sha256)
        dtype = DTYPES[token_dtype(tokenizer.vocab_size)]
        documents: list[np.ndarray] = []
        held_out, text_bytes, exact = [], [], []
        without = 0
        for name, text in read_work(work, self.columns):
            try:
                ids = tokenizer.encode(text)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            if not len(ids):
                without += bool(text.strip())
            else:
                documents.append(ids.astype(dtype))
                held_out.append(is_held_out(name, self.eval_fraction))
                text_bytes.append(int(tokenizer.token_bytes[ids].sum()))
                exact.append(text_bytes[-1] == len(text))
        return Tokens(
            np.concatenate([np.zeros(0, dtype), *documents]),
            np.array([len(ids) for ids in documents], np.int64),
            np.array(held_out, bool),
            np.array(text_bytes, np.int64),
            np.array(exact, bool),
            without,
        )


@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, digest: str) -> Tokenizer:
    mend = "remove the directory and begin again"
    try:
        text = read_text(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): {mend}") from error
    if sha256(text) != digest:
        raise UserError(f"{path} is not the tokenizer that the first shards were made with: {mend}")
    return tokenizer_from_json(text)


class Stream:
    """Tokenised documents one after another, and the position behind those that were taken.

    Attributes:
      position: piece of work, and documents of it that were taken.
      done_bytes: of the sources, before the position.
      without: documents left out of the pieces that are done with.

    Args:
      work: all of it.
      results: its tokens, from the position on.
      position: piece of work, and documents of it that are left out.
      progress: told the bytes of each piece of work that is done with.
    """

    def __init__(
        self,
        work: Sequence[Work],
        results: Iterator[Tokens],
        position: tuple[int, int],
        progress: tqdm.tqdm,
    ) -> None:
        self._work = work
        self._results = results
        self._tokens: Tokens | None = None
        self._progress = progress
        self.position = position
        self.done_bytes = sum(item.size for item in work[: position[0]])
        self.without = 0

    def more(self) -> bool:
        """Whether documents are left."""
        while self.position[0] < len(self._work):
            if self._tokens is None:
                self._tokens = next(self._results)
            if self.position[1] < self._tokens.documents:
                return True
            size = self._work[self.position[0]].size
            self.without += self._tokens.without
            self._tokens, self.position = None, (self.position[0] + 1, 0)
            self.done_bytes += size
            self._progress.update(size)
        return False

    def take(self, train_tokens: int) -> Tokens:
        """The next documents, at most up to the one with which training tokens are so many."""
        assert self._tokens is not None  # more() was true
        index, start = self.position
        rest = self._tokens.cut(start, self._tokens.documents)
        reached = (rest.lengths * ~rest.held_out).cumsum()
        count = min(int(reached.searchsorted(train_tokens)) + 1, rest.documents)
        self.position = index, start + count
        return rest.cut(0, count)


class Workers:
    """So many processes; with one, the work is done here. A context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """Results in order; only a few more are under way than there are processes.

        Raises:
          UserError: what the function raised, or a process was killed.
        """
        items = list(items)
        if min(self._count, len(items)) < 2:
            yield from map(function, items)
            return
        if self._pool is None:
            # A fork would copy the threads' locks of what is imported here.
            self._pool = ProcessPoolExecutor(
                self._count, multiprocessing.get_context("spawn"), _start
            )
        waiting: collections.deque[Future[_R]] = collections.deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > 2 * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "A worker was killed, perhaps for want of memory; run again with fewer --workers: "
                "whole shards are kept."
            ) from error


def _start() -> None:
    """Begins a worker: the first process alone hears Ctrl-C, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
