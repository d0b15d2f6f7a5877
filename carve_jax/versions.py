"""Whether the packages that are installed are those that this one was tested with.

The ranges are those of pyproject.toml, which says why each has its end; they are read from what was
installed, so that there is one place for them. pip keeps to them; `--no-deps`, other installers and
a later upgrade of one package do not.
"""

import sys
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

PACKAGE = "carve_jax"
try:
    VERSION = metadata.version(PACKAGE)
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0+unknown"
# Extras of those who use it, not of those who test it.
EXTRAS = ("", "gpu", "torch", "parquet", "text", "eval")


def untested() -> list[str]:
    """What is installed outside the tested ranges, one clause for each package; nothing is said of
    what is not installed."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return []
    found: dict[str, str] = {}
    for line in lines:
        try:
            wanted = Requirement(line)
            installed = metadata.version(wanted.name)
        except (InvalidRequirement, metadata.PackageNotFoundError):
            continue
        marker = wanted.marker
        meant = marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS)
        if meant and not wanted.specifier.contains(installed, prereleases=True):
            found[wanted.name] = f"{wanted.name} {installed} (tested: {wanted.specifier})"
    return list(found.values())


def warn_of_untested() -> None:
    """One line on stderr, where there is something to say."""
    found = untested()
    if found:
        print(
            f"warning: not tested with {', '.join(found)}: if something fails, install the tested "
            "versions first",
            file=sys.stderr,
        )
