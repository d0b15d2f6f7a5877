"""The report of a sweep, from its directory to Markdown, pictures and one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from carve_jax.errors import UserError
from carve_jax.files import inside, made_directory, write_atomically
from carve_jax.training.settings import nearest
from experiments.reporting import figures, page, text
from experiments.reporting.compare import Comparison, compare
from experiments.reporting.sweep import Sweep, read_sweep
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


def draw(sweep: Sweep, comparisons: list[Comparison]) -> dict[str, dict[str, tuple[str, Figure]]]:
    """By task and file name, what a picture shows, and the picture."""
    found: dict[str, dict[str, tuple[str, Figure]]] = {}
    base = sweep.variants[sweep.baseline]
    for task in sweep.tasks:
        title = task.metrics[0].title
        pictures = found[task.name] = {}
        pictures[f"{task.name}_curves.png"] = (
            figures.what_curves_show(sweep, task),
            figures.curves(sweep, task),
        )
        pairs = [each for each in comparisons if each.task == task and each.primary and each.seeds]
        if pairs:
            shows = f"Difference from {base} in {title}: each seed, the mean and its interval"
            pictures[f"{task.name}_differences.png"] = (shows, figures.differences(sweep, pairs))
        for cost in figures.COSTS:
            figure = figures.pareto(sweep, task, cost)
            if figure is not None:
                shows = f"{title[:1].upper() + title[1:]} against {cost.label}"
                pictures[f"{task.name}_{cost.name}.png"] = (shows, figure)
    return found


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
        task: {name: words for name, (words, _) in pictures.items()}
        for task, pictures in drawn.items()
    }
    markdown = text.write(text.Findings(sweep, comparisons, alpha, shows, record))

    folder = made_directory(output or workdir / "report", "--output")
    svgs = {}
    for pictures in drawn.values():
        for name, (_, figure) in pictures.items():
            write_atomically(inside(folder, name, workdir), figures.to_png(figure))
            svgs[name] = figures.to_svg(figure, name)
    for name, content in pngs.items():
        write_atomically(folder / name, content)
    write_atomically(folder / MARKDOWN, markdown)
    write_atomically(folder / PAGE, page.render(markdown, svgs, pngs))
    for run in sweep.runs:
        fault = sweep.fault(run)
        if fault is not None:
            print(f"{run.id} does not count: {fault}")
    print(
        f"{len(sweep.counted)} of {len(sweep.runs)} runs; written to {folder / PAGE} and {MARKDOWN}"
    )
