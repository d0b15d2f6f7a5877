"""Real text that every Python carries: its language reference and its standard library.

The text is that of the Python that runs, so its size and its hash differ a little from version to
version; `fingerprint` of the documents goes into a run's provenance.
"""

import ast
import functools
import gc
import importlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from carve_jax.data.sources.documents import Document, drop_repeats
from carve_jax.errors import UserError

# Tests and generated tables are not prose; pydoc_data is the "topics" part itself; the modules of
# `encodings` are a hundred near-copies, some of which would land on either side of the split.
_SKIPPED = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"}
)
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.lru_cache(maxsize=4)
def stdlib_documents(parts: tuple[str, ...]) -> tuple[Document, ...]:
    """Documents of the named parts ("topics", "docstrings", "sources"), in a fixed order.

    A topic of the language reference is a document; so are one module's docstrings, each under its
    qualified name; so is one module's source. Documents that repeat others are dropped.

    Raises:
      UserError: this Python lacks the text.
    """
    readers = {"topics": _topics, "docstrings": _docstrings, "sources": _sources}
    documents = (document for part in parts for document in readers[part]())
    return tuple(drop_repeats(document for document in documents if document.text))


def _topics() -> Iterator[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UserError(
            "This Python was installed without pydoc_data.topics, the language reference; "
            "install the full standard library or set data.parts=('docstrings',)."
        ) from error
    for name in sorted(topics):
        yield Document(f"topics/{name}", topics[name].encode())


def _sources() -> Iterator[Document]:
    for name, text in _modules():
        yield Document(f"sources/{name}", text)


def _docstrings() -> Iterator[Document]:
    seen: set[str] = set()  # methods of sibling classes share many
    for name, source in _modules():
        entries = []
        for qualified, text in docstrings_of(name, source):
            if text not in seen:
                seen.add(text)
                entries.append(f"{qualified}\n\n{text}\n")
        yield Document(f"docstrings/{name}", "\n".join(entries).encode())


def docstrings_of(name: str, source: bytes) -> list[tuple[str, str]]:
    """The docstrings of a module, each with its qualified name.

    Args:
      name: dotted, of the module.
      source: of the module, which is parsed and not run.

    Raises:
      SyntaxError: it is none of this Python.
    """
    collects = gc.isenabled()
    gc.disable()  # it would look through the syntax tree again and again: half of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            return list(_walk(ast.parse(source), name))
    finally:
        if collects:
            gc.enable()


def _walk(node: ast.AST, qualified: str) -> Iterator[tuple[str, str]]:
    """The docstrings below a node in order of appearance, each with its qualified name."""
    if isinstance(node, (ast.Module, *_DOCUMENTED)):
        text = ast.get_docstring(node)
        if text:
            yield qualified, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DOCUMENTED):
            yield from _walk(child, f"{qualified}.{child.name}")
        elif isinstance(child, ast.stmt):  # definitions under `if` and `try`
            yield from _walk(child, qualified)


def _modules() -> Iterator[tuple[str, bytes]]:
    """Dotted name and UTF-8 source of each module of the standard library, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    paths: list[Path] = []
    for name in sys.stdlib_module_names - _SKIPPED:
        if name.startswith("_sysconfigdata"):  # the build's settings, not text
            continue
        package = root / name
        paths.extend(package.rglob("*.py") if package.is_dir() else root.glob(f"{name}.py"))
    modules = {}
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts):
            modules[".".join(part for part in parts if part != "__init__")] = path
    if not modules:
        raise UserError(
            f"This Python keeps no source files of the standard library in {root}; install them "
            "or set data.parts=('topics',)."
        )
    for name in sorted(modules):
        text = modules[name].read_bytes()
        try:
            text.decode()
        except UnicodeDecodeError:  # a handful declare another encoding
            continue
        yield name, text
