"""The command that measures, on a run directory and the harness's tasks, without a network."""

import json

import pytest

from carve_jax.evaluation.ruler_tasks import RulerTasks
from carve_jax.evaluation.tasks import find_group
from carve_jax.training import loop
from experiments import cli, evaluate
from tests.evaluation.local_tasks import write_tasks
from tests.training.helpers import text_data, tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluate")
    config = tiny_config(
        model__vocab_size=257,
        model__pattern=("linear_attention",),  # of those with a state, it compiles fastest
        steps=2,
        eval_every=2,
        checkpoint_every=1,
    )
    config.data = text_data(directory / "data")
    loop.train(config, directory / "run")
    return directory / "run"


def measured(capsys, workdir, *arguments):
    """The command's results by task, and what it printed."""
    argv = ["evaluate", f"--workdir={workdir}", "--noprogress", *arguments]
    code = cli.call(evaluate.main, argv)
    out, err = capsys.readouterr()
    assert code == 0, err
    path = out.splitlines()[-1].removeprefix("written to ")
    with open(path, encoding="utf-8") as file:
        return json.load(file), out


def results(record):
    return {entry["task"]: entry["metrics"] for entry in record["results"]}


def test_perplexity_agrees_with_training_and_is_not_measured_twice(workdir, capsys):
    record, out = measured(capsys, workdir)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    figures = results(record)["perplexity"]
    assert figures["loss"]["value"] == pytest.approx(last["eval_loss"], rel=1e-6)
    assert figures["bits_per_byte"]["value"] == pytest.approx(last["eval_bits_per_byte"], rel=1e-6)
    assert figures["accuracy"]["value"] == pytest.approx(last["eval_accuracy"], rel=1e-6)
    assert record["results"][0]["facts"]["data"]["eval_documents"] == 3
    assert f"{figures['loss']['value']:,.4f}" in out
    assert "[1/1] perplexity" in out
    again, out = measured(capsys, workdir)
    assert "[1/1]" not in out  # it is in the record
    assert results(again) == results(record)
    assert "[1/1] perplexity" in measured(capsys, workdir, "--fresh")[1]


def test_checkpoints_by_step_best_and_average(workdir, capsys):
    losses = {}
    for step in ("1", "2", "best", "average"):
        record, _ = measured(capsys, workdir, f"--step={step}")
        losses[step] = results(record)["perplexity"]["loss"]["value"]
        assert record["step"] == (1 if step == "1" else 2)
    assert losses["best"] == losses["2"]  # the one that was evaluated
    assert len({losses["1"], losses["2"], losses["average"]}) == 3
    assert (workdir / "evaluation_2_average_5.json").exists()


def test_other_data_than_it_was_trained_on(workdir, capsys):
    measured(capsys, workdir)
    longer, _ = measured(capsys, workdir, "--config.sequence_length=192", "--config.batch_size=2")
    kinds = [entry["settings"]["changes"] for entry in longer["results"]]
    assert kinds == [[], ["--config.batch_size=2", "--config.sequence_length=192"]]
    pieces, documents = (entry["metrics"]["loss"] for entry in longer["results"])
    assert pieces["count"] == 9
    assert documents["count"] == 3  # whole documents
    assert documents["value"] != pieces["value"]


def test_a_probe_of_ruler(workdir, capsys):
    record, out = measured(
        capsys,
        workdir,
        "--tasks=ruler/niah_terse/128",
        "--limit=2",
        "--reply_tokens=8",
        "--haystack=repeat:All is well.",
    )
    figure = results(record)["ruler/niah_terse/128"]["accuracy"]
    assert figure == {"value": 0.0, "stderr": 0.0, "count": 2}
    assert "ruler/niah_terse/128 " in out
    (entry,) = [e for e in record["results"] if e["task"] == "ruler/niah_terse/128"]
    assert entry["facts"]["haystack"] == "repeated"
    assert entry["settings"]["reply_tokens"] == 8
    all_probes = find_group("ruler/400", [RulerTasks()])
    assert len(all_probes) == 11
    assert all(RulerTasks().find(name) for name in all_probes)


def refused(capsys, *arguments):
    assert cli.call(evaluate.main, ["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    return err


def test_bad_input_is_one_sentence(workdir, tmp_path, capsys):
    run = f"--workdir={workdir}"
    assert "holds no run (config.json is missing)" in refused(capsys, f"--workdir={tmp_path}")
    assert "no checkpoint of step 9 in" in refused(capsys, run, "--step=9")
    assert "step is 'last': give the number" in refused(capsys, run, "--step=last")
    assert "dtype is 'float16'; choose one of float32" in refused(capsys, run, "--dtype=float16")
    assert "config.model.layers belongs to the run" in refused(
        capsys, run, "--config.model.layers=2"
    )
    assert "no field 'sequence_lengths'" in refused(capsys, run, "--config.sequence_lengths=2")
    assert "unknown flag --task; did you mean 'tasks'" in refused(capsys, run, "--task=x")
    tasks = write_tasks(tmp_path)
    assert "there is no such directory" in refused(
        capsys, run, "--include_path=nowhere", "--tasks=local_choice"
    )
    assert "the tokenizer has 277 tokens, but the model knows 257" in refused(
        capsys,
        run,
        f"--tokenizer={bpe(tmp_path)}",
        f"--include_path={tasks}",
        "--tasks=local_choice",
    )


def bpe(directory):
    from carve_jax.data import train_bpe

    path = directory / "tokenizer.json"
    path.write_text(
        train_bpe([b"the rule is the rule of rules and of all that is. " * 9], 300).to_json()
    )
    return path


def test_a_checkpoint_in_mid_write_is_passed_over(workdir, capsys):
    half = workdir / "checkpoints" / "3.orbax-checkpoint-tmp-0"
    half.mkdir()
    _, out = measured(capsys, workdir)
    assert "checkpoint of step 3 was not finished; it is not used" in out
    half.rmdir()
