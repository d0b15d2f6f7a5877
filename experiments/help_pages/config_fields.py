"""The fields of a config with their types, defaults and what their source says of them.

That is the comment beside a field; of gates and layer, whose fields are those of a spec, the first
sentence of the field's entry in the docstring of the spec.
"""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from carve_jax.mixers.changes import SECTIONS
from configs import base


class Field(NamedTuple):
    """A field, or a section of fields.

    Attributes:
      name: dotted, as `optimizer.beta1`.
      kind: its type; empty for a section.
      default: as a flag would give it; None if unset, or for a section.
      told: what the source says of it; may be empty.
    """

    name: str
    kind: str
    default: str | None
    told: str


def fields_of(module: ModuleType = base) -> list[Field]:
    """The fields of a module's `get_config()`, in the order of its source."""
    config: ConfigDict = module.get_config()
    found: list[Field] = []
    for name, told in Comments(inspect.getsource(module)).all():
        found.append(_field(config, name, told))
        changes = SECTIONS.get(name.removeprefix("model."))
        if changes is not None:
            entries = attributes(changes.spec)
            found += (_field(config, f"{name}.{field}", entries[field]) for field in changes.kinds)
    return found


def attributes(documented: type) -> dict[str, str]:
    """The first sentence of each entry below `Attributes:` in the docstring of a class."""
    told = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.split(r"\n(?=\w+: )", textwrap.dedent(told))
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: re.split(r"\.(?= |$)", text)[0] for name, _, text in pairs}


def plain(value: object) -> str | None:
    """A value as a flag would give it; None for what is unset."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or None
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or value == "" else str(value)


def _field(config: ConfigDict, name: str, told: str) -> Field:
    *sections, last = name.split(".")
    for section in sections:
        config = config[section]
    value = config[last]
    if isinstance(value, ConfigDict):
        return Field(name, "", None, told)
    return Field(name, KINDS[config.get_type(last)], plain(value), told)


KINDS = {int: "integer", float: "number", str: "text", bool: "true or false", tuple: "list"}


class Comments:
    """Reads the fields and their comments from the source of a config.

    A comment stands behind a field or in the lines above it; of a section that a function makes,
    and that has none, the function's docstring is the comment.
    """

    def __init__(self, source: str) -> None:
        self._beside: dict[int, str] = {}
        self._above: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                alone = token.line.lstrip().startswith("#")
                text = token.string.lstrip("# ")
                (self._above if alone else self._beside)[token.start[0]] = text
        nodes = ast.parse(source).body
        self._functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}

    def all(self) -> Iterator[tuple[str, str]]:
        """Dotted names and comments, a section before its fields."""
        for node in self._functions["get_config"].body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                yield from self._entry(node.targets[0].attr, node.value, node.lineno)

    def _entry(self, name: str, value: ast.expr, line: int) -> Iterator[tuple[str, str]]:
        made = self._functions.get(_called(value))
        if made is not None:
            yield name, self._told(line) or (ast.get_docstring(made) or "").partition("\n")[0]
            returned = made.body[-1]
            assert isinstance(returned, ast.Return)
            assert isinstance(returned.value, ast.Call)
            value = returned.value
        else:
            yield name, self._told(line)
        if (
            isinstance(value, ast.Call)
            and _called(value) == "ConfigDict"
            and isinstance(value.args[0], ast.Dict)
        ):
            for key, inner in zip(value.args[0].keys, value.args[0].values, strict=True):
                assert isinstance(key, ast.Constant)
                assert isinstance(key.value, str)
                # Beside several fields in one line stands what is said of them all.
                own = key.lineno if key.lineno != line else 0
                yield from self._entry(f"{name}.{key.value}", inner, own)

    def _told(self, line: int) -> str:
        first = line
        while first - 1 in self._above:
            first -= 1
        lines = [self._above[number] for number in range(first, line)]
        return " ".join([*lines, *filter(None, [self._beside.get(line)])])


def _called(value: ast.expr) -> str:
    """The name of the function that an expression calls; empty if it calls none."""
    return getattr(value.func, "id", "") if isinstance(value, ast.Call) else ""
