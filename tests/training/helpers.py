"""A run small enough to be trained many times over."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from carve_jax.data import ByteTokenizer, ShardWriter
from carve_jax.data.token_files.shard_writer import write_tokenizer
from carve_jax.training import loop
from carve_jax.training.reports.metrics import CLOCK, read_metrics
from configs import base


def tiny_config(**changes: Any) -> ConfigDict:
    """One CARVE layer of width 32 on associative recall; `changes` write `__` for a dot."""
    config = base.get_config()
    config.model.update(
        {
            "d_model": 32,
            "layers": 1,
            "mlp_dim": 32,
            "num_heads": 2,
            "key_dim": 8,
            "value_dim": 8,
            "gates": {"content_rank": 4, "gate_chunk": 16},
            "chunk_size": 16,
            "compute_dtype": "float32",
            "implementation": "recurrent",  # it compiles fastest; tests/ops compares them all
        }
    )
    config.data = ConfigDict(
        {"source": "mqar", "vocab_size": 64, "num_pairs": 4, "eval_examples": 8}
    )
    config.update(
        {
            "batch_size": 4,
            "sequence_length": 32,
            "steps": 6,
            "loss_chunk": 64,
            "eval_every": 3,
            "log_every": 1,
            "checkpoint_every": 100,
            "sample_tokens": 0,
        }
    )
    config.optimizer.peak_learning_rate = 1e-2
    for name, value in changes.items():
        *sections, field = name.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[field] = value
    return config


# What compiles fastest, where a test is of the training and any layer will do.
ANY_LAYER = {"model__pattern": ("attention",)}


def text_data(directory: Path, extra: str = "") -> ConfigDict:
    """Token files of a few documents (and `extra`) in `directory`, as a data section."""
    tokenizer = ByteTokenizer()
    directory.mkdir()
    write_tokenizer(directory, tokenizer)
    for split, count in (("train", 12), ("eval", 3)):
        with ShardWriter(directory, f"{split}-00000", tokenizer) as shard:
            for number in range(count):
                text = f"{split} document {number}: the rule is the rule. " * (1 + number % 3)
                shard.write(np.asarray(tokenizer.encode(text), np.int32))
            if extra:
                shard.write(np.asarray(tokenizer.encode(extra), np.int32))
    return ConfigDict({"source": "token_files", "path": str(directory)})


def train(config: ConfigDict, workdir: Path) -> tuple[Any, list[str]]:
    """The final state, as numpy arrays, and the lines said."""
    lines: list[str] = []
    state = loop.train(config, workdir, say=lines.append)
    return jax.tree.map(np.asarray, state), lines


def figures(workdir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what a clock decides."""
    lines = read_metrics(workdir)
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
