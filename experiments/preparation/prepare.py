"""Writes the shards of token files, one pair after another, or goes on where a run ended."""

import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tqdm

from carve_jax.data.config import check_fraction
from carve_jax.data.pipeline import build_tokenizer
from carve_jax.data.sources.documents import is_held_out
from carve_jax.data.token_files import manifest as manifests
from carve_jax.data.token_files.manifest import Manifest, shard_facts
from carve_jax.data.token_files.shard_header import SPLITS, TOKENIZER_FILE, Header, sha256
from carve_jax.data.token_files.shard_writer import ShardWriter, write_tokenizer
from carve_jax.data.token_files.token_files import TokenFiles
from carve_jax.data.tokenizers.checks import LARGEST_FILE
from carve_jax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_json
from carve_jax.errors import UserError
from carve_jax.files import local_path, made_directory, read_text, reason_of, told
from experiments.preparation.sources import list_sources, read_work, source_bytes
from experiments.preparation.work import Columns, Source, Surveyed, Work, WorkSize
from experiments.preparation.workers import Stream, Survey, Tokenise, Workers

SHARD_TOKENS = 1 << 27


class Settings(NamedTuple):
    """What the token files depend on besides the sources.

    Attributes:
      tokenizer: "bytes", "bpe" or a tokenizer JSON's path.
      vocab_size: of a bpe.
      eval_fraction: expected share of the documents held out.
      shard_tokens: a training shard ends with the document that reaches so many.
      columns: of JSON lines and Parquet files.
      work: how the sources are cut; the shards do not depend on it, a position in them does.
    """

    tokenizer: str = "bytes"
    vocab_size: int = 8192
    eval_fraction: float = 0.01
    shard_tokens: int = SHARD_TOKENS
    columns: Columns = Columns()
    work: WorkSize = WorkSize()

    def recorded(self) -> dict[str, object]:
        """As a manifest keeps them; a tokenizer's file is known by its digest, not its path."""
        kind = self.tokenizer if self.tokenizer in ("bytes", "bpe") else "file"
        return {
            "tokenizer": kind,
            "vocab_size": self.vocab_size if kind == "bpe" else None,
            "eval_fraction": self.eval_fraction,
            "shard_tokens": self.shard_tokens,
            "text_column": self.columns.text,
            "id_column": self.columns.name,
            "work": [self.work.bytes, self.work.rows],
        }


def prepare(
    inputs: Sequence[str], output: Path, settings: Settings, *, workers: int = 1
) -> TokenFiles:
    """Writes pairs of shards `train-00000`, `eval-00000`, … below `output`, or goes on doing so.

    Raises:
      UserError: bad inputs or settings, other token files already there, no document on one side
        of the split, or a full disk. Whole shards stay; a run that fails before the first leaves
        no files, and no directory that was not there.
    """
    check_fraction("--eval_fraction", settings.eval_fraction)
    counts = {
        "workers": workers,
        "shard_tokens": settings.shard_tokens,
        "largest_document": settings.work.document,
    }
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; give at least 1.")
    passed_over: list[str] = []
    sources = list_sources(inputs, say=passed_over.append)
    path = local_path(output, "--output")
    new = list(itertools.takewhile(lambda each: not os.path.lexists(each), (path, *path.parents)))
    output = made_directory(output, "--output")
    before = _unfinished(output)
    for line in passed_over:
        print(line, file=sys.stderr)
    try:
        with Workers(workers) as processes:
            surveyed = _survey(sources, settings, processes)
            try:
                _prepare(surveyed, output, settings, before, processes)
            except BaseException:
                kept = _kept(output)
                if kept:
                    print(f"{output}: {kept} whole shards are kept; run again to go on behind them")
                else:
                    _remove(output, keep=())
                raise
    except BaseException:
        for each in new:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()
        raise
    return TokenFiles(output)


def _survey(sources: Sequence[Source], settings: Settings, processes: Workers) -> list[Surveyed]:
    """Digests and documents of the sources."""
    surveyed = []
    total = sum(source_bytes(source) for source in sources)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="digests") as progress:
        for one in processes.map(Survey(settings.columns, settings.work), sources):
            surveyed.append(one)
            progress.update(one.facts["bytes"])
    return surveyed


def _unfinished(output: Path) -> Manifest | None:
    """The manifest of a run that wrote whole shards here and did not end.

    Raises:
      UserError: the directory holds other token files.
    """
    found = Manifest.read(output)
    shards = any(path for split in SPLITS for path in output.glob(f"{split}-*.json"))
    if found.complete if found else shards:
        raise UserError(f"{output} holds token files already; remove them or choose another.")
    return found if found and found.shards else None


def _kept(output: Path) -> int:
    """Whole shards that a run which fails leaves."""
    found = Manifest.read(output)
    return len(found.shards) if found else 0


def _remove(output: Path, keep: Sequence[str]) -> None:
    """Removes shards but for these; without any to keep, the files beside them too.

    What a killed run left half-written stays: it is written over, by the shards that come next.
    """
    for path in [p for split in SPLITS for p in output.glob(f"{split}-*")]:
        if path.stem not in keep and path.suffix != ".partial":
            _unlink(path)
    if not keep:
        for name in (TOKENIZER_FILE, manifests.FILE_NAME):
            _unlink(output / name)


def _unlink(path: Path) -> None:
    with told(path, "remove it, and run again", failed="cannot be removed"):
        path.unlink(missing_ok=True)


def _prepare(
    surveyed: list[Surveyed],
    output: Path,
    settings: Settings,
    before: Manifest | None,
    processes: Workers,
) -> None:
    work = [item for one in surveyed for item in one.work]
    facts = [one.facts for one in surveyed]
    tokenizer = _tokenizer(output, settings, work, before)
    manifest = Manifest(settings.recorded(), facts, sha256(tokenizer.to_json()))
    if before is None:
        _remove(output, keep=())
        write_tokenizer(output, tokenizer)
        manifest.write(output)
    else:
        _check_same(output, before, manifest)
        manifest = before
        _remove(output, keep=list(manifest.shards))
        print(f"{output}: going on behind {len(manifest.shards)} whole shards")
    first, skip = manifest.position
    if manifest.done_bytes != sum(item.size for item in work[:first]) or first > len(work):
        raise UserError(
            f"The position in {output / manifests.FILE_NAME} is not one in these inputs; remove "
            "the directory and begin again."
        )
    tokenise = Tokenise(
        output / TOKENIZER_FILE,
        manifest.tokenizer_sha256,
        settings.columns,
        settings.eval_fraction,
    )
    total = sum(item.size for item in work)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="tokens") as progress:
        progress.update(manifest.done_bytes)
        stream = Stream(work, processes.map(tokenise, work[first:]), (first, skip), progress)
        while stream.more() or not manifest.shards:
            _write_part(output, manifest, tokenizer, stream, settings)
    manifest.complete = True
    manifest.write(output)
    _say_losses(manifest)


def _say_losses(manifest: Manifest) -> None:
    """Says what the tokenizer made of documents that it did not take whole."""
    if manifest.without:
        print(
            f"{manifest.without} documents were left out: the tokenizer makes no tokens of their "
            "text, perhaps for want of its characters"
        )
    if manifest.inexact:
        print(
            f"{manifest.inexact} documents are not given back to the byte by the tokenizer, so "
            "with these files no bits per byte are measured"
        )


def _tokenizer(
    output: Path, settings: Settings, work: Sequence[Work], before: Manifest | None
) -> Tokenizer:
    """The tokenizer asked for; a bpe is not trained twice."""
    if before is not None and settings.tokenizer == "bpe":
        try:
            return tokenizer_from_json(read_text(output / TOKENIZER_FILE, LARGEST_FILE))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{output} is half-written and its {TOKENIZER_FILE} cannot be read "
                f"({reason_of(error)}); remove the directory and begin again."
            ) from error
    texts = (
        document.text
        for item in work
        for document in read_work(item, settings.columns)
        if not is_held_out(document.name, settings.eval_fraction)
    )
    return build_tokenizer(settings.tokenizer, settings.vocab_size, texts)


def _check_same(output: Path, before: Manifest, now: Manifest) -> None:
    """Raises UserError unless the shards that are there are the beginning of what is asked for."""
    differing = [
        f"{name} was {value!r} and is {now.settings.get(name)!r}"
        for name, value in before.settings.items()
        if value != now.settings.get(name)
    ]
    if before.sources != now.sources:
        differing.append("the inputs are others, or have changed")
    if before.tokenizer_sha256 != now.tokenizer_sha256:
        differing.append("the tokenizer is another")
    for name, facts in before.shards.items():
        path = output / f"{name}.json"
        if not path.exists() or shard_facts(Header.read(path)) != facts:
            differing.append(f"the shard {name} is gone or another")
    if differing:
        raise UserError(
            f"{output} is half-written by another run: {'; '.join(differing)}; run again as "
            "before to go on, or choose another directory."
        )


def _write_part(
    output: Path, manifest: Manifest, tokenizer: Tokenizer, stream: Stream, settings: Settings
) -> None:
    """Writes the next shard of each split, and then the manifest."""
    number, inexact, without = len(manifest.shards) // len(SPLITS), 0, stream.without
    names = [f"{split}-{number:05d}" for split in SPLITS]
    with (
        ShardWriter(output, names[0], tokenizer) as train,
        ShardWriter(output, names[1], tokenizer) as held_out,
    ):
        while train.tokens < settings.shard_tokens and stream.more():
            tokens = stream.take(settings.shard_tokens - train.tokens)
            inexact += int((~tokens.exact).sum())
            train.write_documents(*tokens.of_split(False))
            held_out.write_documents(*tokens.of_split(True))
        if not stream.more():
            _check_both(manifest, (train.documents, held_out.documents))
    for name, writer in zip(names, (train, held_out), strict=True):
        assert writer.header is not None  # the context ended well
        manifest.shards[name] = shard_facts(writer.header)
    manifest.position, manifest.done_bytes = stream.position, stream.done_bytes
    manifest.inexact += inexact if tokenizer.lossless else 0
    manifest.without += stream.without - without
    manifest.write(output)


def _check_both(manifest: Manifest, last: tuple[int, int]) -> None:
    counts = [
        documents
        + sum(f["documents"] for name, f in manifest.shards.items() if name.startswith(split))
        for split, documents in zip(SPLITS, last, strict=True)
    ]
    if not all(counts):
        raise UserError(
            f"The input has {counts[0]} training and {counts[1]} held-out documents, and needs at "
            "least one of each; give more documents (a line of a .jsonl file is one) or another "
            "--eval_fraction."
        )
