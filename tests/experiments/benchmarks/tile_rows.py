"""Rows of a table of tiles."""


def tile_row(
    device: str, dtype: str, width: int, chunk: int = 32, content: bool | None = None
) -> dict:
    """A row of the table; for either kind of rule if `content` is None."""
    kind = {} if content is None else {"content": content}
    sizes = {"device": device, "dtype": dtype, "width": width}
    return {**sizes, **kind, "tiles": {"chunk": chunk}}


GENERIC = [
    tile_row("", "bfloat16", 64),
    tile_row("", "bfloat16", 256),
    tile_row("", "float32", 256),
]
