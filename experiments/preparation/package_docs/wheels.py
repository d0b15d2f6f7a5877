"""The wheels that `package_docs` is made of: fetched by pip, held against their digests, kept.

A wheel is an archive to read here: none is installed or imported, and nothing of it is run.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tqdm

from carve_jax.errors import UserError
from carve_jax.files import open_regular, reason_of, sync_directory, told
from pallas_kernels.user_cache import user_cache

ELSEWHERE = "set XDG_CACHE_HOME to a folder of yours"


class Wheel(NamedTuple):
    """A wheel that runs on every machine, so that everybody's is the same file.

    Attributes:
      name: of the package.
      version: of it.
      sha256: of the wheel.
      licence: of package and text, as the wheel's metadata say.
      readers: names in `readers.READERS` of what is taken from it.
    """

    name: str
    version: str
    sha256: str
    licence: str
    readers: tuple[str, ...] = ("docstrings", "files")


TABLE = (
    Wheel(
        "botocore",
        "1.44.8",
        "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043",
        "Apache-2.0",
        ("botocore",),
    ),
    Wheel(
        "dask",
        "2026.8.0",
        "ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c",
        "BSD-3-Clause",
    ),
    Wheel(
        "google-api-python-client",
        "2.202.0",
        "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
        "Apache 2.0",
        ("discovery",),
    ),
    Wheel(
        "hypothesis",
        "6.155.7",
        "9f634bdb1f9e9b8ab6ba09431cf2deedb750c96978125a6fb3c5a0f6c6db4131",
        "MPL-2.0",
    ),
    Wheel(
        "ipython",
        "9.18.1",
        "997ce9140d374531a61069c70c0f9ef299d6dd3559ea0f94b8af589726e3c1d5",
        "BSD-3-Clause",
    ),
    Wheel(
        "jax",
        "0.10.2",
        "724d73c4678d8b06f6a6ab4db1b8a2fea8cd4f1e2c2564f99601634ec7b8d1c6",
        "Apache-2.0",
    ),
    Wheel(
        "keras",
        "3.15.1",
        "836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20",
        "Apache License 2.0",
    ),
    Wheel(
        "mne",
        "1.13.2",
        "36bbdd9fdc68431309a75e9dc6331b9de085cb6836688ac50b7b89f141a83cc3",
        "BSD-3-Clause",
    ),
    Wheel(
        "mpmath",
        "1.4.1",
        "dc4f0ea2304480d4a9a48a94c1020571558ade522b44a6912efac63a586e140f",
        "BSD-3-Clause",
    ),
    Wheel(
        "networkx",
        "3.6.1",
        "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
        "BSD-3-Clause",
    ),
    Wheel(
        "nltk",
        "3.10.4",
        "769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51",
        "Apache License, Version 2.0",
    ),
    Wheel(
        "optuna",
        "5.0.0",
        "5fff892ae6baf4948c810c5b8635ec67e08efb0709b41cb73b14e30391d44720",
        "MIT License",
    ),
    Wheel(
        "prowler",
        "5.46.0",
        "b6266ec51f2879863d4c4341b12885a6cd892f0bba710b29641432caaab037fd",
        "Apache-2.0",
        ("checks",),
    ),
    Wheel(
        "pymc",
        "5.28.5",
        "29f44aa3edd727b29eb0a555eec0d9def4775a5d5c849eee31239384a5feaec2",
        "Apache License, Version 2.0",
    ),
    Wheel(
        "sqlalchemy",
        "2.1.9",
        "449fed5c2caa3b278cc57499d09db001fb3f28dc7f18affc48142aee4dcc0cdf",
        "MIT",
    ),
    Wheel(
        "sympy",
        "1.14.0",
        "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        "BSD",
    ),
    Wheel(
        "tensorflow-probability",
        "0.25.0",
        "f3f4d6431656c0122906888afe1b67b4400e82bd7f254b45b92e6c5b84ea8e3e",
        "Apache 2.0",
    ),
    Wheel(
        "transformers",
        "5.24.0",
        "ff5ebedf9359f94bb63772b6380eba6e7104d010cbbb2cb82c788817ea7486f6",
        "Apache 2.0 License",
    ),
    Wheel(
        "twisted",
        "26.10.0",
        "3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8",
        "MIT",
    ),
    Wheel(
        "xarray",
        "2026.9.0",
        "fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c",
        "Apache-2.0",
    ),
)


def fetched(table: Sequence[Wheel]) -> list[Path]:
    """The files of the wheels, in the table's order; each is fetched once, and kept.

    Raises:
      UserError: one cannot be fetched, or the user's cache folder cannot be written; those that
        were fetched before stay.
    """
    folder = cache_folder() / "wheels"
    with told(folder, ELSEWHERE, failed="cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{wheel.name}-{wheel.version}.whl" for wheel in table]
    missing = [
        (wheel, path)
        for wheel, path in zip(table, paths, strict=True)
        if not _is_whole(path, wheel.sha256)
    ]
    for _, path in missing:
        if os.path.lexists(path):
            print(f"{path} is not what its digest says: it is fetched again")
    with tqdm.tqdm(missing, unit="wheel", desc="wheels", disable=not missing) as progress:
        for wheel, path in progress:
            _fetch(wheel, path)
    return paths


def cache_folder() -> Path:
    """The folder of wheels and of what is made of them.

    Raises:
      UserError: the user has no home directory.
    """
    try:
        return user_cache("package_docs")
    except RuntimeError as error:
        raise UserError(f"There is no folder to keep wheels in ({error}): {ELSEWHERE}") from error


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether the file is there and is that of this digest."""
    try:
        return file_digest(path) == sha256
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file.

    Raises:
      OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(wheel: Wheel, path: Path) -> None:
    """Has pip fetch a wheel, and puts it in its place in one move."""
    with (
        told(path.parent, f"make room, or {ELSEWHERE}", failed="cannot be written"),
        tempfile.TemporaryDirectory(dir=path.parent) as made,
    ):
        reason = download(wheel, Path(made))
        files = list(Path(made).glob("*.whl"))
        if not reason and [file_digest(file) for file in files] != [wheel.sha256]:
            reason = "pip gave another file than the one of the digest"
        if reason:
            raise UserError(
                f"package_docs needs the wheel {wheel.name} {wheel.version}, and `pip download` "
                f"did not give it ({reason}): connect to a package index, or copy the wheel to "
                f"{path}, and run again; what was fetched before is kept"
            )
        os.replace(files[0], path)
        sync_directory(path.parent)


def download(wheel: Wheel, folder: Path) -> str:
    """Runs `pip download` for one wheel; gives the reason where it fails, or nothing."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # Any platform's: an index may hold faster wheels of the same version, built for this one.
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--platform=any"]
    command += ["--ignore-requires-python", "--require-hashes", f"--dest={folder}"]
    done = subprocess.run(
        [*command, f"--requirement={wanted}"],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    return reason_of(RuntimeError(errors[-1].removeprefix("ERROR:").strip()))
