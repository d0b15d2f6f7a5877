"""Parts of a checkpoint; each is a kind, for what they are sealed to differs."""

import contextlib
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from carve_jax.data.batches import BatchIterator, Block, CountedOrder
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.checkpoints.digest import FILE_NAME, SEAL, Bound, digests
from carve_jax.training.workdir import CHECKPOINTS
from tests.fuzz.damage import HANGS, Example, kept
from tests.fuzz.kind import REPAIRED, Kind, Say, SilentChange, same

STEPS = (2, 4)


def _state(step: int, number: int) -> dict[str, Any]:
    """Small, of several dtypes."""
    values = np.arange(6, dtype=np.float32) / 7 + step + 100 * number
    return {"params": {"w": values.reshape(2, 3), "b": np.float32(step)}, "step": np.int32(step)}


LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), _state(0, 0))


def _batches(start: int) -> BatchIterator:
    batches = BatchIterator(CountedOrder(), list, Block.of_process(1, 0, 1))
    batches.set_state({"next": start})
    return batches


def make(folder: Path, number: int) -> None:
    """Two checkpoints, so that there is an earlier one to fall back to."""
    with Checkpoints(folder / CHECKPOINTS, keep=2, keep_best=1) as checkpoints:
        for step in STEPS:
            state = jax.tree.map(jax.numpy.asarray, _state(step, number))
            meta = {"config": {"seed": number}, "eval_loss": 1.0 / step, "tokens": 10 * step}
            checkpoints.save(step, state, _batches(3 * step), meta)
            checkpoints.wait()


def _value(step: int) -> Any:
    """What comes of the checkpoint of a step."""
    meta = {"config": {"seed": 0}, "eval_loss": 1.0 / step, "tokens": 10 * step, "step": step}
    return [step, _state(step, 0), meta, {"next": 3 * step}]


def go_on(folder: Path, say: Say) -> Any:
    """As a run that goes on."""
    batches = _batches(0)
    with Checkpoints(folder / CHECKPOINTS, keep=2, keep_best=1, say=say) as checkpoints:
        restored = checkpoints.restore(LIKE, batches)
        assert restored is not None
    return [restored.step, jax.device_get(restored.state), restored.meta, batches.get_state()]


def evaluate(folder: Path, say: Say) -> Any:
    """As a command that needs the parameters alone, of the best checkpoint."""
    like = {"params": LIKE["params"]}
    with Checkpoints(folder / CHECKPOINTS, say=say, read_only=True) as checkpoints:
        step = checkpoints.best_step()
        restored = checkpoints.restore(like, step=step, partial=True)
        assert restored is not None
    return [restored.step, jax.device_get(restored.state), restored.meta]


def judge(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """The earlier checkpoint, whole, is right where it is said that the later one is not used."""
    earlier = _value(STEPS[0])
    if not same(value, earlier):
        raise SilentChange(f"neither checkpoint (said: {said})")
    if not any("step 4" in line for line in said):
        raise SilentChange("the earlier checkpoint, and nobody was told")
    return REPAIRED


def judge_best(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """The best is that of the others where what says how good one is does not read."""
    step, state, meta = value
    if not same([state, meta], [{"params": _state(step, 0)["params"]}, _value(step)[2]]):
        raise SilentChange("parameters of no checkpoint")
    return REPAIRED


def reseal(folder: Path) -> None:
    """All checksums of the later checkpoint, made anew over what is there."""
    step = folder / CHECKPOINTS / str(STEPS[-1])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        described = json.loads((step / "meta" / "metadata").read_text("utf-8"))
        position = json.loads((step / "data" / "metadata").read_text("utf-8"))["position"]
        described["meta_crc32"] = zlib.crc32(described["meta"].encode())
        described["data_crc32"] = zlib.crc32(position.encode())
        (step / "meta" / "metadata").write_text(json.dumps(described), "utf-8")
        text = json.dumps(digests(step / "state")).encode()
        (step / "state" / FILE_NAME).write_bytes(text)
        bound = Bound(STEPS[-1], described["meta"], position)
        (step / "state" / SEAL).write_text(json.dumps(bound.sealed(text)), "utf-8")


_DIGEST = "carve_jax.training.checkpoints.digest"
_STORED = "carve_jax.training.checkpoints.stored:Stored"
_CHECKPOINT = "carve_jax.training.checkpoints.checkpoint:Checkpoints"


def _part(
    what: str,
    *files: str,
    reads: tuple[str, ...],
    json: bool = True,
    examples: tuple[Example, ...] = (),
) -> Kind:
    return Kind(
        f"checkpoint: {what}",
        make,
        tuple(f"{CHECKPOINTS}/{STEPS[-1]}/{name}" for name in files),
        go_on,
        reads,
        judge,
        json=json,
        examples=examples,
        reseal=reseal if json else None,  # Orbax reads those itself, in threads of its own
        share=0.4,
    )


KINDS = (
    _part(
        "description",
        "meta/metadata",
        reads=(f"{_STORED}.description", f"{_STORED}.meta"),
    ),
    _part("data position", "data/metadata", reads=(f"{_STORED}.position",)),
    _part(
        "digests",
        f"state/{FILE_NAME}",
        reads=(f"{_DIGEST}:verify_state", f"{_STORED}.examine"),
    ),
    _part("seal", f"state/{SEAL}", reads=(f"{_DIGEST}:verify_state",)),
    _part(
        "arrays",
        "state/d/*",
        "state/ocdbt.process_0/**/*",
        "state/manifest.ocdbt",
        reads=(f"{_DIGEST}:crc32", f"{_CHECKPOINT}._read"),
        json=False,
    ),
    _part(
        "Orbax's own files",
        "_CHECKPOINT_METADATA",
        "state/_METADATA",
        "state/_sharding",
        "state/array_metadatas/*",
        reads=("carve_jax.training.checkpoints.times:_fault", f"{_CHECKPOINT}._read_whole"),
        json=False,
        examples=(*HANGS, kept("value", 0, '""'), kept("value", 0, "deep list")),
    ),
    Kind(
        "checkpoint: for evaluation",
        make,
        (f"{CHECKPOINTS}/*/**/*",),
        evaluate,
        (f"{_CHECKPOINT}._read",),
        judge_best,
        json=True,
        share=0.4,
        examples=(*HANGS, kept("value", 0, '""')),
    ),
)
