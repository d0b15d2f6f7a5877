"""Tiny wheels, made here, in place of those that pip fetches."""

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from experiments.preparation.package_docs import wheels
from experiments.preparation.package_docs.wheels import Wheel

SUBJECTS = ("river", "engine", "letter", "garden", "planet", "market", "violin", "harbour")


def prose(number: int, sentences: int = 12) -> str:
    """English of its own for each number: no two share five words in a row."""
    return "\n\n".join(
        f"This is what part {number} of chapter {s} has for the {SUBJECTS[(number + s) % 8]} that "
        f"we saw {number * 31 + s} times, and it is not the same as in number {number * 17 + s}."
        for s in range(sentences)
    )


def module(*texts: str) -> bytes:
    """A module with a function for each docstring; running it would be noticed."""
    functions = [f"def f{i}():\n    {text!r}\n" for i, text in enumerate(texts)]
    return "\n".join(["raise SystemExit('it was run')", *functions]).encode()


def wheel_bytes(files: dict[str, bytes]) -> bytes:
    """An archive that is the same whenever it is made."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


def botocore_files() -> dict[str, bytes]:
    """Two services, one of them described twice."""

    def model(text: str) -> bytes:
        name = "The name by which whatever is asked for can be found."
        shapes = {
            "Ask": {"type": "structure", "members": {"Name": {"shape": "N", "documentation": name}}}
        }
        operation = {"documentation": f"<p>{prose(70)}</p>", "input": {"shape": "Ask"}}
        content = {
            "metadata": {"serviceFullName": "A Service"},
            "documentation": f"<p>What the <b>service</b> is for: {text}</p>",
            "operations": {"AskIt": operation},
            "shapes": {**shapes, "N": {"type": "string"}},
        }
        return gzip.compress(json.dumps(content).encode(), mtime=0)

    return {
        "botocore/data/one/2020-01-01/service-2.json.gz": model("This is the old one. " * 9),
        "botocore/data/one/2021-01-01/service-2.json.gz": model("This is the new one. " * 9),
    }


def packages(number: int = 0) -> dict[Wheel, bytes]:
    """A table of wheels and what they hold."""
    texts = [prose(number * 100 + i) for i in range(20)]
    plain = {f"plain/m{i}.py": module(text) for i, text in enumerate(texts)}
    plain["plain/tests/test_it.py"] = module(prose(60))
    plain["plain/gap.py"] = b"def {{ name }}():"
    plain["plain/guide.rst"] = prose(50).encode()
    plain["plain/LICENSE.txt"] = prose(51).encode()
    plain["plain-1.0.dist-info/METADATA"] = f"Name: plain\n\n{prose(52)}\n".encode()
    found = {}
    for name, readers, files in (
        ("plain", ("docstrings", "files"), plain),
        ("botocore", ("botocore",), botocore_files()),
    ):
        content = wheel_bytes(files)
        digest = hashlib.sha256(content).hexdigest()
        found[Wheel(name, "1.0", digest, "MIT", readers)] = content
    return found


@contextlib.contextmanager
def index_of(found: dict[Wheel, bytes], cache: Path) -> Iterator[list[str]]:
    """The table holds these wheels alone, and pip gives them; names of those that it was asked."""
    asked: list[str] = []

    def download(wheel: Wheel, folder: Path) -> str:
        asked.append(wheel.name)
        (folder / f"{wheel.name}-1.0-py3-none-any.whl").write_bytes(found[wheel])
        return ""

    with (
        mock.patch.object(wheels, "TABLE", tuple(found)),
        mock.patch.object(wheels, "download", download),
        mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(cache)}),
    ):
        yield asked


def forget_text(cache: Path) -> None:
    """Leaves the wheels and removes what was made of them."""
    for path in (cache / "carve_jax" / "package_docs").glob("*.*"):
        path.unlink()


def forget_all(cache: Path) -> None:
    """Removes wheels and text."""
    shutil.rmtree(cache / "carve_jax", ignore_errors=True)
