"""What a task keeps for the time after a stop: answers, never code, and only whole ones."""

import json
import pickle
import sqlite3

import pytest
from lm_eval.api.model import hash_args

from carve_jax.errors import UserError
from carve_jax.evaluation import answers
from carve_jax.evaluation.answers import Answers

ASKED = {
    "loglikelihood": (("a", "b"), (-1.0 / 3.0, True)),
    "loglikelihood_rolling": (("a \u6f22",), -1e-300),
    "generate_until": (("a", {"until": ["\n"]}), "caf\xe9\n\U0001f642"),
}


def test_answers_come_back_to_the_bit(tmp_path):
    for number in range(2):  # the second time they are all known
        answers = Answers(tmp_path / "x.jsonl")
        for kind, (arguments, answer) in ASKED.items():
            known = answers.find(kind, arguments)
            assert known == (answer if number else None)
            assert number == 0 or type(known) is type(answer)
            answers.add(kind, arguments, answer)
            assert answers.find(kind, ("other", *arguments[1:])) is None
        answers.close()


@pytest.mark.parametrize("bad", ["1", "null", '"text"', "[1.0]", '["1", true]', "[1.0, 1]", "{}"])
def test_what_is_no_answer_is_asked_again(tmp_path, bad):
    path = tmp_path / "x.jsonl"
    first = Answers(path)
    for kind, (arguments, answer) in ASKED.items():
        first.add(kind, arguments, answer)
    first.close()
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line:
            other = {"key": json.loads(line)["key"], "answer": json.loads(bad)}
            other["crc32"] = answers._crc32(path, *other.values())
            text = text.replace(line, json.dumps(other))
    path.write_text(text + '{"key": "cut o', encoding="utf-8")
    again = Answers(path)
    kinds = {"1": (), '"text"': ("generate_until",)}.get(bad, ())
    for kind, (arguments, _) in ASKED.items():
        assert (again.find(kind, arguments) is not None) == (kind in kinds)
    again.add("loglikelihood", ("a", "b"), (-2.0, False))
    again.close()
    assert Answers(path).find("loglikelihood", ("a", "b")) == (-2.0, False)


ran = []


class Evil:
    def __reduce__(self):
        return ran.append, ("ran",)


def test_a_database_of_pickles_in_its_place_is_not_read(tmp_path):
    path = tmp_path / "x.jsonl"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
    key = hash_args("loglikelihood", ("a", "b"))  # as the harness's cache has it
    connection.execute("INSERT INTO unnamed VALUES (?, ?)", (key, pickle.dumps(Evil())))
    connection.commit()
    connection.close()
    assert Answers(path).find("loglikelihood", ("a", "b")) is None
    assert ran == []


def test_what_is_no_file_is_a_sentence(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(UserError, match=r"x.jsonl cannot be read \(it is a directory\): remove it"):
        Answers(tmp_path / "x.jsonl")


def test_an_answer_of_another_digit_is_asked_again(tmp_path):
    path = tmp_path / "x.jsonl"
    first = Answers(path)
    first.add("loglikelihood", ("a", "b"), (-1.5, True))
    first.close()
    path.write_text(path.read_text(encoding="utf-8").replace("-1.5", "-1.6"), encoding="utf-8")
    assert Answers(path).find("loglikelihood", ("a", "b")) is None
