"""Data: real text every Python carries, token files, and synthetic recall, as packed batches."""

from carve_jax.training.data.config import DataConfig
from carve_jax.training.data.documents import Document, is_held_out
from carve_jax.training.data.pipeline import (
    DataPipeline,
    changed_facts,
    make_pipeline,
    make_tokenizer,
)
from carve_jax.training.data.shard_writer import ShardWriter
from carve_jax.training.data.token_files import TokenFiles
from carve_jax.training.data.tokenizer import (
    ByteTokenizer,
    LibraryTokenizer,
    Tokenizer,
    tokenizer_from_json,
    train_bpe,
)

__all__ = [
    "ByteTokenizer",
    "DataConfig",
    "DataPipeline",
    "Document",
    "LibraryTokenizer",
    "ShardWriter",
    "TokenFiles",
    "Tokenizer",
    "changed_facts",
    "is_held_out",
    "make_pipeline",
    "make_tokenizer",
    "tokenizer_from_json",
    "train_bpe",
]
