"""The data suite: token files read into batches, against what training would eat; and their making.

What is eaten follows from shapes and a datasheet: tokens per second of 8 H100s = 8 × utilisation ×
989 TFLOP/s (dense bfloat16, NVIDIA H100 SXM datasheet) / operations per token of training. What is
read is measured here, on documents of log-normal length with a mean near 1,000 tokens, as that of
web text is (FineWeb-Edu, arXiv 2406.17557: 1.3T tokens).
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from carve_jax.accounting import forward_flops, train_flops
from carve_jax.data import ByteTokenizer, ShardWriter, make_pipeline, train_bpe
from carve_jax.data.batches import BatchIterator
from carve_jax.data.sources.stdlib import stdlib_documents
from carve_jax.data.token_files.shard_writer import write_tokenizer
from carve_jax.training.settings import make_model_config
from configs import carve_1b3
from experiments import cli
from experiments.benchmarks.parts import kept_parts
from experiments.preparation.prepare import Settings, prepare

H100_FLOP_PER_SECOND = 989e12
CHIPS = 8
UTILISATIONS = (0.4, 1.0)
TIMES_FASTER = 10  # what the reading should be at least
PARTS = ("read", "prepare")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
      parts: of `PARTS`.
      shards: of the documents that are read.
      shard_tokens: of each.
      mean_tokens: of a document; the logarithm of its length is normal with deviation 1.
      batches: timed together.
      text_bytes: that are prepared.
      vocab_size: of the tokenizer with which they are.
      workers: that prepare them.
    """

    parts: tuple[str, ...] = PARTS
    shards: int = 8
    shard_tokens: int = 1 << 23
    mean_tokens: int = 1024
    batches: int = 20
    text_bytes: int = 48 << 20
    vocab_size: int = 8192
    workers: tuple[int, ...] = ()


def make_plan(only: tuple[str, ...]) -> Plan:
    """The plan of the command's flags: workers in powers of two, up to all cores.

    Raises:
      UserError: no such part.
    """
    parts = kept_parts(only, PARTS)
    cores = cli.usable_cores()
    workers = {1 << n for n in range(cores.bit_length())} | {cores}
    return Plan(parts=parts, workers=tuple(sorted(workers)))


def data_suite(repeats: int, save: Callable[[dict[str, Any]], None], plan: Plan) -> dict[str, Any]:
    """Reading and preparing; `save` is called with what there is so far."""
    figures: dict[str, Any] = {"plan": dataclasses.asdict(plan), "demand": demand()}
    with tempfile.TemporaryDirectory() as directory:
        if "read" in plan.parts:
            figures["read"] = measure_reading(Path(directory), plan, repeats)
            figures["read"]["times_demand"] = {
                name: round(figures["read"]["one process"]["tokens_per_second"] / tokens, 1)
                for name, tokens in figures["demand"]["tokens_per_second"].items()
            }
            print_reading(figures)
            save(figures)
        if "prepare" in plan.parts:
            figures["prepare"] = measure_preparing(Path(directory), plan)
            print_preparing(figures["prepare"])
    return figures


def demand() -> dict[str, Any]:
    """Tokens per second that training carve_1b3 on eight H100s would eat, at each utilisation."""
    config = carve_1b3.get_config()
    flops = train_flops(forward_flops(make_model_config(config), config.sequence_length))
    return {
        "model": "carve_1b3",
        "train_flops_per_token": flops,
        "chips": CHIPS,
        "chip_flop_per_second": H100_FLOP_PER_SECOND,
        "chip_source": "datasheet of the H100 SXM, dense bfloat16",
        "tokens_per_second": {
            f"at {share:.0%} of the peak": CHIPS * share * H100_FLOP_PER_SECOND / flops
            for share in UTILISATIONS
        },
    }


def write_documents(directory: Path, plan: Plan) -> None:
    """Token files of random bytes, two bytes per token as with a vocabulary of 32,000."""
    tokenizer = ByteTokenizer()
    rng = np.random.default_rng(0)
    directory.mkdir()
    write_tokenizer(directory, tokenizer)
    sizes = {f"train-{i:05d}": plan.shard_tokens for i in range(plan.shards)}
    for name, tokens in {**sizes, "eval-00000": 1}.items():
        with ShardWriter(directory, name, tokenizer) as writer:
            while writer.tokens < tokens:
                # The mean of a log-normal is the exponential of its location and half its variance.
                length = int(rng.lognormal(np.log(plan.mean_tokens) - 0.5, 1.0)) + 1
                writer.write(rng.integers(0, 256, length, np.int32))


def measure_reading(directory: Path, plan: Plan, repeats: int) -> dict[str, Any]:
    """Tokens per second into batches of carve_1b3's shape: medians of rounds, taken in turns.

    A round opens the files anew, so each block's checksum is worked out when it is first read; the
    files themselves are in the page cache. One of eight processes makes an eighth of each batch;
    its figure is that of the whole batch, which all eight make at once.
    """
    path = directory / "documents"
    write_documents(path, plan)
    config = carve_1b3.get_config()
    contenders = {"one process": (1, True), "without checksums": (1, False)}
    contenders |= {"one of eight processes": (8, True)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens = 0.0
    for _ in range(repeats):
        for name, (processes, checked) in contenders.items():
            pipeline = make_pipeline(
                {"source": "token_files", "path": str(path)},
                batch_size=config.batch_size,
                sequence_length=config.sequence_length,
                segment_alignment=make_model_config(config).segment_alignment,
                seed=0,
                process_count=processes,
            )
            iterator = pipeline.train_iterator()
            first = next(iterator)  # the first window is packed before the clock starts
            if not checked:
                iterator = _second_time(iterator, plan.batches)
            start = time.perf_counter()
            for _ in range(plan.batches):
                batch = next(iterator)
            seconds[name].append((time.perf_counter() - start) / plan.batches)
            if processes == 1:
                tokens = float((first["loss_mask"].sum() + batch["loss_mask"].sum()) / 2)
    return {
        name: {
            "seconds_a_batch": statistics.median(taken),
            "tokens_per_second": tokens / statistics.median(taken),
        }
        for name, taken in seconds.items()
    } | {
        "tokens_a_batch": tokens,
        "filled": tokens / (config.batch_size * config.sequence_length),
        "repeats": repeats,
    }


def _second_time(iterator: BatchIterator, batches: int) -> BatchIterator:
    """Reads batches and goes back: what they hold has then been checked."""
    state = iterator.get_state()
    for _ in range(batches):
        next(iterator)
    iterator.set_state(state)
    next(iterator)
    iterator.set_state(state)
    return iterator


def measure_preparing(directory: Path, plan: Plan) -> dict[str, Any]:
    """Tokens per second from JSON lines, with a byte-level BPE, by the number of workers.

    The text is Python's own, over and over. The start of the processes is in the seconds.
    """
    documents = stdlib_documents(("topics", "docstrings"))
    source = directory / "text.jsonl"
    with source.open("w", encoding="utf-8") as file:
        while file.tell() < plan.text_bytes:
            for document in documents:
                file.write(json.dumps({"text": document.text.decode()}) + "\n")
                if file.tell() >= plan.text_bytes:
                    break
    tokenizer = directory / "tokenizer.json"
    trained = train_bpe((d.text for d in documents), plan.vocab_size)
    tokenizer.write_text(trained.to_json(), encoding="utf-8")
    settings = Settings(str(tokenizer), eval_fraction=0.1)
    figures: dict[str, Any] = {"source_bytes": source.stat().st_size, "workers": {}}
    for count in plan.workers:
        start = time.perf_counter()
        files = prepare([str(source)], directory / f"by_{count}", settings, workers=count)
        seconds = time.perf_counter() - start
        tokens = sum(h.tokens for split in files.headers.values() for h in split.values())
        figures["tokens"] = tokens
        figures["workers"][str(count)] = {
            "seconds": round(seconds, 3),
            "tokens_per_second": tokens / seconds,
        }
    return figures


def print_reading(figures: dict[str, Any]) -> None:
    """What is eaten, what is read, and their ratio."""
    for name, tokens in figures["demand"]["tokens_per_second"].items():
        print(f"{'8 H100s, carve_1b3, ' + name:<42} {tokens / 1e6:>8.2f} M tokens/s")
    read = figures["read"]
    for name in ("one process", "without checksums", "one of eight processes"):
        print(f"{'read by ' + name:<42} {read[name]['tokens_per_second'] / 1e6:>8.2f} M tokens/s")
    for name, times in read["times_demand"].items():
        enough = "" if times >= TIMES_FASTER else f"  (less than {TIMES_FASTER})"
        print(f"{'read / eaten ' + name:<42} {times:>8.1f}{enough}")
    print(f"{'share of positions that are predicted':<42} {read['filled']:>8.3f}")


def print_preparing(figures: dict[str, Any]) -> None:
    """A line for each number of workers."""
    for count, at in figures["workers"].items():
        name = f"prepared by {count} workers in {at['seconds']:.1f} s"
        print(f"{name:<42} {at['tokens_per_second'] / 1e6:>8.2f} M tokens/s")
