"""What the tests of the data share."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from carve_jax.data import ByteTokenizer, ShardWriter
from carve_jax.data.token_files.shard_writer import write_tokenizer


def write_shards(directory: Path, tokenizer=None, **shards: list[bytes]) -> Path:
    """Token files of the given texts; shards are named `train_00000=[…]`."""
    tokenizer = tokenizer or ByteTokenizer()
    directory.mkdir(exist_ok=True)
    write_tokenizer(directory, tokenizer)
    for name, texts in shards.items():
        with ShardWriter(directory, name.replace("_", "-"), tokenizer) as writer:
            for text in texts:
                writer.write(tokenizer.encode(text))
    return directory


def take(iterator: Iterable, count: int) -> list:
    return list(itertools.islice(iterator, count))


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    """Two lists of batches are equal to the bit, types included."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def predicted_pieces(batches: Iterable[dict]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of each segment that has targets, row by row."""
    pieces = []
    for batch in batches:
        for row in range(batch["tokens"].shape[0]):
            ids = batch["segment_ids"][row]
            for segment in range(ids.max() + 1):
                here = (ids == segment) & (batch["loss_mask"][row] == 1)
                if here.any():
                    pieces.append((batch["tokens"][row][here], batch["targets"][row][here]))
    return pieces
