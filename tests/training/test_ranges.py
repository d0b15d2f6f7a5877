"""Every number of a config has its range, and is refused outside of it before anything is made."""

import math

import pytest

from carve_jax.data.config import DataConfig
from carve_jax.errors import UserError
from carve_jax.ranges import INT32, Range, check_number
from carve_jax.training.loop import train
from carve_jax.training.settings import OPTIONAL, RANGES, flatten, read_settings
from configs import base
from tests.training.helpers import tiny_config

# Numbers in a list, which have checks of their own.
LISTED = {"profile_steps", "data.weights"}


def numbers():
    """The fields of a config that hold a number, or may hold one."""
    flat = flatten(base.get_config()) | flatten({"data": vars(DataConfig())})
    found = {name for name, v in flat.items() if type(v) in (int, float)}
    return found | {name for name, kind in OPTIONAL.items() if kind in (int, float)}


def test_the_table_has_all_numbers_and_no_other():
    assert numbers() | LISTED == set(RANGES) | LISTED


def test_the_defaults_are_in_their_ranges():
    flat = flatten(base.get_config()) | flatten({"data": vars(DataConfig())})
    for name in RANGES:
        check_number(name, flat[name], RANGES)


def just_outside(allowed: Range):
    """The nearest numbers that are not allowed, and what is no number at all."""
    step = 1 if allowed.whole else 1e-9
    yield allowed.least if allowed.open_least else allowed.least - step
    yield allowed.most if allowed.open_most else allowed.most + step * max(1, allowed.most)
    yield from (math.nan, math.inf, -math.inf, True, "1", 10**400, -(10**19), (1,))
    if allowed.whole or allowed.least >= 0:
        yield -0.5


@pytest.mark.parametrize("name", RANGES)
def test_what_is_out_of_range_is_refused_in_one_short_sentence(name):
    for value in just_outside(RANGES[name]):
        with pytest.raises(UserError, match=rf"^config\.{name} is .*, but must be a .*number") as e:
            check_number(name, value, RANGES)
        assert len(str(e.value)) < 250
    if not RANGES[name].unset:
        with pytest.raises(UserError, match="is None"):
            check_number(name, None, RANGES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer__clip_norm": 0.0}, "above 0.0 and at most 1e+30; to clip nothing, give a"),
        ({"optimizer__beta1": 1.5}, "a number of at least 0.0 and below 1.0"),
        ({"optimizer__peak_learning_rate": math.nan}, "peak_learning_rate is nan, but must be a"),
        ({"seed": 10**20}, "config.seed is a number of 21 digits, but must be a whole number of"),
        ({"sample_tokens": -3}, "config.sample_tokens is -3, but must be a whole number of at"),
        ({"mesh__data": 0}, "config.mesh.data is 0, but must be a whole number of at least -1"),
        ({"model__norm_eps": math.inf}, "config.model.norm_eps is inf, but must be a number"),
        ({"data__num_pairs": 0}, "config.data.num_pairs is 0, but must be a whole number of at le"),
        ({"steps": INT32 + 1}, "at least 1 and at most 2,147,483,647"),
    ],
)
def test_training_refuses_before_it_makes_anything(tmp_path, changes, said):
    with pytest.raises(UserError) as caught:
        train(tiny_config(**changes), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_whole_numbers_stand_for_numbers():
    read_settings(tiny_config(optimizer__weight_decay=0, watchdog_seconds=3))
