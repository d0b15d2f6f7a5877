"""From a config's data section to batches."""

import dataclasses
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from carve_jax.data.batches import (
    BatchIterator,
    Block,
    HeldOut,
    MixedOrder,
    rows_in_order,
)
from carve_jax.data.config import SYNTHETIC, DataConfig
from carve_jax.data.order import WINDOW
from carve_jax.data.packing import Batch, Packer, Pieces, check_alignment
from carve_jax.data.sources.documents import Document, fingerprint, split_documents
from carve_jax.data.sources.stdlib import stdlib_documents
from carve_jax.data.synthetic import TASKS, Task, eval_batches, train_batches
from carve_jax.data.token_files.shard import Shard
from carve_jax.data.token_files.token_files import TokenFiles
from carve_jax.data.tokenizers.files import open_tokenizer
from carve_jax.data.tokenizers.lossless import lossy
from carve_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from carve_jax.errors import UserError
from carve_jax.ranges import check_number


@dataclasses.dataclass(frozen=True)
class DataPipeline:
    """Training and held-out batches of one process.

    A batch is a dict of NumPy arrays of shape [B, T], B being this process's share of the global
    batch: `tokens`, `targets`, `segment_ids` int32, `loss_mask` float32 (1 exactly where there is a
    target) and `target_bytes` int32 (bytes each target stands for, 0 where masked; absent for
    synthetic tasks). Segment ids rise from 0 along a row; padding belongs to the segment before it.

    Attributes:
      tokenizer: None for synthetic tasks, of which "ruler" alone is text.
      vocab_size: every token and target is below it.
    """

    tokenizer: Tokenizer | None
    vocab_size: int
    _train: Callable[[], BatchIterator]
    _held_out: HeldOut
    _facts: dict[str, Any]

    def train_iterator(self) -> BatchIterator:
        """Endless training batches, a function of the seed; `get_state`, `set_state` resume it.

        The state is the same in every process, and restores any number of them. `epochs()` says
        how often each source has been through.
        """
        return self._train()

    def eval_batches(self) -> Iterable[Batch]:
        """All held-out documents, whole, in the same order each time it is iterated.

        Every process gets as many batches. Rows missing in the last have no targets.
        """
        return self._held_out

    def describe(self) -> dict[str, Any]:
        """Facts for a run's provenance: source, sizes in documents, bytes and tokens, hashes."""
        return dict(self._facts)


def make_tokenizer(config: Mapping[str, Any] | DataConfig) -> Tokenizer | None:
    """The tokenizer of a data section; None for tasks that are no text. A "bpe" is trained anew.

    Raises:
      UserError: see `DataConfig` and the tokenizers.
    """
    settings = DataConfig.from_config(config)
    if settings.source in SYNTHETIC:
        return _task_tokenizer(settings)
    if settings.source in ("token_files", "mixture"):
        return _common_tokenizer(_open_token_files(settings))
    train, _ = _stdlib_split(settings)
    return build_tokenizer(settings.tokenizer, settings.vocab_size, (d.text for d in train))


def build_tokenizer(name: str, vocab_size: int, texts: Iterable[bytes]) -> Tokenizer:
    """A tokenizer by name: "bpe" (trained on the texts), or what `open_tokenizer` takes."""
    return train_bpe(texts, vocab_size) if name == "bpe" else open_tokenizer(name)


def make_pipeline(
    config: Mapping[str, Any] | DataConfig,
    *,
    batch_size: int,
    sequence_length: int,
    segment_alignment: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> DataPipeline:
    """Builds the batches of a config's data section.

    Args:
      config: the data section, read or as it is given; see `DataConfig`.
      batch_size: rows of the global batch, of all processes together; a multiple of their number.
      sequence_length: tokens of a row; a multiple of segment_alignment.
      segment_alignment: segments start on multiples of it (the model's gate chunk, or 1).
      seed: of the training order. The held-out set does not depend on it.
      process_index: which block of each global batch is made here.
      process_count: blocks. The global batches do not depend on it.

    Raises:
      UserError: a setting that is not allowed, an empty split, or unreadable data.
    """
    settings = DataConfig.from_config(config)
    block = Block.of_process(batch_size, process_index, process_count)
    check_alignment(sequence_length, segment_alignment)
    check_number("seed", seed)
    if settings.source in SYNTHETIC:
        task = TASKS[settings.source](settings, sequence_length)
        return DataPipeline(
            tokenizer=_task_tokenizer(settings),
            vocab_size=task.vocab_size,
            _train=lambda: train_batches(task, block, seed),
            _held_out=eval_batches(task, block, settings.eval_examples),
            _facts=_task_facts(settings, task),
        )
    if settings.source == "stdlib":
        text = _from_stdlib(settings)
    else:
        text = _from_token_files(settings, process_index, process_count)
    tokenizer = text.tokenizer

    def pieces(shards: list[Shard]) -> Pieces:
        return Pieces(shards, sequence_length, segment_alignment, tokenizer.vocab_size)

    train = {name: pieces(shards) for name, shards in text.train.items()}
    held_out = pieces(text.held_out)
    _check_not_empty(train, held_out)
    make = Packer(tokenizer.separator, tokenizer.token_bytes, sequence_length).batch
    return DataPipeline(
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        _train=lambda: BatchIterator(MixedOrder(train, text.weights, seed), make, block),
        _held_out=HeldOut(lambda: rows_in_order(held_out, WINDOW), make, block),
        _facts={
            "source": settings.source,
            "vocab_size": tokenizer.vocab_size,
            "lossless_tokenizer": tokenizer.lossless,
            **text.facts,
        },
    )


def changed_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the facts of a pipeline (`describe`) that were others when `old` was saved.

    Where token files lie is no such fact: the digests of their shards tell them apart.
    """

    def compared(facts: Mapping[str, Any]) -> dict[str, Any]:
        kept = dict(facts)
        if kept.get("source") == "token_files":
            kept.pop("path", None)
        if isinstance(kept.get("mixture"), Mapping):
            kept["mixture"] = list(kept["mixture"].values())  # by their order, as the weights
        return kept

    now = compared(new)
    return [name for name, value in compared(old).items() if now.get(name) != value]


def _check_not_empty(train: Mapping[str, Pieces], held_out: Pieces) -> None:
    for name, pieces in train.items():
        if not len(pieces):
            where = f" in {name}" if len(train) > 1 else ""
            raise UserError(
                f"The data set has no training text{where}; give more documents or another "
                "eval_fraction."
            )
    if not len(held_out):
        raise UserError(
            "The data set has no held-out text; give more documents or another eval_fraction."
        )


class _Text(NamedTuple):
    """What a source of text holds.

    Attributes:
      train: shards of each source of a mixture, by name; of any other, of the one.
      weights: of the sources.
      held_out: shards of all sources.
    """

    tokenizer: Tokenizer
    train: dict[str, list[Shard]]
    weights: tuple[float, ...]
    held_out: list[Shard]
    facts: dict[str, Any]


def _stdlib_split(settings: DataConfig) -> tuple[list[Document], list[Document]]:
    return split_documents(stdlib_documents(settings.parts), settings.eval_fraction)


def _from_stdlib(settings: DataConfig) -> _Text:
    splits = _stdlib_split(settings)
    tokenizer = build_tokenizer(
        settings.tokenizer, settings.vocab_size, (d.text for d in splits[0])
    )
    shards = [
        Shard.concatenate([tokenizer.encode(d.text) for d in documents]) for documents in splits
    ]
    if any(
        tokenizer.token_bytes[shard.tokens].sum() != sum(len(d.text) for d in documents)
        for documents, shard in zip(splits, shards, strict=True)
    ):
        lossy(tokenizer)
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
    return _Text(tokenizer, {"stdlib": [shards[0]]}, (1.0,), [shards[1]], facts)


def _open_token_files(settings: DataConfig) -> dict[str, TokenFiles]:
    paths = settings.paths if settings.source == "mixture" else (settings.path,)
    return {path: TokenFiles(path) for path in paths}


def _common_tokenizer(files: Mapping[str, TokenFiles]) -> Tokenizer:
    (first, kept), *others = files.items()
    for path, other in others:
        if other.tokenizer.to_json() != kept.tokenizer.to_json():
            raise UserError(
                f"{path} and {first} were prepared with different tokenizers, of "
                f"{other.tokenizer.vocab_size} and {kept.tokenizer.vocab_size} ids; prepare one "
                "again with --tokenizer=DIR/tokenizer.json of the other."
            )
    return kept.tokenizer


def _from_token_files(settings: DataConfig, process_index: int, process_count: int) -> _Text:
    """The directories of a source; with `verify`, the processes share the reading of all bytes."""
    files = _open_token_files(settings)
    tokenizer = _common_tokenizer(files)
    if settings.verify:
        for one in files.values():
            one.verify(process_index, process_count)
    facts: dict[str, Any] = {"path": settings.path}
    if settings.source == "mixture":
        sources = zip(files.items(), settings.weights, strict=True)
        facts = {"mixture": {p: {"weight": w, **_split_facts(f)} for (p, f), w in sources}}
    else:
        facts |= _split_facts(files[settings.path])
    return _Text(
        tokenizer,
        {path: one.documents("train") for path, one in files.items()},
        settings.weights if settings.source == "mixture" else (1.0,),
        [shard for one in files.values() for shard in one.documents("eval")],
        facts,
    )


def _split_facts(files: TokenFiles) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for split, headers in files.headers.items():
        facts |= {
            f"{split}_documents": sum(h.documents for h in headers.values()),
            f"{split}_bytes": sum(h.bytes for h in headers.values()),
            f"{split}_tokens": sum(h.tokens for h in headers.values()),
            f"{split}_sha256": [h.sha256 for h in headers.values()],
        }
    return facts


def _task_tokenizer(settings: DataConfig) -> Tokenizer | None:
    return ByteTokenizer() if settings.source == "ruler" else None


def _task_facts(settings: DataConfig, task: Task) -> dict[str, Any]:
    names = ("source", *task.settings, "eval_examples")
    return {name: getattr(settings, name) for name in names}
