"""From a config's data section to batches."""

import dataclasses
import functools
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import grain

from carve_jax.errors import UserError
from carve_jax.training.data import mqar, packing
from carve_jax.training.data.config import DataConfig
from carve_jax.training.data.documents import Document, fingerprint, split_documents
from carve_jax.training.data.packing import Batch, PieceSource, TokenDocuments
from carve_jax.training.data.stdlib import stdlib_documents
from carve_jax.training.data.token_files import TokenFiles
from carve_jax.training.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, train_bpe


@dataclasses.dataclass(frozen=True)
class DataPipeline:
    """Training and held-out batches of one source.

    A batch is a dict of NumPy arrays of shape [B, T]: `tokens`, `targets`, `segment_ids` int32,
    `loss_mask` float32 (1 exactly where there is a target) and `target_bytes` int32 (bytes each
    target stands for, 0 where masked; absent for "mqar"). Segment ids rise from 0 along a row;
    padding belongs to the segment before it.

    Attributes:
      tokenizer: None for "mqar".
      vocab_size: every token and target is below it.
    """

    tokenizer: Tokenizer | None
    vocab_size: int
    _train: grain.IterDataset
    _held_out: grain.IterDataset
    _facts: dict[str, Any]

    def train_iterator(self) -> grain.DatasetIterator:
        """Endless training batches, a function of the seed; `get_state`, `set_state` resume it."""
        return iter(self._train)

    def eval_batches(self) -> Iterable[Batch]:
        """All held-out documents, whole, in the same order each time it is iterated.

        Rows missing in the last batch have no targets.
        """
        return self._held_out

    def describe(self) -> dict[str, Any]:
        """Facts for a run's provenance: source, sizes in documents, bytes and tokens, hashes."""
        return dict(self._facts)


def make_tokenizer(config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a data section; None for "mqar". A "bpe" is trained anew.

    Raises:
      UserError: see `DataConfig` and the tokenizers.
    """
    settings = DataConfig.from_config(config)
    if settings.source == "mqar":
        return None
    if settings.source == "token_files":
        return TokenFiles(settings.path).tokenizer
    train, _ = _stdlib_split(settings)
    return build_tokenizer(settings.tokenizer, settings.vocab_size, (d.text for d in train))


def build_tokenizer(name: str, vocab_size: int, texts: Iterable[bytes]) -> Tokenizer:
    """A tokenizer by name: "bytes", "bpe" (trained on the texts) or a tokenizer JSON's path."""
    if name == "bytes":
        return ByteTokenizer()
    if name == "bpe":
        return train_bpe(texts, vocab_size)
    return BPETokenizer.from_file(name)


def make_pipeline(
    config: Mapping[str, Any],
    *,
    batch_size: int,
    sequence_length: int,
    segment_alignment: int,
    seed: int,
) -> DataPipeline:
    """Builds the batches of a config's data section.

    Args:
      config: the data section; see `DataConfig`.
      batch_size: rows of a batch.
      sequence_length: tokens of a row; a multiple of segment_alignment.
      segment_alignment: segments start on multiples of it (the model's gate chunk, or 1).
      seed: of the training order. The held-out set does not depend on it.

    Raises:
      UserError: a setting that is not allowed, an empty split, or unreadable data.
    """
    settings = DataConfig.from_config(config)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least one row.")
    packing.check_alignment(sequence_length, segment_alignment)
    if settings.source == "mqar":
        return DataPipeline(
            tokenizer=None,
            vocab_size=settings.vocab_size,
            _train=mqar.train_batches(settings, batch_size, sequence_length, seed),
            _held_out=mqar.eval_batches(settings, batch_size, sequence_length),
            _facts=_mqar_facts(settings),
        )
    load = _from_token_files if settings.source == "token_files" else _from_stdlib
    tokenizer, train, held_out, facts = load(settings)
    finish = functools.partial(
        packing.finish_batch, separator=tokenizer.separator, token_bytes=tokenizer.token_bytes
    )
    pieces = [
        PieceSource(shards, sequence_length, segment_alignment, tokenizer.vocab_size)
        for shards in (train, held_out)
    ]
    for split, source in zip(("training", "held-out"), pieces, strict=True):
        if not len(source):
            raise UserError(
                f"The data set has no {split} text: {facts['train_documents']} training and "
                f"{facts['eval_documents']} held-out documents; give more documents or another "
                "eval_fraction."
            )
    return DataPipeline(
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        _train=packing.train_batches(pieces[0], finish, batch_size, seed),
        _held_out=packing.eval_batches(pieces[1], finish, batch_size),
        _facts={"source": settings.source, "vocab_size": tokenizer.vocab_size, **facts},
    )


_Loaded = tuple[Tokenizer, list[TokenDocuments], list[TokenDocuments], dict[str, Any]]


def _stdlib_split(settings: DataConfig) -> tuple[list[Document], list[Document]]:
    return split_documents(stdlib_documents(settings.parts), settings.eval_fraction)


def _from_stdlib(settings: DataConfig) -> _Loaded:
    splits = _stdlib_split(settings)
    tokenizer = build_tokenizer(
        settings.tokenizer, settings.vocab_size, (d.text for d in splits[0])
    )
    shards = [
        TokenDocuments.concatenate([tokenizer.encode(d.text) for d in documents])
        for documents in splits
    ]
    facts: dict[str, Any] = {
        "parts": list(settings.parts),
        "python": platform.python_version(),
        "tokenizer": settings.tokenizer,
        "eval_fraction": settings.eval_fraction,
    }
    for name, documents, shard in zip(("train", "eval"), splits, shards, strict=True):
        facts |= {
            f"{name}_documents": len(documents),
            f"{name}_bytes": sum(len(d.text) for d in documents),
            f"{name}_tokens": len(shard.tokens),
            f"{name}_sha256": fingerprint(documents),
        }
    return tokenizer, [shards[0]], [shards[1]], facts


def _from_token_files(settings: DataConfig) -> _Loaded:
    files = TokenFiles(settings.path)
    facts: dict[str, Any] = {"path": settings.path}
    for split, headers in files.headers.items():
        facts |= {
            f"{split}_documents": sum(h.documents for h in headers.values()),
            f"{split}_bytes": sum(h.bytes for h in headers.values()),
            f"{split}_tokens": sum(h.tokens for h in headers.values()),
            f"{split}_sha256": [h.sha256 for h in headers.values()],
        }
    return files.tokenizer, files.documents("train"), files.documents("eval"), facts


def _mqar_facts(settings: DataConfig) -> dict[str, Any]:
    names = ("source", "vocab_size", "num_pairs", "num_queries", "power_a", "eval_examples")
    return {name: getattr(settings, name) for name in names}
