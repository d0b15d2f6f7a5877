"""Says what a sweep shows: Markdown with pictures, and the same as one HTML page.

  python -m experiments.report --workdir=DIR [flags]
  python -m experiments.report --claims

DIR is a directory of experiments.sweep, finished or not; runs that failed, diverged or have not
ended are listed with their reason. Each variant is compared with the baseline, seed by seed:
difference with interval, σ, p-value corrected for the number of comparisons, effect size, and the
seeds that a difference would need; learning curves and quality against cost are drawn. Beside the
report lies results.json, all that it is made of, to be committed with it.

--min_difference gives the smallest difference of interest of a metric (METRIC=VALUE): with it the
report can also say that a difference is smaller than that. --theory adds the findings of
experiments.theory, which are looked for in DIR/theory. Runs of more than one commit are refused
unless --allow_other_commit is given, and then said in the report.

--claims prints the paper's claims with what the results in experiments/results say of each, as
experiments/claims/README.md has it.

Examples:
  python -m experiments.report --workdir=sweeps/tiny
  python -m experiments.report --workdir=sweeps/pair --min_difference=eval_bits_per_byte=0.01
  python -m experiments.report --claims
"""

import sys

from absl import flags

from carve_jax.errors import UserError
from experiments import cli
from experiments.claims.page import render
from experiments.claims.records import Records
from experiments.reporting.report import ALPHA, write_report


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_string("workdir", None, "Directory of a sweep.", flag_values=values)
    flags.DEFINE_string(
        "output", None, "Directory of the report; DIR/report by default.", flag_values=values
    )
    flags.DEFINE_float(
        "alpha", ALPHA, "Level of significance of verdicts and intervals.", flag_values=values
    )
    flags.DEFINE_list(
        "min_difference",
        [],
        "Smallest differences of interest, as METRIC=VALUE.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "theory", None, "Directory of theory.json; DIR/theory by default.", flag_values=values
    )
    flags.DEFINE_bool(
        "allow_other_commit", False, "Take runs of more than one commit.", flag_values=values
    )
    flags.DEFINE_bool("claims", False, "Print the paper's claims instead.", flag_values=values)


def main(argv: list[str]) -> None:
    """Parses the flags and writes the report."""
    values = flags.FlagValues()
    define_flags(values)
    cli.parse_flags(values, argv)
    if values.claims:
        sys.stdout.write(render(Records()))
        return
    if not 0 < values.alpha < 1:
        raise UserError(f"--alpha={values.alpha}: give a probability between 0 and 1, as 0.05")
    write_report(
        cli.directory_of(values.workdir, "workdir", "the directory of a sweep"),
        output=values.output,
        alpha=values.alpha,
        min_difference=values.min_difference,
        theory=values.theory,
        allow_other_commit=values.allow_other_commit,
    )


if __name__ == "__main__":
    cli.run(main)
