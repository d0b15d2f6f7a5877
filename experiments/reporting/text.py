"""The report in Markdown, from the answer to the evidence to every value."""

from datetime import UTC, datetime
from pathlib import Path

from experiments.reporting import words
from experiments.reporting.answer import in_short, where_we_lose
from experiments.reporting.sweep import Metric, Run, Sweep, Task
from experiments.reporting.tables import (
    Findings,
    asked_after,
    choices,
    cost_note,
    costs,
    evidence,
    quality,
    solved_table,
    tuning_words,
)
from experiments.reporting.words import escape, number

GLOSSARY = Path(__file__).with_name("glossary.md")
"""What a reader who has never heard of the project needs to know."""


def write(found: Findings) -> str:
    """The whole report."""
    parts = [
        f"# {escape(found.sweep.record['question'])}",
        *in_short(found),
        *where_we_lose(found),
        *compared(found),
        *(part for task in found.sweep.tasks for part in one_task(found, task)),
        *left_out(found.sweep),
        *theory(found),
        "## How to read this",
        GLOSSARY.read_text("utf-8").strip(),
        *where_from(found.sweep),
        *every_value(found.sweep),
    ]
    return "\n\n".join(parts) + "\n"


def compared(found: Findings) -> list[str]:
    """What ran."""
    sweep = found.sweep
    labels = _numeric_labels(sweep)
    rows = []
    for name, title in sweep.variants.items():
        own = sweep.record["variants"][name].get("labels") or {}
        role = " (baseline)" if name == sweep.baseline else ""
        values = [escape(str(own[label])) if label in own else "–" for label in labels]
        rows.append([escape(title) + role, *values])
    seeds = sorted({run.seed for run in sweep.runs})
    matched = sweep.record.get("matched")
    return [
        "## What was compared",
        f"{words.count(len(sweep.variants), 'variant')} of a language model, each trained "
        f"from scratch on {words.join([escape(task.title) for task in sweep.tasks])} with "
        f"{words.count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). A seed fixes the "
        "initial weights and the order of the data, so runs of one seed make a pair, and each "
        f"variant is compared with {escape(sweep.variants[sweep.baseline])} pair by pair.",
        *([f"Sizes: {escape(matched)}."] if matched else []),
        words.table(["variant", *map(escape, labels)], rows, left=1 + len(labels))
        if labels
        else f"Variants: {words.join([cells[0] for cells in rows])}.",
        "### Tuning",
        tuning_words(sweep),
        *([choices(sweep)] if sweep.choices else []),
    ]


def _numeric_labels(sweep: Sweep) -> list[str]:
    """The axes whose values are numbers; those that only name their variants say nothing more."""
    every = [v.get("labels") or {} for v in sweep.record["variants"].values()]
    names = dict.fromkeys(name for labels in every for name in labels)
    return [n for n in names if any(type(labels.get(n)) in (int, float) for labels in every)]


def one_task(found: Findings, task: Task) -> list[str]:
    """Pictures and tables of a task."""
    pictures = found.pictures[task.name]
    parts = [
        f"## {escape(task.title[:1].upper() + task.title[1:])}",
        *(words.picture(name, *shown) for name, shown in pictures.items() if name != found.lead),
    ]
    for metric in task.metrics:
        parts.append(f"### {escape(metric.title[:1].upper() + metric.title[1:])}")
        parts.append(quality(found, task, metric))
        if any(each.paired is not None for each in found.of(task, metric)):
            parts += ["How sure that is:", evidence(found, task, metric)]
        if metric.solved is not None and metric == task.metrics[0]:
            parts += solved_table(found, task)
    cost = ["### Cost", costs(found.sweep, task), cost_note(found.sweep, task)]
    return [*parts, *asked_after(found.sweep, task), *cost]


def left_out(sweep: Sweep) -> list[str]:
    """Every run that gave no result, with its reason."""
    faults = [(run, fault) for run in sweep.runs if (fault := sweep.fault(run)) is not None]
    parts = ["## Runs that do not count"]
    if not faults:
        return [*parts, f"None: all {len(sweep.runs)} runs finished and are in every table."]
    return [
        *parts,
        f"{len(faults)} of {len(sweep.runs)}. Means and differences rest on the others alone. "
        "Where runs diverge or fail more often for one variant, that is a finding about it, and "
        "its means flatter it.",
        words.bullets(
            f"{escape(sweep.name_of(run))}: {run.state} at step {run.last_step:,} after "
            f"{words.count(run.attempts, 'attempt')}: {words.code(fault)}"
            for run, fault in faults
        ),
    ]


def theory(found: Findings) -> list[str]:
    """The experiments that test the paper's theorems."""
    if found.theory is None:
        return []
    experiments = found.theory["experiments"]
    rows = [[escape(e["title"]), f"**{escape(e['verdict'])}**"] for e in experiments]
    parts = [
        "## Theory",
        "What the theorems promise, tested in small exact settings (commit "
        f"{words.code((found.theory.get('commit') or 'unknown')[:10])}, "
        f"{escape(found.theory.get('date') or 'no date')}).",
        words.table(["claim", "verdict"], rows, left=2),
    ]
    for each in experiments:
        parts.append(f"### {escape(each['title'])}: {escape(each['verdict'])}")
        parts.append(f"Claim: {escape(each['claim'])}")
        parts.append(f"Setup: {escape(each['setup'])}")
        if each.get("fails_where"):
            parts.append(f"Where it fails: {escape(each['fails_where'])}")
        if each.get("figure"):
            parts.append(f"![{escape(each['title'])}]({each['figure']})")
        numbers = [
            [escape(n["name"]), f"{n['value']:.4g} {escape(n.get('unit') or '')}".replace("-", "−")]
            for n in each.get("numbers") or []
        ]
        if numbers:
            parts.append(words.table(["measured", "value"], numbers))
    return parts


def where_from(sweep: Sweep) -> list[str]:
    """Commit, devices, versions, command and time."""
    record = sweep.record
    commits = sorted(sweep.commits)
    lines = [
        f"Sweep: {words.code(record['name'])}, started "
        f"{escape(record.get('started') or 'at an unknown time')}",
        f"Command: {words.code(record.get('command') or 'unknown')}",
        f"Commit: {words.join([words.code(c[:10]) for c in commits]) or 'unknown'}",
    ]
    if len(commits) > 1:
        lines.append("**The runs come from different code**; they are compared all the same")
    if record.get("uncommitted_changes"):
        lines.append("**The code had changes that no commit holds**")
    devices = record.get("devices") or []
    kinds = dict.fromkeys(devices)
    lines.append(
        "Devices: "
        + (words.join([f"{devices.count(k)} × {escape(k)}" for k in kinds]) or "unknown")
    )
    versions = record.get("versions") or {}
    lines.append(
        "Versions: " + ", ".join(f"{escape(k)} {escape(str(v))}" for k, v in versions.items() if v)
    )
    total = sum(run.seconds or 0 for run in sweep.runs)
    again = sum(run.attempts > 1 for run in sweep.runs)
    lines.append(
        f"Time: {words.duration(total)} of training in {len(sweep.runs)} runs, {again} of them "
        f"started more than once; written {datetime.now(UTC).date().isoformat()}"
    )
    return ["## Where this comes from", words.bullets(lines)]


def every_value(sweep: Sweep) -> list[str]:
    """All results, seed by seed."""
    parts = ["## Every value"]
    for task in sweep.tasks:
        for metric in task.metrics:
            seeds = sorted({run.seed for run in sweep.runs if run.task == task.name})
            rows = []
            for variant, title in sweep.variants.items():
                runs = {run.seed: run for run in sweep.of(task, variant)}
                rows.append([escape(title), *(_value(sweep, runs.get(s), metric) for s in seeds)])
            parts.append(f"{escape(task.title)}, {escape(metric.title)}, by seed:")
            parts.append(words.table(["variant", *map(str, seeds)], rows))
    return parts


def _value(sweep: Sweep, run: Run | None, metric: Metric) -> str:
    if run is None:
        return "–"
    if sweep.fault(run) is not None:
        return "not finite" if run.state == "done" else run.state
    return number(run.final(metric.name), 4)
