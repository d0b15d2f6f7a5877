"""Files of a run directory but for its checkpoints."""

import json
import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

from carve_jax.data import train_bpe
from carve_jax.data.token_files.shard_header import sha256
from carve_jax.files import held, locks
from carve_jax.training.reports import metrics, provenance
from carve_jax.training.settings import RESUMABLE, flatten, read_settings
from carve_jax.training.workdir import (
    TOKENIZER,
    claim_workdir,
    load_config,
    load_tokenizer,
    require_config_of,
    save_tokenizer,
)
from experiments import cli
from tests.fuzz.damage import kept
from tests.fuzz.kind import OTHER, REPAIRED, Kind, Say, SilentChange, same
from tests.training.helpers import tiny_config

CONFIG = "config.json"
CONFIGS = (kept("value", 9, '""'), kept("value", 50, "long text"))


def make_config(folder: Path, number: int) -> None:
    claim_workdir(folder, tiny_config(seed=number).to_dict())


def read_config(folder: Path, say: Say) -> Any:
    """As a run that goes on: a checkpoint knows the config, but for what a run may change."""
    plain = read_settings(load_config(folder)).plain
    meta = {"config": json.loads(json.dumps(tiny_config(seed=0).to_dict())), "step": 1}
    require_config_of(meta, plain, folder)
    return {name: value for name, value in flatten(plain).items() if name not in RESUMABLE}


def read_given_config(folder: Path, say: Say) -> Any:
    """As --config=RUN/config.json takes it, for a new run."""
    config = cli.load_config(str(folder / CONFIG), ["--config.log_every=7"])
    return flatten(read_settings(config).plain)


def judge_given_config(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    there = json.loads((folder / CONFIG).read_text("utf-8"))
    if not same(value, flatten(there) | {"log_every": 7}):
        raise SilentChange("not what the file says")
    return OTHER


PYTHON = """from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{"steps": {steps}, "model": {{"layers": 2}}}})
"""


def make_python(folder: Path, number: int) -> None:
    (folder / "config.py").write_text(PYTHON.format(steps=10 + number), "utf-8")


def read_python(folder: Path, say: Say) -> Any:
    return flatten(cli.load_config(str(folder / "config.py"), ["--config.steps=7"]))


def judge_python(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """Code may say anything; what was asked for on the command line is there all the same."""
    if value["steps"] != 7:
        raise SilentChange("the override is lost")
    return OTHER


def make_provenance(folder: Path, number: int) -> None:
    facts = {"commit": "abc", "devices": ["cpu"], "start_step": number, "versions": {"jax": "0"}}
    provenance.write_provenance(folder, facts)


def read_provenance(folder: Path, say: Say) -> Any:
    """As a run that goes on: its own facts, those there before, and what is known at the end."""
    provenance.write_provenance(folder, {"commit": "new"}, say)
    provenance.add_provenance(folder, {"device_peak_bytes": 1})
    return json.loads((folder / provenance.FILE_NAME).read_text("utf-8"))


def judge_provenance(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    if value["commit"] != "new" or value["device_peak_bytes"] != 1:
        raise SilentChange("its own facts are lost")
    if said:
        return REPAIRED
    return OTHER if value["earlier"] else REPAIRED  # a file that is gone says nothing


def make_metrics(folder: Path, number: int) -> None:
    lines = [{"step": n, "loss": 2.0 / n + number, "note": "é"} for n in range(1, 6)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / metrics.FILE_NAME).write_text(text, "utf-8")


def read_metrics(folder: Path, say: Say) -> Any:
    """As a run that goes on from step 3."""
    before = metrics.read_metrics(folder)
    with (
        mock.patch.object(metrics, "SummaryWriter"),  # half a second each
        metrics.MetricsLog(folder, 3, say) as log,
    ):
        log.write(4, {"loss": 0.25})
    return [before, metrics.read_metrics(folder)]


def judge_metrics(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """All lines that are whole are there; the others are kept aside, and that is said."""
    before, after = value
    kept = [line for line in before if line["step"] <= 3]
    if not same(after, [*kept, {"step": 4, "loss": 0.25}]):
        raise SilentChange("lines were lost, or came back changed")
    good = {json.dumps(line) for line in healthy[0]}
    aside = folder / metrics.DAMAGED
    if aside.exists() and not said:
        raise SilentChange("damaged lines were set aside, and nobody was told")
    if {json.dumps(line) for line in before} <= good:
        return REPAIRED
    return OTHER


def make_lock(folder: Path, number: int) -> None:
    """Leaves the lock of a process of this machine that died."""
    note = {"machine": locks.machine(), "host": socket.gethostname(), "pid": 2 + number}
    (folder / ".lock").write_text(json.dumps(note | {"beat": "000000000000"}) + "\n", "utf-8")


def read_lock(folder: Path, say: Say) -> Any:
    with mock.patch.object(locks, "BEAT", 0.002), held(folder / ".lock", "the folder", say=say):
        note = json.loads((folder / ".lock").read_text("utf-8"))
        mine = note["pid"] == os.getpid()
    return mine, (folder / ".lock").read_bytes()


TEXT = "A state remembers what keys wrote, erases what they name. é漢\n"


def make_tokenizer(folder: Path, number: int) -> None:
    save_tokenizer(folder, train_bpe([TEXT.encode() * 9], 270 + number))


HEALTHY_TOKENIZER = sha256(train_bpe([TEXT.encode() * 9], 270).to_json())


def read_tokenizer(folder: Path, say: Say) -> Any:
    tokenizer = load_tokenizer(folder, HEALTHY_TOKENIZER)
    return tokenizer.encode(TEXT), tokenizer.token_bytes, tokenizer.lossless, tokenizer.separator


def read_unsealed_tokenizer(folder: Path, say: Say) -> Any:
    """The tokenizer of a checkpoint that does not say which one it was trained with."""
    tokenizer = load_tokenizer(folder, None)
    ids = tokenizer.encode(TEXT)
    return ids, tokenizer.token_bytes, tokenizer.lossless, tokenizer.decode(ids)


def judge_tokenizer(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """Another tokenizer, which may lose text, but not say that it does not."""
    ids, sizes, lossless, decoded = value
    if lossless and (decoded != TEXT or sizes[ids].sum() != len(TEXT.encode())):
        raise SilentChange("it loses text, and is said to be lossless")
    if not lossless and sizes.any():
        raise SilentChange("it is not lossless, and its ids count bytes")
    return OTHER


_METRICS = "carve_jax.training.reports.metrics"
KINDS = (
    Kind(
        "config.json of a run",
        make_config,
        (CONFIG,),
        read_config,
        ("carve_jax.training.workdir:load_config",),
        json=True,
        examples=CONFIGS,
    ),
    Kind(
        "config.json for --config",
        make_config,
        (CONFIG,),
        read_given_config,
        ("experiments.cli:_run_config",),
        judge_given_config,
        json=True,
        examples=CONFIGS,
    ),
    Kind(
        "config in Python",
        make_python,
        ("config.py",),
        read_python,
        ("experiments.cli:_run_config",),
        judge_python,
        code=True,
        share=0.5,
    ),
    Kind(
        "provenance.json",
        make_provenance,
        (provenance.FILE_NAME,),
        read_provenance,
        ("carve_jax.training.reports.provenance:_read",),
        judge_provenance,
        json=True,
        examples=(kept("value", 7, "[null]"), kept("twice", 1, "0")),
    ),
    Kind(
        "metrics.jsonl",
        make_metrics,
        (metrics.FILE_NAME,),
        read_metrics,
        (
            f"{_METRICS}:_read",
            f"{_METRICS}:MetricsLog._drop_lines",
        ),
        judge_metrics,
        json=True,
        share=2.0,
    ),
    Kind(
        "lock of a run",
        make_lock,
        (".lock",),
        read_lock,
        (
            "carve_jax.files.locks:held",
            "carve_jax.files.locks:try_lock",
            "carve_jax.files.locks:_note",
        ),
        json=True,
    ),
    Kind(
        "tokenizer.json of a run",
        make_tokenizer,
        (TOKENIZER,),
        read_tokenizer,
        ("carve_jax.training.workdir:load_tokenizer",),
        json=True,
        share=0.5,
    ),
    Kind(
        "tokenizer.json, unsealed",
        make_tokenizer,
        (TOKENIZER,),
        read_unsealed_tokenizer,
        ("carve_jax.data.tokenizers.tokenizer:tokenizer_from_json",),
        judge_tokenizer,
        json=True,
        examples=(kept("value", 5818, "0"),),
    ),
)
