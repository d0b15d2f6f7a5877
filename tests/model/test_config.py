import dataclasses
import re

import pytest

from carve_jax.mixers import FAMILY, GateSpec
from carve_jax.model import LMConfig


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pattern": ("crave",)}, "unknown mixer 'crave'; did you mean 'carve'?"),
        ({"pattern": ("atention",)}, "did you mean 'attention'?"),
        ({"pattern": "carve"}, "is a string; give a tuple"),
        ({"pattern": ()}, "no multiple of the pattern's 0 mixers"),
        ({"pattern": ("carve", "carve", "swa")}, "layers=4 is no multiple of the pattern's 3"),
        ({"remat": "some"}, "remat='some'; choose one of none, full, dots"),
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
        ({"erase": "vector"}, "erase='vector'; choose one of none, scalar, channel"),
        ({"erase": "scalar"}, "content=True needs a channel erase gate, not 'scalar'"),
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
    config = LMConfig(pattern=("gdn2", "carve"), gate_chunk=32)
    assert config.segment_alignment == 32
    assert dataclasses.replace(config, pattern=("gdn2", "swa")).segment_alignment == 1


def test_gates_are_the_presets_unless_changed():
    config = LMConfig(pattern=("carve", "gdn2"), gate_chunk=16, write="scalar", content_norm=True)
    assert FAMILY["gdn2"].gates_of(config) == GateSpec(
        write="scalar", gate_chunk=16, content_norm=True
    )
    assert FAMILY["carve"].gates_of(config) == dataclasses.replace(
        FAMILY["gdn2"].gates_of(config), content=True
    )
    assert FAMILY["kda"].gates_of(LMConfig()) == FAMILY["kda"].gates


def test_a_content_gate_may_be_added_or_taken_away():
    assert LMConfig(pattern=("gdn2",), content=True).segment_alignment == 64
    assert LMConfig(pattern=("carve",), content=False).segment_alignment == 1
