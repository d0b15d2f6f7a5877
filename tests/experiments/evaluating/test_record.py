"""A result is remembered by what it depended on, and never lost to another or to damage."""

import json
import threading
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.evaluation.tasks import Figure, Result
from experiments import cli, generate
from experiments.evaluating.record import Record, settings_of, settings_of_run

RESULT = Result({"accuracy": Figure(0.5, None, 2)}, {"note": "caf\xe9"})


@pytest.fixture
def evaluated(tmp_path):
    data = ConfigDict({"source": "token_files", "path": str(tmp_path / "data"), "paths": ()})
    return SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(compute_dtype="float32")),
        scorer=SimpleNamespace(max_length=None),
        config=SimpleNamespace(data=data),
        seal="one",
    )


@pytest.fixture
def files(tmp_path):
    """Every file that a result may depend on."""
    found = {
        "haystack": tmp_path / "hay.txt",
        "yaml": tmp_path / "tasks" / "sub" / "mine.yaml",
        "code": tmp_path / "tasks" / "utils.py",
        "tokenizer": tmp_path / "other.json",
        "run_tokenizer": tmp_path / "run" / "tokenizer.json",
        "header": tmp_path / "data" / "eval-00000.json",
    }
    for path in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return found


def settings(tmp_path, evaluated, **changes):
    values = {
        "limit": None, "num_fewshot": None, "input_tokens": None, "seed": 0, "reply_tokens": None,
        "haystack": str(tmp_path / "hay.txt"), "tokenizer": str(tmp_path / "other.json"),
        "include_path": [str(tmp_path / "tasks")],
    }  # fmt: skip
    options = SimpleNamespace(**(values | changes))
    return settings_of(options, evaluated, []) | settings_of_run(tmp_path / "run", evaluated)


def test_a_result_is_found_while_nothing_has_changed(tmp_path, evaluated, files):
    path = tmp_path / "e.json"
    Record(path, {"step": 1}, False).add("task", settings(tmp_path, evaluated), RESULT)
    again = Record(path, {}, False)
    assert again.find("task", settings(tmp_path, evaluated)) == RESULT
    assert again.find("other", settings(tmp_path, evaluated)) is None
    assert Record(path, {}, True).find("task", settings(tmp_path, evaluated)) is None


@pytest.mark.parametrize(
    "name", ["haystack", "yaml", "code", "tokenizer", "run_tokenizer", "header"]
)
def test_a_file_with_another_content_is_another_setting(tmp_path, evaluated, files, name):
    before = settings(tmp_path, evaluated)
    files[name].write_text("new")
    assert settings(tmp_path, evaluated) != before
    files[name].write_text("old")
    assert settings(tmp_path, evaluated) == before


def test_other_parameters_are_another_setting(tmp_path, evaluated, files):
    before = settings(tmp_path, evaluated)
    evaluated.seal = "two"
    assert settings(tmp_path, evaluated) != before


def test_the_same_file_elsewhere_is_the_same_setting(tmp_path, evaluated, files):
    before = settings(tmp_path, evaluated)
    moved = tmp_path / "moved.txt"
    files["haystack"].rename(moved)
    assert settings(tmp_path, evaluated, haystack=str(moved)) == before
    assert settings(tmp_path, evaluated, haystack="noise")["haystack"] == "noise"


def test_evaluations_side_by_side_lose_nothing(tmp_path):
    path = tmp_path / "e.json"
    records = [Record(path, {}, False) for _ in range(4)]

    def add(number):
        for turn in range(5):
            records[number].add(f"task{number}.{turn}", {}, RESULT)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Record(path, {}, False)
    assert all(found.find(f"task{n}.{t}", {}) == RESULT for n in range(4) for t in range(5))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"results": 3}', '{"results": [3]}', '{"results": [{"task": "a"}]}', "\xff"],
)
def test_a_damaged_record_is_a_sentence_and_fresh_sets_it_aside(tmp_path, text):
    path = tmp_path / "e.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"e.json cannot be read .*: restore it, or measure again"):
        Record(path, {}, False)
    Record(path, {}, True).add("task", {}, RESULT)
    assert (tmp_path / "e.json.damaged").read_bytes() == text.encode("latin1")
    assert [e["task"] for e in json.loads(path.read_bytes())["results"]] == ["task"]


@pytest.mark.parametrize(
    "flag", ["temperature=nan", "temperature=-1", "top_p=nan", "seed=-1", f"seed={10**20}"]
)
def test_numbers_of_generate(flag, capsys):
    assert cli.call(generate.main, ["generate", "--workdir=x", f"--{flag}"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert flag.split("=")[0] in err
