"""Configs: refused in one sentence, and held against the directory's."""

import json

import pytest
from ml_collections import ConfigDict

from carve_jax.config import FORMER
from carve_jax.data import ByteTokenizer
from carve_jax.errors import UserError
from carve_jax.model import LMConfig
from carve_jax.training.run import build_pipeline, load_trained, make_model
from carve_jax.training.settings import (
    RESUMABLE,
    flatten,
    make_model_config,
    read_batches,
    read_settings,
)
from carve_jax.training.workdir import claim_workdir, load_config, require_config_of
from configs import (
    base,
    content_erase,
    mqar,
    niah,
    overwriting_recall,
    quickstart,
    quickstart_gdn2,
    selective_copying,
    state_tracking,
)
from tests.training.helpers import tiny_config

TASKS = (mqar, overwriting_recall, selective_copying, state_tracking, content_erase)


@pytest.mark.parametrize("module", [base, quickstart, quickstart_gdn2, niah, *TASKS])
def test_shipped_configs_are_valid(module):
    config = module.get_config()
    read_settings(config)
    model = make_model_config(config)
    assert config.sequence_length % model.segment_alignment == 0


@pytest.mark.parametrize("module", TASKS)
def test_configs_of_tasks_have_room_for_them(module):
    config = module.get_config()
    assert build_pipeline(read_batches(config), make_model(config).config).tokenizer is None


def test_the_needle_is_asked_for_in_bytes():
    config = niah.get_config()
    pipeline = build_pipeline(read_batches(config), make_model(config).config)
    assert isinstance(pipeline.tokenizer, ByteTokenizer)


def test_the_model_section_has_the_fields_of_lmconfig_and_no_other():
    assert set(base.get_config().model) == set(LMConfig.__dataclass_fields__)


def test_the_twin_differs_in_the_mixer_alone():
    ours, twin = (flatten(m.get_config()) for m in (quickstart, quickstart_gdn2))
    assert {name for name in ours if ours[name] != twin[name]} == {"model.pattern"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "config.steps is 0, but must be a whole number of at least 1"),
        ({"log_every": -3}, "config.log_every is -3"),
        (
            {"optimizer__accumulate_steps": 3},
            "config.batch_size is 4, but must be a multiple of config.optimizer.accumulate_steps",
        ),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(UserError, match=message):
        read_settings(tiny_config(**changes))


def test_unknown_and_missing_fields():
    config = tiny_config()
    config.stepz = 3
    with pytest.raises(UserError, match="config has no field 'stepz'; did you mean 'steps'"):
        read_settings(config)
    config = tiny_config()
    del config.optimizer.beta2
    with pytest.raises(UserError, match=r"config.optimizer lacks beta2: start from configs/base"):
        read_settings(config)
    config = tiny_config()
    config.model.d_modle = 3
    with pytest.raises(UserError, match=r"config.model has no field 'd_modle'.*'d_model'"):
        make_model_config(config)


@pytest.mark.parametrize("name", ["optimizer", "mesh", "guard", "data", "model"])
@pytest.mark.parametrize("value", ["", None, 3, "x" * 100_000])
def test_a_section_that_is_a_value(name, value):
    config = ConfigDict(tiny_config().to_dict() | {name: value})
    with pytest.raises(
        UserError, match=rf"^config.{name} is .* must be a section of fields"
    ) as told:
        read_settings(config)
    assert len(str(told.value)) < 400


def test_a_config_without_a_model():
    with pytest.raises(UserError, match=r"^config lacks model, which must be a section of fields"):
        make_model_config(ConfigDict({"data": {}}))


@pytest.mark.parametrize("name", ["batch_size", "sequence_length", "model"])
@pytest.mark.parametrize("value", ["absent", "", None, -1])
def test_a_trained_model_needs_the_sizes_of_its_config(tmp_path, name, value):
    fields = tiny_config().to_dict() | {name: value}
    if value == "absent":
        del fields[name]
    (tmp_path / "config.json").write_text(json.dumps(fields), "utf-8")
    with pytest.raises(UserError, match=f"^config( lacks |.){name}"):
        load_trained(tmp_path)


@pytest.mark.parametrize("steps", [-0.0, None, 3, "ab", (1,), (1.0, 2), (2, 1), ["x" * 100_000]])
def test_steps_to_trace_are_two_whole_numbers(steps):
    config = ConfigDict(tiny_config().to_dict() | {"profile_steps": steps})
    with pytest.raises(UserError, match=r"^config.profile_steps is .* such as") as told:
        read_settings(config)
    assert len(str(told.value)) < 400


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"x" * 100_000: 1}, "config has no field 'x"),
        ({"sample_prompt": 5}, "config.sample_prompt is 5, but must be text"),
        ({"guard": base.get_config().guard.to_dict() | {"action": "x" * 100_000}}, "guard.action"),
    ],
)
def test_other_values_are_refused_in_a_line(changes, field):
    with pytest.raises(UserError, match=field) as told:
        read_settings(ConfigDict(tiny_config().to_dict() | changes))
    assert len(str(told.value)) < 900


@pytest.mark.parametrize("name", ["compute_dtype", "gates.decay", "pattern"])
def test_what_the_model_refuses_is_told_in_a_line(name):
    config = tiny_config()
    with config.ignore_type():
        config.update_from_flattened_dict({f"model.{name}": "x" * 100_000})
    with pytest.raises(UserError, match=rf"^config.model: .*{name.split('.')[-1]}=") as told:
        make_model_config(config)
    assert len(str(told.value)) < 300


def test_a_directory_of_another_long_config_is_told_in_a_line(tmp_path):
    claim_workdir(tmp_path, tiny_config(data__path="x" * 100_000).to_dict())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n', "utf-8")
    with pytest.raises(
        UserError, match=r"belongs to a run of another config: data.path is"
    ) as told:
        claim_workdir(tmp_path, tiny_config(data__path="y" * 100_000).to_dict())
    assert len(str(told.value)) < 900


def test_unknown_mixer_offers_the_nearest():
    with pytest.raises(UserError, match=r"config.model: .*'crave'.*carve"):
        make_model_config(tiny_config(model__pattern=("crave",)))


def test_a_directory_belongs_to_its_config(tmp_path):
    workdir = tmp_path / "new" / "run"
    claim_workdir(workdir, tiny_config().to_dict())
    assert flatten(load_config(workdir)) == flatten(tiny_config())
    claim_workdir(workdir, tiny_config().to_dict())
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    other = tiny_config(steps=7, model__pattern=("gdn2",))
    with pytest.raises(UserError) as caught:
        claim_workdir(workdir, other.to_dict())
    assert "model.pattern is ('carve',) there and ('gdn2',) here; steps is 6 there and 7 here" in (
        str(caught.value)
    )
    assert load_config(workdir).steps == 6


def test_a_run_that_never_took_a_step_gives_way(tmp_path):
    said: list[str] = []
    claim_workdir(tmp_path, tiny_config().to_dict(), say=said.append)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints").mkdir()
    assert said == []
    claim_workdir(tmp_path, tiny_config(steps=7).to_dict(), say=said.append)
    assert load_config(tmp_path).steps == 7
    (line,) = said
    assert "never took a step, of another config: steps is 6 there and 7 here; it has" in line


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/3", "checkpoints/0.tmp"])
def test_a_run_that_left_something_does_not(tmp_path, left):
    claim_workdir(tmp_path, tiny_config().to_dict())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / left).write_text('{"step": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="belongs to a run of another config: steps is 6 there"):
        claim_workdir(tmp_path, tiny_config(steps=7).to_dict())
    assert load_config(tmp_path).steps == 6


def test_fields_that_change_nothing_learned_may_change(tmp_path):
    claim_workdir(tmp_path, tiny_config().to_dict())
    claim_workdir(tmp_path, tiny_config(log_every=2, eval_every=5, sample_prompt="x").to_dict())
    assert load_config(tmp_path).log_every == 2
    assert set(flatten(tiny_config())) >= RESUMABLE


def test_bad_directories(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give a directory"):
        claim_workdir(tmp_path / "file", tiny_config().to_dict())
    with pytest.raises(UserError, match=r"holds no run \(config.json is missing\)"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-3])
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        load_config(tmp_path)


def test_flatten_takes_lists_for_tuples():
    config = ConfigDict({"a": {"b": [1, 2]}, "c": (3,)})
    assert flatten(config) == {"a.b": (1, 2), "c": (3,)}


def test_a_run_from_before_gates_had_a_section_goes_on(tmp_path):
    config = tiny_config(model__gates__write="scalar")
    claim_workdir(tmp_path, config.to_dict())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n', "utf-8")
    stored = json.loads((tmp_path / "config.json").read_text("utf-8"))
    gates = stored["model"].pop("gates")
    del stored["model"]["layer"], stored["optimizer"]["content_up_lr_factor"]
    stored["model"] |= {n: was if gates[n] is None else gates[n] for n, was in FORMER.items()}
    (tmp_path / "config.json").write_text(json.dumps(stored), "utf-8")
    read = load_config(tmp_path)
    assert make_model_config(read) == make_model_config(config)
    assert read_settings(read).optimizer == read_settings(config).optimizer
    claim_workdir(tmp_path, config.to_dict())
    require_config_of({"config": stored, "step": 1}, config.to_dict(), tmp_path)


def test_a_config_with_a_field_of_the_gates_among_the_sizes_is_told_its_place():
    config = tiny_config()
    config.model.gate_chunk = 16
    said = r"^config.model.gate_chunk: .* give config.model.gates.gate_chunk$"
    with pytest.raises(UserError, match=said):
        make_model_config(config)
