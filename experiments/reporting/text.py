"""The report in Markdown, from the answer to the evidence to every value."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from experiments.reporting import words
from experiments.reporting.compare import Comparison, Verdict
from experiments.reporting.sweep import Metric, Run, Sweep, Task
from experiments.reporting.tables import (
    Findings,
    cost_note,
    costs,
    evidence,
    interval,
    places_of,
    quality,
)
from experiments.reporting.words import escape, number, signed

GLOSSARY = Path(__file__).with_name("glossary.md")
"""What a reader who has never heard of the project needs to know."""


def write(found: Findings) -> str:
    """The whole report."""
    parts = [
        f"# {escape(found.sweep.record['question'])}",
        *in_short(found),
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


def in_short(found: Findings) -> list[str]:
    """The answer before anything else."""
    sweep = found.sweep
    parts = [
        "This report is about language models that keep what they have read in a memory of fixed "
        "size, and about rules for what such a memory erases and writes. Small changes to a model "
        "often help or hurt by luck alone: it says what a sweep of training runs shows and what it "
        "does not. Terms are explained under [How to read this](#how-to-read-this).",
        "## In short",
    ]
    for task in sweep.tasks:
        metric = task.metrics[0]
        parts.append(
            f"**{escape(task.title)}** ({escape(metric.title)}, {metric.better} is better)"
        )
        parts.append(words.bullets(headlines(found, found.of(task, metric))))
    parts.append(_tally(found))
    faults = [run for run in sweep.runs if sweep.fault(run) is not None]
    if faults:
        parts.append(
            f"**{words.count(len(faults), 'run')} of {len(sweep.runs)} gave no result** and "
            "must be borne in mind: see [Runs that do not count](#runs-that-do-not-count)."
        )
    return parts


def headlines(found: Findings, comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each variant that differs, and one for those that do not."""
    sweep = found.sweep
    base = escape(sweep.variants[sweep.baseline])
    lines: list[str] = []
    quiet: list[str] = []
    nearly: list[str] = []
    places = places_of(comparisons)
    for each in comparisons:
        title = escape(sweep.variants[each.variant])
        span = interval(each, places)
        if each.verdict in (Verdict.BETTER, Verdict.WORSE):
            lines.append(
                f"{title} is **{each.verdict.value}** than {base}: "
                f"{signed(each.difference, places)} ({found.confidence} interval {span}; "
                f"{words.count(len(each.seeds), 'seed')})."
            )
        elif each.verdict is Verdict.OPEN:
            told = f"{title} ({signed(each.difference, places)}, {span})"
            (nearly if each.excludes_zero else quiet).append(told)
        elif each.verdict is Verdict.SMALL:
            lines.append(
                f"{title} differs from {base} by **less than {each.smallest:g}**, the smallest "
                f"difference said to matter (interval {span})."
            )
        elif each.verdict is Verdict.SAME:
            lines.append(f"{title} and {base} are **the same in every seed**.")
        elif each.verdict is Verdict.ONE_SEED:
            lines.append(
                f"{title} differs from {base} by {signed(each.difference, places)} in **one "
                "seed**, which cannot tell a difference from luck."
            )
        else:
            lines.append(f"{title} and {base} have **no seed that both finished**.")
    if nearly:
        lines.append(
            f"**A sign, not proof:** {words.join(nearly)}. Alone the interval would exclude zero, "
            "but among this many comparisons luck gives such a one too often."
        )
    if quiet:
        lines.append(
            f"**No difference from {base} shown** for {words.join(quiet)}: that is not to say that "
            "there is none."
        )
    return lines


def _tally(found: Findings) -> str:
    first = [each for each in found.comparisons if each.primary]
    tested = sum(each.paired is not None for each in first)
    if not tested:
        return (
            "No variant shares more than one seed with the baseline: no interval or p-value is "
            "given, because a single difference says nothing of how much differences vary."
        )
    counts = {v: sum(each.verdict is v for each in first) for v in Verdict}
    rule = f"“Better” and “worse” are said where p is under {found.alpha:g}"
    if len(first) == 1:
        return f"{rule}."
    told = words.join([f"{n} {v.value}" for v, n in counts.items() if n])
    return (
        f"Of {len(first)} comparisons by the first metric of each task: {told}. {rule} after "
        f"correction for the {tested} that have one."
    )


def compared(found: Findings) -> list[str]:
    """What ran."""
    sweep = found.sweep
    labels = list(
        dict.fromkeys(
            label for v in sweep.record["variants"].values() for label in v.get("labels") or {}
        )
    )
    rows = []
    for name, title in sweep.variants.items():
        own = sweep.record["variants"][name].get("labels") or {}
        role = " (baseline)" if name == sweep.baseline else ""
        values = [escape(str(own[label])) if label in own else "–" for label in labels]
        rows.append([escape(title) + role, words.code(name), *values])
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
        words.table(["variant", "name", *map(escape, labels)], rows, left=2 + len(labels)),
    ]


def one_task(found: Findings, task: Task) -> list[str]:
    """Pictures and tables of a task."""
    pictures = found.pictures[task.name]
    parts = [
        f"## {escape(task.title[:1].upper() + task.title[1:])}",
        "\n".join(f"![{escape(shows)}]({name})" for name, shows in pictures.items()),
        "*" + " ".join(f"{escape(shows)}." for shows in pictures.values()) + "*",
    ]
    for metric in task.metrics:
        parts.append(f"### {escape(metric.title[:1].upper() + metric.title[1:])}")
        parts.append(quality(found, task, metric))
        if any(each.paired is not None for each in found.of(task, metric)):
            parts += ["How sure that is:", evidence(found, task, metric)]
    return [*parts, "### Cost", costs(found.sweep, task), cost_note(found.sweep, task)]


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
            f"{words.code(run.id)}, {run.state} at step {run.last_step:,} after "
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
