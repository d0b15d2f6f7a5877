"""Measures a trained model: held-out text, and the tasks of lm-evaluation-harness.

  python -m experiments.evaluate --workdir=DIR [--tasks=NAME,…] [--step=N|best|average] [flags]
      [--config.data.KEY=VALUE …]
  python -m experiments.evaluate --fetch --tasks=NAME,…

Tasks: perplexity (held-out text of the run's data; the default), ruler/PROBE/LENGTH and
ruler/LENGTH (made here), the groups common_sense and recall, wikitext, and whatever else the
harness and the YAML files of --include_path define: such files may run Python code that they name,
so give only directories that you trust. The filler of RULER's probes is noise by default and, for
those that hide in a text, Python's language reference.

Every number comes with its standard error. Where a tokenizer is lossy, the harness's figures per
byte or word are marked (and named in the facts, as lossy_metrics); ours are left out. Results go to
DIR/evaluation_STEP.json after every task; run again, the command goes on from there, and what was
measured with the same settings (parameters, options, and what the files that they name hold) is not
measured again; --fresh does it.

--step=average takes the mean of the parameters of the newest checkpoints. --config.data… measures
on other data than the run was trained on, as longer sequences.

The harness downloads its data. For a machine without a network, run --fetch on one that has it with
HF_HOME=DIR, bring DIR, and set HF_HOME=DIR and HF_DATASETS_OFFLINE=1.

Examples:
  python -m experiments.evaluate --workdir=runs/quickstart
  python -m experiments.evaluate --workdir=runs/quickstart --limit=20
      --tasks=ruler/niah_single_1/1024
  python -m experiments.evaluate --workdir=DIR --tasks=common_sense,wikitext --step=average
"""

from collections.abc import Sequence

from absl import flags

from carve_jax.data.ruler.haystack import Haystack
from carve_jax.errors import UserError
from carve_jax.evaluation.content_use import content_use
from carve_jax.evaluation.evaluated_model import load_evaluated_model
from carve_jax.evaluation.harness_tasks import HarnessTasks
from carve_jax.evaluation.held_out import held_out_perplexity
from carve_jax.evaluation.ruler.run import Asking
from carve_jax.evaluation.ruler_tasks import RulerTasks
from carve_jax.evaluation.tasks import NamedTasks, Options, Source, find_tasks
from carve_jax.ranges import INT32, SEED
from carve_jax.training.reports.provenance import describe_environment
from experiments import cli
from experiments.evaluating.measure import averages, measure, print_table
from experiments.evaluating.record import Record, settings_of, settings_of_run

OWN = NamedTasks({"perplexity": held_out_perplexity, "content": content_use})
CHANGEABLE = ("data.", "sequence_length", "batch_size")


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()

    def text(name: str, default: str | None, told: str) -> None:
        flags.DEFINE_string(name, default, told, flag_values=values)

    def whole(name: str, default: int | None, told: str, least: int = 1, most: int = INT32) -> None:
        flags.DEFINE_integer(name, default, told, least, most, flag_values=values)

    text("workdir", None, "Directory of a run.")
    text("step", None, "Checkpoint: a step, best or average; newest by default.")
    text("dtype", None, "float32 or bfloat16; that of the run by default.")
    text("tokenizer", None, "bytes, a file, or hf:NAME; that of the run by default.")
    flags.DEFINE_list(
        "tasks", ["perplexity"], "Names of tasks and groups of tasks.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "include_path", [], "Directory of YAML files that define tasks.", flag_values=values
    )
    whole("average", 5, "Newest checkpoints that --step=average takes the mean of.")
    whole("limit", None, "Most examples of a task; all by default.")
    whole("num_fewshot", None, "Solved examples in a prompt; as the task says by default.", least=0)
    whole("batch_size", 32, "Most rows of one call of the model.")
    whole("call_tokens", 16384, "Most tokens of one call of the model.")
    whole("max_length", None, "Most tokens of a row; no limit by default.")
    whole("input_tokens", None, "Most tokens of a prompt that is continued.")
    whole("seed", 0, "Seed of what is drawn.", least=0, most=SEED)
    text("haystack", None, "Filler of RULER's probes: noise, repeat:SENTENCE or a text file.")
    whole(
        "reply_tokens",
        None,
        "Tokens of a reply to RULER's probes; RULER's own number by default.",
        least=0,
    )
    flags.DEFINE_bool("fresh", False, "Measure again what has been measured.", flag_values=values)
    flags.DEFINE_bool("fetch", False, "Only download the data of the tasks.", flag_values=values)
    flags.DEFINE_bool("progress", True, "Show progress bars.", flag_values=values)
    flags.DEFINE_bool(
        "share_contexts",
        True,
        "Read a context that several requests share once.",
        flag_values=values,
    )
    return values


def require_of_data(changes: Sequence[str]) -> None:
    """Raises UserError for an override of the config that is none of data."""
    for change in changes:
        field = change.lstrip("-").removeprefix("config.")
        if not field.startswith(CHANGEABLE):
            raise UserError(
                f"--config.{field.split('=')[0]} belongs to the run: what it is measured on may "
                f"change, which is {', '.join(f'config.{name}' for name in CHANGEABLE)}"
            )


def main(argv: list[str]) -> None:
    """Parses the flags, measures, prints and writes."""
    values = define_flags()
    changes = cli.parse_flags(values, argv, ("config",), CHANGEABLE)
    require_of_data(changes)
    if not any(values.tasks):
        raise UserError("--tasks is empty: give names, such as --tasks=perplexity,wikitext")
    options = Options(
        limit=values.limit,
        num_fewshot=values.num_fewshot,
        input_tokens=values.input_tokens,
        include_path=tuple(values.include_path),
        seed=values.seed,
    )
    if values.include_path:
        print(
            f"--include_path={','.join(values.include_path)}: the harness runs Python code that "
            "such files name; give only directories that you trust",
            flush=True,
        )
    harness = HarnessTasks(options)
    asking = Asking(
        haystack=None if values.haystack is None else Haystack.named(values.haystack),
        new_tokens=values.reply_tokens,
    )
    sources: list[Source] = [OWN, RulerTasks(asking), harness]
    if values.fetch:
        for name in find_tasks(values.tasks, [harness]):
            harness.fetch(name)
            print(f"{name}: its data is here")
        return
    tasks = find_tasks(values.tasks, sources)
    directory = cli.directory_of(values.workdir, "workdir", "the directory of a run")
    evaluated = load_evaluated_model(
        directory,
        **{
            name: getattr(values, name)
            for name in ("step", "average", "dtype", "batch_size", "call_tokens", "max_length")
        },
        **{name: getattr(values, name) for name in ("tokenizer", "share_contexts", "progress")},
        change=lambda config: cli.override(config, changes),
    )
    name = f"evaluation_{evaluated.step}"
    if values.step == "average":
        name += f"_average_{values.average}"
    facts = {
        "step": evaluated.step,
        "checkpoint": evaluated.checkpoint,
        "environment": describe_environment(),
    }
    record = Record(directory / f"{name}.json", facts, values.fresh)
    settings = settings_of(values, evaluated, changes) | settings_of_run(directory, evaluated)
    results = measure(tasks, evaluated, options, settings, record)
    for group, result in averages(values.tasks, sources, results).items():
        record.add(group, settings, result)
        results[group] = result
    print(f"{directory} at {evaluated.checkpoint}")
    print_table(results)
    print(f"written to {record.path}")


if __name__ == "__main__":
    cli.run(main)
