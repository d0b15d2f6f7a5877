"""Data: sources of text, tokenizers, token files, packing, synthetic tasks and RULER's prompts.

It needs no model: training, evaluation and experiments import it, and it imports none of them.
"""

from carve_jax.data.config import DataConfig
from carve_jax.data.pipeline import (
    DataPipeline,
    changed_facts,
    make_pipeline,
    make_tokenizer,
)
from carve_jax.data.sources.documents import Document, is_held_out
from carve_jax.data.token_files.shard_writer import ShardWriter
from carve_jax.data.token_files.token_files import TokenFiles
from carve_jax.data.tokenizers.tokenizer import (
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
