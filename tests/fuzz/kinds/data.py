"""Prepared data, and the texts that it is prepared from."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from carve_jax.data.token_files.manifest import Manifest
from carve_jax.data.token_files.token_files import TokenFiles
from experiments.preparation import workers
from experiments.preparation.package_docs import wheels
from experiments.preparation.package_docs.made import made_file
from experiments.preparation.package_docs.wheels import fetched
from experiments.preparation.prepare import Settings, prepare
from experiments.preparation.sources import list_sources, read_work, survey
from experiments.preparation.work import Columns, WorkSize
from tests.data.helpers import write_shards
from tests.experiments.preparation.wheels import index_of, packages
from tests.fuzz.damage import kept
from tests.fuzz.kind import OTHER, REPAIRED, Judge, Kind, Say, SilentChange, any_value

TEXTS = [f"Document {n} is about a rule, é and 漢. " * (n + 1) for n in range(12)]
COLUMNS = Columns("text", "id")


def make_tokens(folder: Path, number: int) -> None:
    """As prepare_data leaves them, of two shards a split."""
    lines = [json.dumps({"text": text + "!" * number}) for text in TEXTS]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    settings = Settings(eval_fraction=0.3, shard_tokens=900)
    prepare([str(folder / "in.jsonl")], folder / "tokens", settings)
    (folder / "in.jsonl").unlink()


def read_tokens(folder: Path, say: Say) -> Any:
    """As training does: every token once."""
    files = TokenFiles(folder / "tokens")
    shards = {split: files.documents(split) for split in files.headers}
    tokens = {split: [(s.tokens, s.offsets) for s in found] for split, found in shards.items()}
    return tokens, files.tokenizer.to_json(), files.tokenizer.token_bytes


def verify_tokens(folder: Path, say: Say) -> Any:
    """As --verify does."""
    return TokenFiles(folder / "tokens").verify()


def reseal_manifest(folder: Path) -> None:
    path = folder / "tokens" / "manifest.json"
    values = json.loads(path.read_text("utf-8"))
    text = json.dumps({**values, "check_sha256": ""}, sort_keys=True)
    values["check_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(values), "utf-8")


def make_old(folder: Path, number: int) -> None:
    """Version 1: no checksums of blocks, no manifest."""
    texts = [text.encode() + b"!" * number for text in TEXTS]
    write_shards(folder / "tokens", train_00000=texts[:9], eval_00000=texts[9:])
    for header in (folder / "tokens").glob("*-*.json"):
        values = json.loads(header.read_text("utf-8")) | {"version": 1}
        for name in ("offsets_sha256", "crc_sha256"):
            del values[name]
        header.write_text(json.dumps(values), "utf-8")
        header.with_suffix(".crc").unlink()


def make_unfinished(folder: Path, number: int, settings: Settings | None = None) -> None:
    """Sources, and token files of half of them, as a kill leaves those."""
    settings = settings or UNFINISHED
    lines = [json.dumps({"text": text + "!" * number}) for text in TEXTS]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    prepare([str(folder / "in.jsonl")], folder / "tokens", settings)
    manifest = Manifest.read(folder / "tokens")
    assert manifest is not None
    assert len(manifest.shards) > 2
    manifest.complete = False
    first = dict(list(manifest.shards.items())[:2])
    for name in manifest.shards.keys() - first.keys():
        for path in (folder / "tokens").glob(f"{name}.*"):
            path.unlink()
    taken = sum(facts["documents"] for facts in first.values())
    manifest.shards, manifest.position = first, (0, taken)
    manifest.done_bytes = 0
    manifest.write(folder / "tokens")


UNFINISHED = Settings(eval_fraction=0.3, shard_tokens=900, work=WorkSize(bytes=1 << 20))
BPE = UNFINISHED._replace(tokenizer="bpe", vocab_size=280, shard_tokens=500)


def make_unfinished_bpe(folder: Path, number: int) -> None:
    make_unfinished(folder, number, BPE)


def go_on_bpe(folder: Path, say: Say) -> Any:
    return go_on(folder, say, BPE)


def go_on(folder: Path, say: Say, settings: Settings | None = None) -> Any:
    """As the same prepare_data does, run again, in another process."""
    workers._tokenizer.cache_clear()
    files = prepare([str(folder / "in.jsonl")], folder / "tokens", settings or UNFINISHED)
    shards = {split: files.documents(split) for split in files.headers}
    return {split: [(s.tokens, s.offsets) for s in found] for split, found in shards.items()}


def judge_go_on(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """Every document is there, be it begun anew or gone on with."""
    for split, shards in healthy.items():
        there = [np.concatenate([tokens for tokens, _ in part]) for part in (value[split], shards)]
        if not np.array_equal(*there):
            raise SilentChange("documents were lost, or came twice")
    return REPAIRED


def _documents(path: Path, columns: Columns) -> list[tuple[str, bytes]]:
    """As prepare_data reads its inputs."""
    [source] = list_sources([str(path)], say=lambda line: None)
    work = survey(source, columns, WorkSize(bytes=256, rows=5)).work
    return [(d.name, d.text) for item in work for d in read_work(item, columns)]


def _read(name: str, columns: Columns) -> Any:
    return lambda folder, say: _documents(folder / name, columns)


def make_text(folder: Path, number: int) -> None:
    (folder / "a.txt").write_text("".join(TEXTS) + "!" * number, "utf-8")


def judge_text(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    if value != [("a.txt", (folder / "a.txt").read_bytes())]:
        raise SilentChange("not the bytes of the file")
    return OTHER


def make_lines(folder: Path, number: int) -> None:
    lines = [json.dumps({"id": n, "text": t + "!" * number}) for n, t in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def judge_lines(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    content = (folder / "a.jsonl").read_bytes().split(b"\n")
    wanted = [
        json.loads(line.removeprefix(b"\xef\xbb\xbf"))["text"].encode()
        for line in content
        if line.strip()
    ]
    if [text for _, text in value] != wanted:
        raise SilentChange("not the texts of the lines")
    return OTHER


def make_parquet(folder: Path, number: int) -> None:
    columns = {"id": list(range(12)), "text": [text + "!" * number for text in TEXTS]}
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=7)


def judge_parquet(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    for _, text in value:  # its own checksums are no part of what most write
        text.decode("utf-8")
    return OTHER


def make_package_docs(folder: Path, number: int) -> None:
    """The user's cache folder, with wheels and what was made of them."""
    with index_of(packages(number), folder):
        made_file()


def make_package_docs_wheels(folder: Path, number: int) -> None:
    """The wheels alone."""
    with index_of(packages(number), folder):
        fetched(wheels.TABLE)


def read_package_docs(folder: Path, say: Say) -> Any:
    """As prepare_data does, with an index that has the wheels."""
    with index_of(packages(), folder):
        return made_file().read_bytes()


def _tokens(what: str, *files: str, read: Any = read_tokens, **others: Any) -> Kind:
    reads = others.pop("reads")
    found = tuple(f"tokens/{name}" for name in files)
    return Kind(f"token files: {what}", make_tokens, found, read, reads, **others)


_TOKENS = "carve_jax.data.token_files.token_files"
_PREPARATION = "experiments.preparation"
_WHEELS = f"{_PREPARATION}.package_docs.wheels"


def _judge_old() -> Judge:
    return any_value


KINDS = (
    _tokens(
        "headers",
        "train-*.json",
        "eval-*.json",
        reads=("carve_jax.data.token_files.shard_header:Header.read",),
        json=True,
        examples=(kept("value", 1, "long text"),),
    ),
    _tokens(
        "manifest",
        "manifest.json",
        reads=("carve_jax.data.token_files.manifest:Manifest.read",),
        json=True,
        reseal=reseal_manifest,
    ),
    _tokens(
        "tokens",
        "*.bin",
        reads=("carve_jax.data.token_files.shard:OpenFiles.read",),
    ),
    _tokens("offsets, checksums", "*.offsets", "*.crc", reads=(f"{_TOKENS}:_content",)),
    _tokens(
        "tokenizer",
        "tokenizer.json",
        reads=(f"{_TOKENS}:TokenFiles._read_tokenizer",),
        json=True,
    ),
    _tokens("--verify", "*", read=verify_tokens, reads=(f"{_TOKENS}:_file_digest",)),
    Kind(
        "token files: version 1",
        make_old,
        ("tokens/*",),
        read_tokens,
        (f"{_TOKENS}:_content",),
        any_value,  # it has no checksums; what it says of sizes is held against them
    ),
    Kind(
        "token files: unfinished",
        make_unfinished,
        ("tokens/*",),
        go_on,
        (
            "carve_jax.data.token_files.manifest:Manifest.read",
            "experiments.preparation.workers:_tokenizer",
        ),
        judge_go_on,
        json=True,
        examples=(kept("pipe", file=5), kept("swap", file=5)),
    ),
    Kind(
        "token files: unfinished, bpe",
        make_unfinished_bpe,
        ("tokens/*",),
        go_on_bpe,
        ("experiments.preparation.prepare:_tokenizer",),
        judge_go_on,
        json=True,
        share=0.5,
        examples=(kept("pipe", file=5), kept("swap", file=5)),
    ),
    Kind(
        "text",
        make_text,
        ("a.txt",),
        _read("a.txt", Columns()),
        (f"{_PREPARATION}.sources:survey", f"{_PREPARATION}.sources:_read"),
        judge_text,
        share=0.5,
    ),
    Kind(
        "JSON lines",
        make_lines,
        ("a.jsonl",),
        _read("a.jsonl", COLUMNS),
        (f"{_PREPARATION}.json_lines:survey_lines", f"{_PREPARATION}.json_lines:document_of_line"),
        judge_lines,
        json=True,
    ),
    Kind(
        "package_docs: its text",
        make_package_docs,
        ("carve_jax/package_docs/*.jsonl", "carve_jax/package_docs/*.sha256"),
        read_package_docs,
        (f"{_PREPARATION}.package_docs.made:_is_whole", f"{_WHEELS}:file_digest"),
        share=0.5,
    ),
    Kind(
        "package_docs: wheels",
        make_package_docs_wheels,
        ("carve_jax/package_docs/wheels/*.whl",),
        read_package_docs,
        (f"{_WHEELS}:_is_whole", f"{_WHEELS}:file_digest"),
        share=0.5,
    ),
    Kind(
        "Parquet",
        make_parquet,
        ("a.parquet",),
        _read("a.parquet", COLUMNS),
        (f"{_PREPARATION}.parquet:_parquet", f"{_PREPARATION}.parquet:read_rows"),
        judge_parquet,
    ),
)
