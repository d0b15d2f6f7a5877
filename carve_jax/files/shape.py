"""Whether a value that was read from JSON has the parts that its reader takes for given."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from carve_jax.files.paths import shown

Shape = Any
"""A type; a tuple of types, one of which it is; `{name: shape}`: an object with at least these;
`[shape]`: a list of such; `Each(shape)`: an object of such; `Maybe(shape)`: such, null or absent.
`float` takes whole numbers too, and `object` anything."""


class Each(NamedTuple):
    """An object whose every value has a shape."""

    of: Shape


class Maybe(NamedTuple):
    """A shape, null, or nothing at all."""

    of: Shape


def check_shape(value: Any, shape: Shape, where: str = "") -> None:
    """Raises ValueError, with the place, for a value of another shape.

    Args:
      value: of JSON.
      shape: see `Shape`.
      where: its place, for the message.
    """
    if isinstance(shape, Maybe):
        if value is not None:
            check_shape(value, shape.of, where)
    elif isinstance(shape, Each):
        _is(value, dict, where)
        for name, part in value.items():
            check_shape(part, shape.of, f"{where}.{shown(name)[1:-1]}".lstrip("."))
    elif isinstance(shape, Mapping):
        _is(value, dict, where)
        for name, part in shape.items():
            place = f"{where}.{name}".lstrip(".")
            if name not in value and not isinstance(part, Maybe):
                raise ValueError(f"{place} is missing")
            check_shape(value.get(name), part, place)
    elif isinstance(shape, list):
        _is(value, list, where)
        for number, part in enumerate(value):
            check_shape(part, shape[0], f"{where}[{number}]")
    else:
        _is(value, shape, where)


def _is(value: Any, kinds: type | tuple[type, ...], where: str) -> None:
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if object in allowed or type(value) in allowed or (float in allowed and type(value) is int):
        return
    raise ValueError(f"{where or 'it'} is {shown(value)}")
