"""Files that others may have touched: written durably, read with limits, named, locked."""

from carve_jax.files.durable import (
    read_regular,
    read_text,
    replacing,
    sync_directory,
    write_atomically,
    write_new,
    write_synced,
)
from carve_jax.files.json_files import (
    Damaged,
    parse_json,
    read_json,
    read_json_lines,
)
from carve_jax.files.locks import held, try_lock
from carve_jax.files.names import digest_of, inside
from carve_jax.files.paths import (
    local_path,
    made_directory,
    open_regular,
    output_file,
    reason_of,
    shown,
    told,
)
from carve_jax.files.shape import Each, Maybe, Shape, check_shape

__all__ = [
    "Damaged",
    "Each",
    "Maybe",
    "Shape",
    "check_shape",
    "digest_of",
    "held",
    "inside",
    "local_path",
    "made_directory",
    "open_regular",
    "output_file",
    "parse_json",
    "read_json",
    "read_json_lines",
    "read_regular",
    "read_text",
    "reason_of",
    "replacing",
    "shown",
    "sync_directory",
    "told",
    "try_lock",
    "write_atomically",
    "write_new",
    "write_synced",
]
