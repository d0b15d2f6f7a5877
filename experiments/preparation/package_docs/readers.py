"""What is read of a wheel: files of documentation, docstrings, and descriptions of interfaces."""

import gzip
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from carve_jax.data.sources.stdlib import docstrings_of
from experiments.preparation.package_docs.draft import Draft, Section
from experiments.preparation.package_docs.markup import plain_text

# Tests describe themselves, vendored packages are others', and locales are not English.
_SKIPPED = frozenset({"test", "tests", "_test", "_tests", "_vendor", "vendor", "locale", "locales"})
_FILES = (".rst", ".md", ".txt")
_LEGAL = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_LEAST_WORDS = 10  # of a member's description; a shorter one says its name again
_VERSION = re.compile(r"^(?P<name>.+?)\.(?P<version>[^.]*\d.*|alpha|beta)\.json$")


def drafts_of(path: Path, package: str, readers: tuple[str, ...]) -> list[Draft]:
    """The documents of a wheel, by reader, and in the order of its names.

    Raises:
      OSError, zipfile.BadZipFile, ValueError: it is no wheel that is read like this.
    """
    with zipfile.ZipFile(path) as wheel:
        return [
            Draft(f"{package}/{draft.name}", draft.sections)
            for reader in readers
            for draft in READERS[reader](wheel)
        ]


def _names(wheel: zipfile.ZipFile, suffixes: tuple[str, ...]) -> list[str]:
    """The files with these suffixes, sorted; none of tests and of the wheel's own records."""
    return sorted(
        name
        for name in wheel.namelist()
        if name.endswith(suffixes)
        and _SKIPPED.isdisjoint(PurePosixPath(name).parts)
        and not re.search(r"(^|/)(test_[^/]*|[^/]*_test\.py)$", name)
        and not name.split("/")[0].endswith((".dist-info", ".data"))
    )


def _docstrings(wheel: zipfile.ZipFile) -> Iterator[Draft]:
    """A document for each module."""
    for name in _names(wheel, (".py",)):
        module = ".".join(PurePosixPath(name).with_suffix("").parts).removesuffix(".__init__")
        try:
            found = docstrings_of(module, wheel.read(name))
        except (SyntaxError, ValueError):  # templates with gaps, sources of another Python
            continue
        yield Draft(module, [Section(f"{qualified}\n\n", text) for qualified, text in found])


def _files(wheel: zipfile.ZipFile) -> Iterator[Draft]:
    """A document for each text file, and for the description in the wheel's metadata."""
    names = [name for name in _names(wheel, _FILES) if not _LEGAL.search(name.split("/")[-1])]
    metadata = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    for name in [*names, *metadata]:
        try:
            text = wheel.read(name).decode("utf-8")
        except UnicodeDecodeError:
            continue
        if name in metadata:
            name, text = "description", text.replace("\r\n", "\n").partition("\n\n")[2]
        yield Draft(name, [Section("", text)])


def _json(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("a description of an interface is no JSON object")
    return found


def _member(name: str, described: dict[str, Any]) -> Section:
    """A member, parameter or shape, with what is said of it if that is more than a few words."""
    text = plain_text(described.get("documentation") or described.get("description") or "")
    return Section(f"{name}: ", text if len(text.split()) >= _LEAST_WORDS else "")


def _botocore(wheel: zipfile.ZipFile) -> Iterator[Draft]:
    """A document for each service, of its newest description."""
    newest: dict[str, str] = {}
    for name in _names(wheel, ("/service-2.json", "/service-2.json.gz")):
        newest[name.split("/")[-3]] = name  # botocore/data/SERVICE/DATE/service-2.json
    for service, name in newest.items():
        content = wheel.read(name)
        model = _json(gzip.decompress(content) if name.endswith(".gz") else content)
        title = str(model.get("metadata", {}).get("serviceFullName", service))
        yield Draft(service, list(_service(title, model)))


def _service(title: str, model: dict[str, Any]) -> Iterator[Section]:
    """A service, and its operations, each before the shapes that nothing before it has used."""
    yield Section(f"{title}\n\n", plain_text(model.get("documentation") or ""))
    seen: set[str] = set()
    for name, operation in model.get("operations", {}).items():
        yield Section(f"{name}\n\n", plain_text(operation.get("documentation") or ""))
        uses = [operation.get("input"), operation.get("output"), *operation.get("errors", [])]
        for use in filter(None, uses):
            yield from _shape(use["shape"], model["shapes"], seen)


def _shape(name: str, shapes: dict[str, Any], seen: set[str]) -> Iterator[Section]:
    """The members of a shape, and then the shapes that they are made of."""
    waiting = [name]
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        shape = shapes[name]
        yield _member(name, shape)
        for member, use in shape.get("members", {}).items():
            yield _member(member, use)
            waiting.append(use["shape"])
        waiting += [shape[part]["shape"] for part in ("member", "key", "value") if part in shape]


def _discovery(wheel: zipfile.ZipFile) -> Iterator[Draft]:
    """A document for each interface, of its newest version that is not a trial.

    Of interfaces that share what stands before the first dot of their name, one is taken.
    """
    newest: dict[str, tuple[bool, list[int], str]] = {}
    for name in _names(wheel, (".json",)):
        match = _VERSION.match(name.split("/")[-1])
        if match:
            version = match["version"]
            numbers = [int(number) for number in re.findall(r"\d+", version)]
            found = (not re.search(r"alpha|beta|p\d", version), numbers, name)
            newest[match["name"]] = max(found, newest.get(match["name"], found))
    for interface, (_, _, name) in newest.items():
        model = _json(wheel.read(name))
        yield Draft(interface, list(_interface(str(model.get("title", interface)), model)))


def _interface(title: str, model: dict[str, Any]) -> Iterator[Section]:
    """An interface: what it is, its methods, and what they take and give."""
    yield Section(f"{title}\n\n", plain_text(model.get("description") or ""))
    yield from _methods(model, "")
    for name, schema in model.get("schemas", {}).items():
        yield Section(f"{name}\n\n", plain_text(schema.get("description") or ""))
        yield from _properties(schema)


def _methods(resource: dict[str, Any], prefix: str) -> Iterator[Section]:
    for name, method in resource.get("methods", {}).items():
        yield Section(f"{prefix}{name}\n\n", plain_text(method.get("description") or ""))
        for parameter, facts in method.get("parameters", {}).items():
            yield _member(parameter, facts)
    for name, inner in resource.get("resources", {}).items():
        yield from _methods(inner, f"{prefix}{name}.")


def _properties(schema: dict[str, Any]) -> Iterator[Section]:
    for name, facts in schema.get("properties", {}).items():
        yield _member(name, facts)
        for part in (facts, facts.get("items", {})):
            yield from _properties(part)


def _checks(wheel: zipfile.ZipFile) -> Iterator[Draft]:
    """A document for each service that a scanner of clouds checks: what it looks for, and why."""
    services: dict[str, list[Section]] = {}
    for name in _names(wheel, (".metadata.json",)):
        facts = _json(wheel.read(name))
        advice = facts.get("Remediation", {}).get("Recommendation", {}).get("Text")
        texts = [facts.get("Description"), facts.get("Risk"), advice, facts.get("Notes")]
        text = "\n\n".join(plain_text(part) for part in texts if part)
        service = "/".join(name.split("/")[:-2])
        services.setdefault(service, []).append(Section(f"{facts.get('CheckTitle')}\n\n", text))
    for service, sections in services.items():
        yield Draft(service, sections)


READERS: dict[str, Callable[[zipfile.ZipFile], Iterator[Draft]]] = {
    "docstrings": _docstrings,
    "files": _files,
    "botocore": _botocore,
    "discovery": _discovery,
    "checks": _checks,
}
