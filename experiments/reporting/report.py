"""The report of a sweep, from its directory to Markdown, pictures and one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from carve_jax.errors import UserError
from carve_jax.files import inside, made_directory, write_atomically
from carve_jax.training.settings import nearest
from experiments.reporting import drawing, figures, page, results, text
from experiments.reporting.compare import Comparison, compare
from experiments.reporting.solved import count_solved
from experiments.reporting.sweep import Sweep, read_sweep
from experiments.reporting.tables import Findings
from experiments.reporting.theory_record import find_theory, theory_pictures

MARKDOWN, PAGE = "report.md", "report.html"
ALPHA = 0.05  # of verdicts and intervals, if nothing else is said


def smallest_differences(given: Sequence[str], sweep: Sweep) -> dict[str, float]:
    """What --min_difference says, by metric.

    Raises:
      UserError: an unknown metric, or no number above 0.
    """
    known = [metric.name for task in sweep.tasks for metric in task.metrics]
    found = {}
    for part in given:
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"--min_difference: no metric {name!r}; {nearest(name, known)}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if not found[name] > 0:
            raise UserError(f"--min_difference={part}: give a number above 0, as {name}=0.01")
    return found


class Picture(NamedTuple):
    """A figure, with the words above and below it."""

    title: str
    caption: str
    figure: Figure


def draw(sweep: Sweep, comparisons: list[Comparison]) -> dict[str, dict[str, Picture]]:
    """The pictures by task and file name, those that answer the question first."""
    found: dict[str, dict[str, Picture]] = {}
    base = sweep.variants[sweep.baseline]
    for task in sweep.tasks:
        metric = task.metrics[0]
        where = f" ({task.title})" if len(sweep.tasks) > 1 else ""
        pictures = found[task.name] = {}
        if metric.solved is not None:
            pictures[f"{task.name}_seeds.png"] = Picture(
                f"Which seeds solve the task{where}",
                f"Every seed's {metric.title} at the end; solved from {metric.solved:g} on "
                "(dotted line).",
                figures.seeds(sweep, task),
            )
        pairs = [each for each in comparisons if each.task == task and each.primary and each.seeds]
        if pairs:
            pictures[f"{task.name}_differences.png"] = Picture(
                f"Difference from {base} in {metric.title}{where}",
                "Hollow marks: a pair of runs of one seed each. Bar across: their mean. Line: its "
                "interval.",
                figures.differences(sweep, pairs),
            )
        title = figures.curve_metric(sweep, task).title
        pictures[f"{task.name}_curves.png"] = Picture(
            f"{title[:1].upper()}{title[1:]} in training{where}",
            figures.what_curves_show(sweep, task),
            figures.curves(sweep, task),
        )
        for cost in figures.COSTS:
            figure = figures.pareto(sweep, task, cost)
            if figure is not None:
                pictures[f"{task.name}_{cost.name}.png"] = Picture(
                    f"{metric.title[:1].upper()}{metric.title[1:]} against {cost.label}{where}",
                    "Point: mean over seeds. Bar: from the worst seed to the best. Line: the "
                    "variants that no other one beats in both.",
                    figure,
                )
    return found


def lead_of(drawn: Mapping[str, Mapping[str, Picture]]) -> str:
    """The picture that answers the question: the first task's first, unless it is of training."""
    names = [name for pictures in drawn.values() for name in pictures]
    return next((name for name in names if name.endswith(("_seeds.png", "_differences.png"))), "")


def write_report(
    workdir: Path,
    *,
    output: str | None = None,
    alpha: float = ALPHA,
    min_difference: Sequence[str] = (),
    theory: str | None = None,
    allow_other_commit: bool = False,
) -> None:
    """Reads the sweep, compares, draws and writes; says which runs do not count.

    Args:
      workdir: of the sweep.
      output: where the report goes; "report" in `workdir` if nothing else is said.
      alpha: of verdicts and intervals.
      min_difference: METRIC=VALUE, the smallest differences of interest.
      theory: a directory of the theory experiments; looked for in `workdir` if nothing else is
        said.
      allow_other_commit: whether runs may be of other code.

    Raises:
      UserError: the sweep does not read, or one of the others does not fit it.
    """
    sweep = read_sweep(workdir, allow_other_commit=allow_other_commit)
    smallest = smallest_differences(min_difference, sweep)
    record, beside = find_theory(theory, workdir)
    pngs = theory_pictures(record, beside)
    comparisons = compare(sweep, alpha=alpha, smallest=smallest)
    drawn = draw(sweep, comparisons)
    shows = {
        task: {name: p[:2] for name, p in pictures.items()} for task, pictures in drawn.items()
    }
    findings = Findings(
        sweep, comparisons, alpha, count_solved(sweep), shows, lead_of(drawn), record
    )
    markdown = text.write(findings)

    folder = made_directory(output or workdir / "report", "--output")
    svgs = {}
    for pictures in drawn.values():
        for name, picture in pictures.items():
            write_atomically(inside(folder, name, workdir), drawing.to_png(picture.figure))
            svgs[name] = drawing.to_svg(picture.figure, name)
    for name, content in pngs.items():
        write_atomically(folder / name, content)
    write_atomically(folder / results.FILE_NAME, results.to_json(sweep))
    write_atomically(folder / MARKDOWN, markdown)
    write_atomically(folder / PAGE, page.render(markdown, svgs, pngs))
    for run in sweep.runs:
        fault = sweep.fault(run)
        if fault is not None:
            print(f"{run.id} does not count: {fault}")
    print(
        f"{len(sweep.counted)} of {len(sweep.runs)} runs; written to {folder / PAGE} and {MARKDOWN}"
    )
