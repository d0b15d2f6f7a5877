"""Numbers, names and tables as Markdown."""

import math
import re
from collections.abc import Iterable, Sequence

MOST_DECIMALS = 6


def escape(text: str) -> str:
    """Any text as one line of Markdown that reads as it is, in tables too."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*\[\]|<>~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)


def code(text: str) -> str:
    """Any text as a code span on one line; in a table, one without |."""
    line = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    padding = " " if "`" in line else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and the rest figures, set to the right."""
    marks = [":--" if i < left else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *rows))


def bullets(lines: Iterable[str]) -> str:
    """The lines as a bulleted list."""
    return "\n".join(f"- {line}" for line in lines)


def picture(name: str, title: str, caption: str) -> str:
    """A picture under its title and above its caption, as one paragraph that stays together."""
    return f"**{escape(title)}**\\\n![{escape(title)}]({name})\\\n*{escape(caption)}*"


def join(names: Sequence[str]) -> str:
    """The names in one phrase: a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def decimals(scale: float) -> int:
    """How many decimals show two digits of a number of that size, 0 to 6."""
    if not math.isfinite(scale) or scale <= 0:
        return 4
    return min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(scale))))


def number(value: float | None, places: int) -> str:
    """The number with a true minus sign; a dash for what is unknown."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{places}f}".replace("-", "−").replace("inf", "∞")


def signed(value: float, places: int) -> str:
    """The number with its sign; zero has none."""
    text = number(value, places)
    return text if value <= 0 or math.isnan(value) else f"+{text}"


def probability(p: float) -> str:
    """A p-value."""
    if math.isnan(p):
        return "–"
    if p < 0.0001:
        return "<\N{NO-BREAK SPACE}0.0001"
    return f"{p:.4f}" if p < 0.1 else f"{p:.3f}"


def count(number: int, thing: str) -> str:
    """The number with its noun: 1 seed, 2 seeds."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """A duration in the unit that suits it."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(found: float | None) -> str:
    """Bytes in MB or GB."""
    if found is None:
        return "–"
    return f"{found / 1e6:,.0f} MB" if found < 1e9 else f"{found / 1e9:,.2f} GB"


def percent(ratio: float) -> str:
    """A ratio's distance from one."""
    return f"{signed(100 * (ratio - 1), 1)}%"
