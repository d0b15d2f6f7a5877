"""Probes put to models: what is read, decoded and scored."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.config import LMConfig
from carve_jax.data import ByteTokenizer
from carve_jax.data.ruler import PROBES, Haystack, examples
from carve_jax.evaluation.ruler import run
from carve_jax.evaluation.ruler.run import Asking, language_reference, run_probe
from carve_jax.evaluation.tasks import Figure
from carve_jax.model import LanguageModel

TOKENIZER = ByteTokenizer()


@pytest.mark.slow  # always: a probe by the command, in test_evaluate.py
def test_an_untrained_model_finds_nothing():
    sizes = {"d_model": 8, "layers": 1, "mlp_dim": 8, "num_heads": 1, "key_dim": 4, "value_dim": 4}
    model = LanguageModel(LMConfig(**sizes, pattern=("linear_attention",)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    asking = Asking(count=2, new_tokens=16)
    result = run_probe(model, params, TOKENIZER, PROBES["niah_single_1"], 512, asking)
    assert result.metrics == {"accuracy": Figure(0.0, 0.0, 2)}
    assert result.facts["haystack"] == "noise"
    assert result.facts["length"] == 512


def test_replies_are_scored_against_the_prompts_that_were_read(monkeypatch):
    """In the model's place, a reader of the prompts that finds two of the four values."""
    read = []

    def generate(model, params, prompts, *, max_new_tokens, stop_tokens, prefill_chunk):
        rows = []
        for prompt in prompts:
            assert prompt[0] == TOKENIZER.separator
            assert len(prompt) + max_new_tokens == 1500
            text = TOKENIZER.decode(prompt)
            read.append(text)
            reply = TOKENIZER.encode(" and ".join(re.findall(r"is: (\d+)\.", text)[:2]))
            rows.append(np.pad(reply, (0, max_new_tokens - len(reply)), constant_values=256))
        assert stop_tokens == (256,)
        assert prefill_chunk == 100
        return np.stack(rows)

    monkeypatch.setattr(run, "generate", generate)
    asking = Asking(
        count=5, seed=3, batch_size=2, prefill_chunk=100, haystack=Haystack.text("A b. C d.")
    )
    result = run_probe(None, None, TOKENIZER, PROBES["niah_multivalue"], 1500, asking)
    assert result.metrics["accuracy"] == Figure(0.5, 0.0, 5)
    assert result.facts["haystack"] == "text"
    assert {value for value in result.facts["accuracy_by_depth"] if value is not None} == {0.5}
    assert len(set(read)) == 5


def test_the_text_of_every_python_is_the_text_where_none_is_given():
    text = language_reference()
    assert len(text.sentences) > 1000
    (one,) = examples(
        PROBES["niah_single_2"], length=2000, encode=str.encode, count=1, haystack=text
    )
    assert one.prompt.count(one.answers[0]) == 1
