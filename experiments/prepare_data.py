"""Turns text into token files for `data.source = "token_files"`.

    python -m experiments.prepare_data --input=FILE_OR_DIRECTORY,… --output=DIRECTORY \
        --tokenizer=bytes|bpe|tokenizer.json [--vocab_size=8192] [--eval_fraction=0.01]

A text file is a document; so is each line of a .jsonl file (`{"text": …}`). A directory stands for
the .txt, .md, .rst and .jsonl files below it, `stdlib` for the text that Python itself carries. A
hash of its name decides whether a document is held out (an expected share of --eval_fraction).
--vocab_size is that of a bpe, which is trained on the documents that are not held out.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tqdm
from absl import flags

from carve_jax.errors import UserError
from carve_jax.training.data.config import check_fraction
from carve_jax.training.data.documents import Document, is_held_out
from carve_jax.training.data.pipeline import build_tokenizer
from carve_jax.training.data.stdlib import stdlib_documents
from carve_jax.training.data.token_files import (
    SPLITS,
    TOKENIZER_FILE,
    ShardWriter,
    TokenFiles,
    write_tokenizer,
)
from carve_jax.training.data.tokenizer import Tokenizer
from experiments import cli

_SUFFIXES = (".txt", ".md", ".rst", ".jsonl")
_STDLIB_PARTS = ("topics", "docstrings")


def list_files(inputs: Sequence[str]) -> list[tuple[Path, str]]:
    """The files meant by the inputs, each with its document name, in a fixed order.

    Raises:
      UserError: an input that does not exist or a directory without text files.
    """
    files = []
    for given in inputs:
        path = Path(given)
        if path.is_file():
            files.append((path, path.name))
        elif path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{given} holds no text files ({', '.join(_SUFFIXES)}).")
            files.extend((p, p.relative_to(path).as_posix()) for p in found)
        else:
            raise UserError(f"--input names {given!r}, which is no file, directory or 'stdlib'.")
    return files


def read_documents(
    files: Sequence[tuple[Path, str]], on_bytes: Callable[[int], object]
) -> Iterator[Document]:
    """The documents of the files: a whole text, or each line of a .jsonl file.

    `on_bytes` is told how many bytes of the files each document took.

    Raises:
      UserError: a line that is not an object with a string `text`.
    """
    for path, name in files:
        if path.suffix != ".jsonl":
            text = path.read_bytes()
            yield Document(name, text)
            on_bytes(len(text))
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Document(f"{name}:{number}", _text_of(line, f"{path}:{number}"))
                on_bytes(len(line))


def _text_of(line: bytes, where: str) -> bytes:
    try:
        return json.loads(line)["text"].encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{where} is not a JSON object with a string "text" ({error!r}).'
        ) from error


def _documents(
    inputs: Sequence[str], on_bytes: Callable[[int], object] = lambda count: None
) -> Iterator[Document]:
    for given in inputs:
        if given != "stdlib":
            yield from read_documents(list_files([given]), on_bytes)
            continue
        for document in stdlib_documents(_STDLIB_PARTS):
            yield document
            on_bytes(len(document.text))


def _total_bytes(inputs: Sequence[str]) -> int:
    texts = stdlib_documents(_STDLIB_PARTS) if "stdlib" in inputs else ()
    files = list_files([given for given in inputs if given != "stdlib"])
    return sum(len(d.text) for d in texts) + sum(path.stat().st_size for path, _ in files)


def prepare(
    inputs: Sequence[str], output: Path, tokenizer: str, vocab_size: int, eval_fraction: float
) -> TokenFiles:
    """Writes `train-00000` and `eval-00000` below `output`.

    Raises:
      UserError: bad inputs or settings, token files already there, no document on one side of
        the split, or a full disk. A run that fails leaves no files.
    """
    check_fraction("--eval_fraction", eval_fraction)
    total = _total_bytes(inputs)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be made ({error.strerror}).") from error
    if any(path for split in SPLITS for path in output.glob(f"{split}-*.json")):
        raise UserError(f"{output} holds token files already; remove them or choose another.")
    training = (d.text for d in _documents(inputs) if not is_held_out(d.name, eval_fraction))
    made = build_tokenizer(tokenizer, vocab_size, training)
    try:
        with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="tokens") as progress:
            _write(_documents(inputs, progress.update), output, made, eval_fraction)
    except BaseException:
        for path in (output / TOKENIZER_FILE, *(p for s in SPLITS for p in output.glob(f"{s}-*"))):
            path.unlink(missing_ok=True)
        raise
    return TokenFiles(output)


def _write(
    documents: Iterator[Document], output: Path, tokenizer: Tokenizer, fraction: float
) -> None:
    counts = dict.fromkeys(SPLITS, 0)
    with (
        ShardWriter(output, "train-00000", tokenizer) as train,
        ShardWriter(output, "eval-00000", tokenizer) as held_out,
    ):
        for document in documents:
            split = "eval" if is_held_out(document.name, fraction) else "train"
            ids = tokenizer.encode(document.text)
            if len(ids):
                (held_out if split == "eval" else train).write(ids)
                counts[split] += 1
        if not all(counts.values()):
            raise UserError(
                f"The input has {counts['train']} training and {counts['eval']} held-out "
                "documents, and needs at least one of each; give more documents (a line of a "
                ".jsonl file is one) or another --eval_fraction."
            )
        write_tokenizer(output, tokenizer)


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_list("input", [], "Text files and directories, or stdlib.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory to write.", flag_values=values)
    flags.DEFINE_string(
        "tokenizer", "bytes", "bytes, bpe, or a tokenizer.json's path.", flag_values=values
    )
    flags.DEFINE_integer(
        "vocab_size", 8192, "Ids of a bpe, separator included.", flag_values=values
    )
    flags.DEFINE_float(
        "eval_fraction", 0.01, "Expected share of the documents held out.", flag_values=values
    )
    return values


def main(argv: list[str]) -> None:
    """Parses the flags, writes the token files and says what they hold."""
    options = define_flags()
    cli.refuse_unknown(cli.parse_flags(options, argv), options)
    if not options.input:
        raise UserError("--input is missing: give files or directories of text, or stdlib")
    output = Path(cli.require(options.output, "output", "the directory to write"))
    files = prepare(
        options.input, output, options.tokenizer, options.vocab_size, options.eval_fraction
    )
    for split, headers in files.headers.items():
        for name, header in headers.items():
            print(
                f"{split}: {header.documents} documents, {header.bytes} bytes, "
                f"{header.tokens} {header.dtype} tokens in {name}.bin"
            )


if __name__ == "__main__":
    cli.run(main)
