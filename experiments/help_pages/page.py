"""The page that `--help` prints: what a command does, its flags, a config's fields, examples."""

import textwrap
from collections.abc import Iterable

from absl import flags

from experiments.help_pages.config_fields import Field, fields_of, plain

WIDTH = 100
COLUMN = 44  # where the texts begin
EXAMPLES = "Examples:"
KINDS = {
    "string": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "comma separated list of strings": "list",
    "multi string": "text, repeatable",
}


def render(
    docstring: str, definitions: flags.FlagValues, section: str | None, fields: tuple[str, ...]
) -> str:
    """The whole page.

    Args:
      docstring: of the command's module; its examples, below a line `Examples:`, come last.
      definitions: the command's flags.
      section: that a config's fields are given with, as `--section.KEY=VALUE`; None if with none.
      fields: what the names of fields that the command takes begin with.
    """
    text, _, examples = docstring.strip().partition(f"\n{EXAMPLES}\n")
    parts = [text.rstrip(), "Flags (type; default):\n" + _rows(map(_of_flag, _each(definitions)))]
    if section is not None:
        rows = [_of_field(field) for field in fields_of() if field.name.startswith(fields)]
        head = (
            f"Fields of a config, given as --{section}.NAME=VALUE (type; value in configs/base.py):"
        )
        parts.append(f"{head}\n{_rows(rows)}")
    if examples:
        parts.append(f"{EXAMPLES}\n{examples.rstrip()}")
    return "\n\n".join(parts)


def _each(definitions: flags.FlagValues) -> list[flags.Flag]:
    return [definitions[name] for name in definitions]


def _of_flag(flag: flags.Flag) -> tuple[str, str]:
    # The library adds to a text that the flag may be repeated, or what the choices are.
    told = flag.help.partition(";\n")[0]
    if isinstance(flag.parser, flags.EnumParser):
        kind = "|".join(flag.parser.enum_values)
        told = told.removeprefix(f"<{kind}>: ")
    else:
        kind = KINDS[flag.flag_type()]
    return f"--{flag.name}{_about(kind, plain(flag.default))}", told


def _of_field(field: Field) -> tuple[str, str]:
    return f"{field.name}{_about(field.kind, field.default)}", field.told


def _about(kind: str, default: str | None) -> str:
    if not kind:
        return ""
    return f" ({kind}; {default})" if default is not None else f" ({kind})"


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    """Names in one column and texts in the next; a long name has a line of its own."""
    lines: list[str] = []
    for name, text in rows:
        told = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False)
        first = f"  {name}"
        if told and len(first) + 2 <= COLUMN:
            first = first.ljust(COLUMN) + told.pop(0)
        lines += [first, *(" " * COLUMN + line for line in told)]
    return "\n".join(lines)
