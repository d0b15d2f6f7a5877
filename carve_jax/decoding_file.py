"""A `Decoding` in one file: bit for bit, whole or not at all, and for its own model alone.

The file is a line that says what it is, a line of JSON that describes the arrays and their model,
the arrays' bytes one after the other, and the CRC-32 of all that.
"""

import dataclasses
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.config import LMConfig, with_sections
from carve_jax.decoding import Decoding
from carve_jax.files import local_path, open_regular, parse_json, reason_of, replacing, shown
from carve_jax.files.paths import LONGEST_SHOWN
from carve_jax.mixers.changes import SECTIONS
from carve_jax.model import LanguageModel
from carve_jax.ops.attention import AttentionCache

FIRST_LINE = b"carve_jax decoding 1\n"
CRC_BYTES = 4
BLOCK = 1 << 20
LARGEST_HEADER = 16 << 20
MOST_ROWS = 1 << 24  # and tokens of room, of a saved decoding
# They choose how a model is computed, not which model it is.
NOT_THE_MODEL = ("remat", "scan_layers", "implementation", "chunk_size")
MARK = 256  # numbers of each parameter that tell parameters apart


def save_decoding(
    path: str | Path, decoding: Decoding, config: LMConfig, *, params: Any = None
) -> None:
    """Write `decoding` to a file, which has its name only when it is whole.

    Args:
      path: the file; one that exists is replaced.
      decoding: rows read by a model of this configuration; it stays usable.
      config: the model's.
      params: the model's parameters; if given, the file goes with them alone.

    Raises:
      ValueError: when `decoding` does not belong to a model of this configuration.
      OSError: when the file cannot be written; one that exists stays as it was.
    """
    path = local_path(path, "the saved decoding")
    batch, max_length = len(decoding.position), _max_length(decoding)
    found = jax.tree_util.tree_leaves_with_path(decoding)
    arrays = [(jax.tree_util.keystr(where), leaf) for where, leaf in found]
    if _described(arrays) != _described(_expected(config, batch, max_length)[0]):
        raise ValueError(
            f"the decoding to be saved in {path} is not one of this configuration's model: give "
            "the config of the model that made it."
        )
    header = {
        "config": _plain(config),
        "batch": batch,
        "max_length": max_length,
        "parameters": None if params is None else _mark(params),
        "arrays": _described(arrays),
    }
    with replacing(path) as file:
        crc = 0
        parts = [FIRST_LINE, json.dumps(header).encode() + b"\n"]
        for part in (*parts, *(_bytes(leaf) for _, leaf in arrays)):
            file.write(part)
            crc = zlib.crc32(part, crc)
        file.write(crc.to_bytes(CRC_BYTES, "big"))


def load_decoding(path: str | Path, config: LMConfig, *, params: Any = None) -> Decoding:
    """Read what `save_decoding` wrote, on the default device.

    Args:
      path: the file.
      config: of the model that will go on; it may differ from the one that was saved in what
        changes no result (implementation, tiles, remat, scan).
      params: its parameters; if given, a file that names others is refused.

    Raises:
      ValueError: when the file is no saved decoding, is damaged, or belongs to another model.
      OSError: when it cannot be read.
    """
    path = local_path(path, "the saved decoding")
    with open_regular(path) as file:
        size = _check_whole(path, file)
        file.seek(len(FIRST_LINE))
        header = _read_header(path, file)
        _check_model(path, header, config, params)
        expected, tree = _expected(config, header["batch"], header["max_length"])
        if header["arrays"] != _described(expected):
            raise ValueError(
                f"{path} was saved by a version of carve_jax with other caches: read the prompt "
                "again."
            )
        bytes_of = [math.prod(leaf.shape) * leaf.dtype.itemsize for _, leaf in expected]
        if file.tell() + sum(bytes_of) + CRC_BYTES != size:
            raise ValueError(
                f"{path} is damaged: its arrays are not of the size that it says; read the prompt "
                "again."
            )
        leaves = [_read(file, leaf.shape, leaf.dtype) for _, leaf in expected]
    return jax.tree_util.tree_unflatten(tree, leaves)


def _read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    """The line that describes the arrays: whole by its checksum, yet anybody may have written it.

    Raises:
      ValueError: when it is not what `save_decoding` writes.
    """
    try:
        header = parse_json(file.readline(LARGEST_HEADER).decode("utf-8"))
        kinds = {"config": dict, "batch": int, "max_length": int, "arrays": list}
        for name, kind in kinds.items():
            if type(header[name]) is not kind:
                raise ValueError(f"its {name} is {shown(header[name])}")
            if kind is int and not 1 <= header[name] <= MOST_ROWS:
                raise ValueError(f"its {name} is {header[name]}")
        header["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else reason_of(error)
        raise ValueError(
            f"{path} is no saved decoding ({reason}); save_decoding writes them."
        ) from error
    return header


def _max_length(decoding: Decoding) -> int:
    """Room for which `init_cache` makes caches of these shapes."""
    found = jax.tree.leaves(decoding.cache, is_leaf=lambda node: isinstance(node, AttentionCache))
    rings = [node for node in found if isinstance(node, AttentionCache)]
    return max((ring.key.shape[2] for ring in rings), default=1)


def _expected(config: LMConfig, batch: int, max_length: int) -> tuple[list[tuple[str, Any]], Any]:
    """Names and shapes of a decoding's arrays, and the tree they make."""

    def empty() -> Decoding:
        cache = LanguageModel(config).init_cache(batch, max_length)
        logits = jnp.zeros((batch, config.vocab_size), jnp.float32)
        return Decoding(cache, logits, jnp.zeros((batch,), jnp.int32))

    shapes = jax.eval_shape(empty)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    return [(jax.tree_util.keystr(where), leaf) for where, leaf in leaves], tree


def _described(arrays: list[tuple[str, Any]]) -> list[list[Any]]:
    return [[name, str(leaf.dtype), list(leaf.shape)] for name, leaf in arrays]


def _bytes(leaf: Any) -> bytes:
    return np.asarray(leaf).tobytes()


def _read(file: BinaryIO, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    raw = file.read(math.prod(shape) * dtype.itemsize)
    return jnp.asarray(np.frombuffer(raw, dtype).reshape(shape))


def _plain(config: LMConfig) -> dict[str, Any]:
    """The fields that make the model, as JSON gives them back."""
    fields = dataclasses.asdict(config)
    return json.loads(json.dumps({k: v for k, v in fields.items() if k not in NOT_THE_MODEL}))


def _mark(params: Any) -> int:
    """CRC-32 of the first numbers of every parameter: enough to tell one training step's apart."""
    first = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.reshape(-1)[:MARK], tree))(params)
    crc = 0
    for where, leaf in jax.tree_util.tree_leaves_with_path(first):
        crc = zlib.crc32(_bytes(leaf), zlib.crc32(jax.tree_util.keystr(where).encode(), crc))
    return crc


def _check_whole(path: Path, file: BinaryIO) -> int:
    """The bytes of a file; ValueError unless it is, to the bit, what was saved."""
    if file.read(len(FIRST_LINE)) != FIRST_LINE:
        raise ValueError(f"{path} is no saved decoding; save_decoding writes them.")
    size = os.fstat(file.fileno()).st_size
    left = size - len(FIRST_LINE) - CRC_BYTES
    crc = zlib.crc32(FIRST_LINE)
    while left > 0:
        block = file.read(min(BLOCK, left))
        if not block:
            break
        crc, left = zlib.crc32(block, crc), left - len(block)
    if left or file.read(CRC_BYTES + 1) != crc.to_bytes(CRC_BYTES, "big"):
        raise ValueError(f"{path} is damaged: it is not what was saved; read the prompt again.")
    return size


def _brief(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and len(text) <= LONGEST_SHOWN else shown(value)


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        inner = value if name in SECTIONS and isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{n}": v for n, v in inner.items()}
    return flat


def _check_model(path: Path, header: dict[str, Any], config: LMConfig, params: Any) -> None:
    saved, given = _flat(with_sections(header["config"])), _flat(_plain(config))
    for name in sorted(saved.keys() | given.keys()):
        if saved.get(name) != given.get(name):
            raise ValueError(
                f"{path} was saved with another model: its {shown(name)[1:-1]} is "
                f"{_brief(saved.get(name))}, that of this one {_brief(given.get(name))}."
            )
    if params is not None and header["parameters"] not in (None, _mark(params)):
        raise ValueError(
            f"{path} was saved with other parameters of this model: use those of that checkpoint, "
            "or read the prompt again."
        )
