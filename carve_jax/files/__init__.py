"""Files that others may have touched: written durably, read with limits, named, locked."""

from carve_jax.files.durable import (
    read_regular,
    read_text,
    write_atomically,
    write_new,
)
from carve_jax.files.json_files import (
    Damaged,
    parse_json,
    read_json,
    read_json_lines,
)
from carve_jax.files.locks import held, try_lock
from carve_jax.files.names import digest_of, inside

__all__ = [
    "Damaged",
    "digest_of",
    "held",
    "inside",
    "parse_json",
    "read_json",
    "read_json_lines",
    "read_regular",
    "read_text",
    "try_lock",
    "write_atomically",
    "write_new",
]
