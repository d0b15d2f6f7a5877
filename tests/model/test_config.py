import dataclasses
import json
import pickle
import re

import pytest

from carve_jax.config import FORMER, LMConfig, with_sections
from carve_jax.mixers import FAMILY, GateSpec, LayerSpec
from carve_jax.mixers.changes import SECTIONS
from configs import base


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pattern": ("crave",)}, "unknown mixer 'crave'; did you mean 'carve'?"),
        ({"pattern": ("atention",)}, "did you mean 'attention'?"),
        ({"pattern": "carve"}, "is a string; give a tuple"),
        ({"pattern": ()}, "no multiple of the pattern's 0 mixers"),
        ({"pattern": ("carve", "carve", "swa")}, "layers=4 is no multiple of the pattern's 3"),
        ({"remat": "some"}, "remat='some'; choose one of none, full, dots, rule, rule_and_dots"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16'; choose one of float32, bfloat16"),
        ({"num_key_heads": 3}, "num_key_heads=3 does not divide num_heads=4"),
        ({"pattern": ("swa",), "attention_kv_heads": 3}, "attention_kv_heads=3 does not divide"),
        ({"pattern": ("attention",), "attention_heads": 3}, "attention_heads=3 does not divide"),
        ({"pattern": ("swa",), "attention_head_dim": 7}, "7 channels; RoPE needs an even number"),
        ({"layers": 0}, "layers=0; it must be an integer of at least 1"),
        ({"d_model": 64.0}, "d_model=64.0; it must be an integer"),
        ({"conv_width": 0}, "conv_width=0"),
        ({"attention_heads": 0}, "attention_heads=0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0; it must be above 0"),
        ({"implementation": "cuda"}, "unknown implementation 'cuda'"),
        ({"gates": {"erase": "vector"}}, "erase='vector'; choose one of none, scalar, channel"),
        ({"gates": {"erase": "scalar"}}, "content=True needs a channel erase gate, not 'scalar'"),
        ({"pattern": ("mamba3",), "key_dim": 3}, "key_dim=3; Mamba-3 rotates"),
        ({"mimo_rank": 0}, "mimo_rank=0; it must be an integer of at least 1"),
    ],
)
def test_refuses_what_cannot_be_built(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        LMConfig(**fields)


def test_attention_need_not_fit_a_model_without_it():
    LMConfig(d_model=100, num_heads=3)
    with pytest.raises(ValueError, match="does not divide d_model=100"):
        LMConfig(d_model=100, num_heads=3, pattern=("swa",))


def test_lists_become_tuples_so_that_configurations_are_hashable():
    config = LMConfig(pattern=["carve", "swa"])
    assert config.pattern == ("carve", "swa")
    assert hash(config) == hash(LMConfig(pattern=("carve", "swa")))


def test_documents_are_aligned_where_a_content_gate_is():
    config = LMConfig(pattern=("gdn2", "carve"), gates={"gate_chunk": 32})
    assert config.segment_alignment == 32
    assert dataclasses.replace(config, pattern=("gdn2", "swa")).segment_alignment == 1


def test_gates_are_the_presets_unless_changed():
    changes = {"gate_chunk": 16, "write": "scalar", "content_norm": True}
    config = LMConfig(pattern=("carve", "gdn2"), gates=changes)
    assert FAMILY["gdn2"].gates_of(config) == GateSpec(
        write="scalar", gate_chunk=16, content_norm=True
    )
    assert FAMILY["carve"].gates_of(config) == dataclasses.replace(
        FAMILY["gdn2"].gates_of(config), content=True
    )
    assert FAMILY["kda"].gates_of(LMConfig()) == FAMILY["kda"].gates


def test_a_content_gate_may_be_added_or_taken_away():
    assert LMConfig(pattern=("gdn2",), gates={"content": True}).segment_alignment == 64
    assert LMConfig(pattern=("carve",), gates={"content": False}).segment_alignment == 1


def test_a_layer_may_be_changed_as_gates_may():
    config = LMConfig(pattern=("gdn2", "retnet"), layer={"short_conv": False, "scale": 1.0})
    assert FAMILY["gdn2"].layer_of(config) == LayerSpec(short_conv=False, scale=1.0)
    assert FAMILY["retnet"].of_model(config).layer.rope
    with pytest.raises(ValueError, match=r"key_dim=7; RoPE needs an even number"):
        LMConfig(key_dim=7, layer={"rope": True})


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_fields_of_its_spec_here_and_in_every_config(section):
    spec = {"gates": GateSpec, "layer": LayerSpec}[section]
    names = [field.name for field in dataclasses.fields(spec)]
    assert [field.name for field in dataclasses.fields(SECTIONS[section])] == names
    written = base.get_config().model[section]
    assert dict(written) == dict.fromkeys(names)
    kinds = {name: written.get_oneway_ref(name).get_type() for name in names}
    assert kinds == SECTIONS[section].kinds


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gates": {"earse": "scalar"}}, "gates has no field 'earse'; did you mean 'erase'?"),
        ({"gates": {"gate_chunk": 0}}, "gates.gate_chunk=0; it must be an integer of at least 1"),
        ({"gates": {"content": 1}}, "gates.content=1; it must be True or False"),
        ({"layer": {"scale": "big"}}, "layer.scale='big'; it must be a number"),
        ({"layer": {"output_gate": "half"}}, "output_gate='half'; choose one of none, full"),
    ],
)
def test_a_section_refuses_what_its_spec_does_not_have(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        LMConfig(**fields)
    with pytest.raises(TypeError, match=r"gates=3; give a mapping of its fields"):
        LMConfig(gates=3)


def test_a_configuration_goes_through_json_and_replace():
    config = LMConfig(gates={"gate_chunk": 16}, layer={"short_conv": False})
    assert LMConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(dataclasses.replace(config, layers=8)) != hash(config)
    assert dataclasses.replace(config, gates={}, layer={}) == LMConfig()
    assert pickle.loads(pickle.dumps(config)) == config


def test_fields_saved_before_gates_had_a_section_are_where_they_lie_now():
    flat = {"d_model": 64, "decay": None, "write": "scalar", "gate_chunk": 16, "content_rank": 16}
    fields = with_sections(flat | {"negative_eigenvalues": False})
    assert LMConfig(**fields) == LMConfig(d_model=64, gates={"write": "scalar", "gate_chunk": 16})
    assert with_sections(fields) == fields
    assert with_sections(fields | {"content_rank": 4})["gates"]["content_rank"] == 4
    for entry in FAMILY.values():  # a default of that time is what every preset has
        given = {name: value for name, value in FORMER.items() if value is not None}
        assert dataclasses.replace(entry.gates, **given) == entry.gates
