"""What was tried, as a table. Imported by the root's conftest: nothing heavy here."""

from collections.abc import Mapping
from typing import Any

PROPERTY = "fuzz"
OUTCOMES = ("right", "repaired", "refused", "another")


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """One line for each kind, and their sum."""
    width = max(len(name) for name in [*counts, "all kinds"])
    lines = [f"{'kind':{width}} {'examples':>9}" + "".join(f"{o:>9}" for o in OUTCOMES)]
    total = {o: sum(found.get(o, 0) for found in counts.values()) for o in OUTCOMES}
    for name, found in [*counts.items(), ("all kinds", total)]:
        cells = "".join(f"{found.get(o, 0):>9,}" for o in OUTCOMES)
        lines.append(f"{name:{width}} {sum(found.values()):>9,}{cells}")
    return "\n".join(lines)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the counts of this session's examples, whichever process tried them."""
    counts = {
        name: found
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, (name, found) in getattr(report, "user_properties", ())
        if key == PROPERTY
    }
    if counts:
        terminalreporter.section("damaged files: what readers made of them")
        terminalreporter.write_line(table(dict(sorted(counts.items()))))
