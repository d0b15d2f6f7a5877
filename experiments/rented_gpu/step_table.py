"""Train steps of 1.3B parameters side by side: ours and the peers', each in a process of its own.

A step is named by its model, whose it is, and whether backward computes the blocks again ("full")
or keeps what fits ("kept"). Ours and a peer's of one name differ in width of the MLP at most, so
that they have as many parameters (`experiments.peers.jla_steps.CHANGES`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from experiments.measuring.rule_calls import RULES
from experiments.measuring.train_steps import MODELS, model_fields
from experiments.peers import fla_steps, jla_steps
from experiments.rented_gpu.record import NOT_BEGUN, Record

PROJECTS = {"": "ours", "jla": "jax-linear-attention", "fla": "flash-linear-attention"}
HAS = {"": MODELS, "jla": jla_steps.MODELS, "fla": fla_steps.MODELS}
ABSENT = {
    ("jla", "carve"): "it has no CARVE",
    ("fla", "carve"): "it has no CARVE",
    ("fla", "mamba2"): "its Mamba-2 model has no MLP, and so no size of this shape",
}
# What each project calls it; ours keeps the products of matrices and what the rule gives.
REMAT = {
    "full": {"": "full", "jla": "full", "fla": "full"},
    "kept": {"": "rule_and_dots", "jla": "none", "fla": "none"},
}
DEFINITION = (
    "MFU: model FLOPs per second over the card's dense bfloat16 peak of its datasheet. Model FLOPs "
    "per token of training: 3 (2 parameters of matrices, the head's too and the embedding's not, "
    "+ those of the recurrence or of softmax attention); what is computed again is not counted."
)


class Step(NamedTuple):
    """One of the table.

    Attributes:
      model: one of MODELS.
      project: a key of PROJECTS.
      remat: a key of REMAT.
    """

    model: str
    project: str
    remat: str

    @property
    def task(self) -> str:
        """The name of the task that measures it."""
        kept = ", kept" if self.remat == "kept" else ""
        return f"train/{self.project}{self.project and ' '}{self.model}{kept}"

    @property
    def plan(self) -> dict[str, Any]:
        """The fields of its `TrainPlan`, plain values."""
        fields = model_fields(self.model)
        if self.project == "jla":
            fields = {**fields, **jla_steps.CHANGES.get(self.model, {})}
        return {"model": fields, "remat": REMAT[self.remat][self.project]}


STEPS = tuple(
    Step(model, project, remat)
    for model in MODELS
    for project in PROJECTS
    if model in HAS[project]
    for remat in REMAT
)
FIRST = tuple(Step(mixer, "", "full") for mixer in RULES)  # of a stage of their own


def further() -> Iterator[Step]:
    """Those that no other stage measures, in the order in which they are wanted."""
    return (step for step in STEPS if step not in FIRST)


def collect(record: Record) -> dict[str, Any]:
    """The table: its definition, and each step's figures or why it has none."""
    rows: list[dict[str, Any]] = []
    for step in STEPS:
        found = record.figures(step.task) or {}
        row = {"model": step.model, "of": PROJECTS[step.project], "remat": step.remat}
        if "median_seconds" in found:
            rest = {key: value for key, value in found.items() if key != "kernels"}
            rows.append({**row, "means": REMAT[step.remat][step.project], **rest})
        else:
            entry = record.tasks.get(step.task, NOT_BEGUN)
            rows.append({**row, "missing": f"{entry['state']}: {entry.get('why', '')}"})
    absent = [
        {"model": model, "of": PROJECTS[project], "missing": why}
        for (project, model), why in ABSENT.items()
    ]
    return {"definition": DEFINITION, "steps": [*rows, *absent]}


def show(table: Mapping[str, Any]) -> None:
    """Prints what was measured, then what is missing; nothing if nothing was measured."""
    measured = [row for row in table["steps"] if "median_seconds" in row]
    if not measured:
        return
    print("\n1.3B train steps: ours and peers")
    heads = ("model", "of", "remat", "rows", "ms", "tokens/s", "GB")
    print("  {:<12} {:<24} {:<6} {:>4} {:>8} {:>9} {:>6} MFU".format(*heads))
    for row in measured:
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        print(
            f"  {row['model']:<12} {row['of']:<24} {row['remat']:<6} {row['rows']:>4} "
            f"{1e3 * row['median_seconds']:>8.1f} {row['tokens_per_second']:>9.0f} "
            f"{row['peak_bytes'] / 1e9:>6.1f} {mfu}"
            f"{'' if row['finite'] else '  (loss or gradient not finite)'}"
        )
    for row in table["steps"]:
        if "missing" in row:
            remat = f", {row['remat']}" if "remat" in row else ""
            print(f"  {row['model']} of {row['of']}{remat}: {row['missing']}")
    print(f"  {table['definition']}")
