"""`--help`: every flag and field with its type and default, and examples that are right."""

import importlib
import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from carve_jax.training.settings import flatten
from configs import base
from experiments import cli, evaluate, train
from experiments.__main__ import NO_COMMANDS
from experiments.help_pages.config_fields import Comments, fields_of
from experiments.help_pages.page import EXAMPLES, render
from tests.test_docs import check_flag, flags_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
PACKAGES = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))
COMMANDS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in NO_COMMANDS)
SOURCE = '''
def get_config():
    config = ConfigDict()
    config.part = get_part()
    # Said of both.
    config.pair = ConfigDict({"a": 1, "b": 2})
    config.last = 3  # the end
    return config


def get_part():
    """A part.

    More of it.
    """
    return ConfigDict(
        {
            # Above,
            # and on.
            "x": 1,  # beside
            "y": (),
        }
    )
'''


def lines_of(page):
    return [line.strip() for line in page.splitlines()]


def page_of(main, capsys):
    assert cli.call(main, ["command", "--help"]) == 0
    return capsys.readouterr().out


def test_the_parts_of_a_page_and_their_order(capsys):
    page = page_of(train.main, capsys)
    heads = ["Trains a language model", "Flags (", "Fields of a config, given as --config.NAME="]
    places = [page.index(text) for text in [*heads, f"\n{EXAMPLES}\n"]]
    assert places == sorted(places)
    lines = lines_of(page)
    assert "--peer_timeout (integer; 300)" in page
    assert "--workdir (text)                          Directory of the run: new, or one to" in page
    assert "batch_size (integer; 128)                 rows; the official recipe has 0.5M" in page
    assert any(line.startswith("optimizer.beta2 (number; 0.95)") for line in lines)
    assert max(map(len, page.splitlines())) <= 100


def test_a_command_shows_the_fields_that_it_takes(capsys):
    page = page_of(evaluate.main, capsys)
    assert "data.eval_fraction (number; 0.05)" in page
    assert "optimizer." not in page


def test_kinds_of_flags():
    values = flags.FlagValues()
    flags.DEFINE_enum("how", "fast", ["fast", "slow"], "Which way.", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "Where to end.", flag_values=values)
    flags.DEFINE_list("names", ["a", "b"], "Which.", flag_values=values)
    flags.DEFINE_bool("quick", False, "Less of it.", flag_values=values)
    page = render("One.\n\nExamples:\n  run --quick", values, None, ("",))
    assert re.sub(" +", " ", page).splitlines() == [
        *("One.", "", "Flags (type; default):"),
        " --how (fast|slow; fast) Which way.",
        " --stop (text, repeatable) Where to end.",
        " --names (list; a,b) Which.",
        " --quick (true or false; false) Less of it.",
        *("", "Examples:", " run --quick"),
    ]


def test_comments_are_read_from_the_source():
    assert dict(Comments(SOURCE).all()) == {
        "part": "A part.",
        "part.x": "Above, and on. beside",
        "part.y": "",
        "pair": "Said of both.",
        "pair.a": "",
        "pair.b": "",
        "last": "the end",
    }


def test_every_field_is_listed_with_its_default():
    fields = {field.name: field for field in fields_of()}
    config: ConfigDict = base.get_config()
    assert {name for name, field in fields.items() if field.kind} == set(flatten(config.to_dict()))
    assert fields["steps"].default == "10000"
    assert fields["model.gates.decay"].default is None
    told = fields["model.gates.gate_chunk"].told
    assert told == "L, tokens in a gate chunk of the content gate"  # the last word of its entry
    assert fields["model.gates.content_source"].told.endswith('or "previous_layer"')  # a sentence


@pytest.mark.parametrize("name", [*COMMANDS, *PACKAGES])
def test_examples_are_right(name):
    module = importlib.import_module(f"experiments.{name}{'.__main__' * (name in PACKAGES)}")
    _, _, text = module.__doc__.partition(f"\n{EXAMPLES}\n")
    examples = re.sub(r"\n {6,}", " ", text).strip().splitlines()
    assert examples, "there are none"
    for example in examples:
        assert example.strip().startswith(f"python -m experiments.{name}")
        for flag in re.findall(r"--([\w.]+)", example):
            if not (name == "sweep" and flag.startswith("config.")):  # fields of the sweep
                check_flag(flag, flags_of(f"experiments.{name}"))
        for path in re.findall(r"=(configs/[\w/]+\.py)", example):
            assert (ROOT / path).exists()
