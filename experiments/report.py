"""Says what a sweep shows: Markdown with pictures, and the same as one HTML page.

  python -m experiments.report --workdir=DIR [--output=DIR/report] [--alpha=0.05]
      [--min_difference=eval_bits_per_byte=0.01,…] [--theory=DIR/theory] [--allow_other_commit]

DIR is a directory of experiments.sweep, finished or not; runs that failed, diverged or have not
ended are listed with their reason. Each variant is compared with the baseline, seed by seed:
difference with interval, σ, p-value corrected for the number of comparisons, effect size, and the
seeds that a difference would need; learning curves and quality against cost are drawn.

--min_difference gives the smallest difference of interest of a metric (METRIC=VALUE): with it the
report can also say that a difference is smaller than that. --theory adds the findings of
experiments.theory, which are looked for in DIR/theory. Runs of more than one commit are refused
unless --allow_other_commit is given, and then said in the report.
"""

from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure

from carve_jax.errors import UserError
from carve_jax.files import (
    Maybe,
    inside,
    local_path,
    made_directory,
    read_regular,
    write_atomically,
)
from carve_jax.training.settings import nearest
from experiments import cli
from experiments.reporting import figures, page, text
from experiments.reporting.compare import Comparison, compare
from experiments.reporting.sweep import Sweep, read_json, read_sweep

MARKDOWN, PAGE = "report.md", "report.html"
THEORY = "theory.json"
RECORD = {
    "commit": Maybe(str),
    "date": Maybe(str),
    "experiments": [
        {
            **dict.fromkeys(("title", "verdict", "claim", "setup"), str),
            "fails_where": Maybe(str),
            "figure": Maybe(object),  # see `theory_pictures`
            "numbers": Maybe([{"name": str, "value": float, "unit": Maybe(str)}]),
        }
    ],
}
"""What theory.json holds, as `check_shape` takes it."""
PNG = b"\x89PNG\r\n\x1a\n"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_string("workdir", None, "Directory of a sweep.", flag_values=values)
    flags.DEFINE_string("output", None, "Where the report goes.", flag_values=values)
    flags.DEFINE_float("alpha", 0.05, "Of verdicts and intervals.", flag_values=values)
    flags.DEFINE_list("min_difference", [], "METRIC=VALUE, …", flag_values=values)
    flags.DEFINE_string("theory", None, "Directory of theory.json.", flag_values=values)
    flags.DEFINE_bool("allow_other_commit", False, "Runs of other code.", flag_values=values)


def smallest_differences(given: list[str], sweep: Sweep) -> dict[str, float]:
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


def find_theory(given: str | None, workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """The record of the theory experiments, if there is one, and where its pictures lie.

    Raises:
      UserError: a directory was named and has none.
    """
    directory = local_path(given, "--theory") if given else workdir / "theory"
    if not (directory / THEORY).exists():
        if given:
            raise UserError(
                f"--theory={given} has no {THEORY}: give a directory that experiments.theory wrote"
            )
        return None, directory
    return read_json(directory / THEORY, RECORD), directory


def theory_pictures(theory: dict[str, Any] | None, directory: Path) -> dict[str, bytes]:
    """The pictures of the theory experiments, by name.

    Raises:
      UserError: one that is not beside the record, or no PNG.
    """
    found = {}
    for each in theory["experiments"] if theory else []:
        if not each.get("figure"):
            continue
        path = inside(directory, each["figure"], directory / THEORY)
        try:
            content = read_regular(path)
        except FileNotFoundError:
            raise UserError(
                f"{directory / THEORY} shows {path.name}, which is not beside it: run "
                "experiments.theory again"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): run experiments.theory") from error
        if not content.startswith(PNG) or path.suffix != ".png":
            raise UserError(f"{path} is no PNG: run experiments.theory again")
        found[path.name] = content
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


def main(argv: list[str]) -> None:
    """Parses the flags, reads the sweep, compares, draws and writes."""
    values = flags.FlagValues()
    define_flags(values)
    cli.refuse_unknown(cli.parse_flags(values, argv), values)
    if not 0 < values.alpha < 1:
        raise UserError(f"--alpha={values.alpha}: give a probability between 0 and 1, as 0.05")
    workdir = cli.directory_of(values.workdir, "workdir", "the directory of a sweep")
    sweep = read_sweep(workdir, allow_other_commit=values.allow_other_commit)
    smallest = smallest_differences(values.min_difference, sweep)
    theory, theory_directory = find_theory(values.theory, workdir)
    pngs = theory_pictures(theory, theory_directory)
    comparisons = compare(sweep, alpha=values.alpha, smallest=smallest)
    drawn = draw(sweep, comparisons)
    shows = {
        task: {name: words for name, (words, _) in pictures.items()}
        for task, pictures in drawn.items()
    }
    markdown = text.write(text.Findings(sweep, comparisons, values.alpha, shows, theory))

    output = made_directory(values.output or workdir / "report", "--output")
    svgs = {}
    for pictures in drawn.values():
        for name, (_, figure) in pictures.items():
            write_atomically(inside(output, name, workdir), figures.to_png(figure))
            svgs[name] = figures.to_svg(figure, name)
    for name, content in pngs.items():
        write_atomically(output / name, content)
    write_atomically(output / MARKDOWN, markdown)
    write_atomically(output / PAGE, page.render(markdown, svgs, pngs))
    for run in sweep.runs:
        fault = sweep.fault(run)
        if fault is not None:
            print(f"{run.id} does not count: {fault}")
    print(
        f"{len(sweep.counted)} of {len(sweep.runs)} runs; written to {output / PAGE} and {MARKDOWN}"
    )


if __name__ == "__main__":
    cli.run(main)
