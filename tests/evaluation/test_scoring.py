"""Scores against a plain forward pass over each request, and what sharing contexts saves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.errors import UserError
from carve_jax.evaluation.batching import batches, bucket, padded
from carve_jax.evaluation.continuing import continue_texts, cut
from carve_jax.evaluation.reading import _read_and_score
from carve_jax.evaluation.scoring import Request, Scorer
from carve_jax.model import LanguageModel, LMConfig
from tests.mixers.parameters import random_parameters

VOCABULARY = 20
LONGEST = 256


@functools.cache
def build(pattern):
    config = LMConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        layers=len(pattern),
        pattern=pattern,
        mlp_dim=16,
        num_heads=2,
        key_dim=4,
        value_dim=8,
        gates={"gate_chunk": 8, "content_rank": 4},
        window=6,
        implementation="recurrent",  # it compiles fastest
    )
    model = LanguageModel(config)
    return model, random_parameters(model, jnp.zeros((1, 1), jnp.int32))


@functools.cache
def whole_pass(pattern):
    model, params = build(pattern)
    return jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)[0]))


def plain(pattern, request):
    """Score of a request by one forward pass over all of it; what pads it comes after it."""
    tokens = np.zeros((1, LONGEST), np.int32)
    row = np.concatenate(request)
    tokens[0, : len(row)] = row
    table = np.asarray(whole_pass(pattern)(tokens), np.float64)[0]
    table = table[len(request.context) - 1 : len(row) - 1]
    picked = table[np.arange(len(table)), request.continuation]
    return picked.sum(), bool((table.argmax(1) == request.continuation).all())


def requests(pattern):
    """Contexts of one token and many, each with continuations of none, one and many tokens; and of
    two of them the likeliest continuation."""
    draw = np.random.default_rng(0)
    found = []
    for length in (1, 41, 41):
        context = draw.integers(0, VOCABULARY, length)
        found += [Request(context, draw.integers(0, VOCABULARY, n)) for n in (1, 3, 0, 12)]
        table = np.zeros((1, LONGEST), np.int32)
        table[0, :length] = context
        best = np.asarray(whole_pass(pattern)(table))[0, length - 1].argmax()
        found.append(Request(context, np.array([best])))
    return [*found, Request(draw.integers(0, VOCABULARY, 1), draw.integers(0, VOCABULARY, 200))]


# In one call a row, in several (its cache carried), and with every context read again.
WAYS = {
    "shared": {"call_tokens": 256},
    "in pieces": {"call_tokens": 48},
    "alone": {"call_tokens": 256, "share_contexts": False},
}


@pytest.mark.parametrize(
    ("pattern", "ways"),
    [
        pytest.param(("carve",), tuple(WAYS), id="carve", marks=pytest.mark.slow),
        pytest.param(("linear_attention",), tuple(WAYS), id="linear_attention"),
        pytest.param(("attention",), ("in pieces",), id="attention", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_a_plain_forward_pass(pattern, ways):
    model, params = build(pattern)
    asked = requests(pattern)
    expected = [plain(pattern, request) for request in asked]
    counts = {}
    for name in ways:
        scorer = Scorer(model, params, batch_size=4, **WAYS[name])
        told = {}
        scores = scorer.score(asked, told.__setitem__)
        for number, (score, (likelihood, greedy)) in enumerate(zip(scores, expected, strict=True)):
            assert score.log_likelihood == pytest.approx(likelihood, abs=1e-4)
            assert score.greedy == greedy
            assert len(asked[number].continuation) == 0 or told[number] == score
        counts[name] = scorer.counts
    assert sum(greedy for _, greedy in expected) >= 6  # the empty ones, and the likeliest
    assert max(count.programs for count in counts.values()) <= 8
    if len(ways) == 1:
        return
    assert counts["shared"].requested == counts["alone"].requested
    assert counts["shared"].read < 0.6 * counts["alone"].read
    assert counts["shared"].computed < counts["alone"].computed


def test_what_cannot_be_scored_is_one_sentence():
    model, params = build(("attention",))
    scorer = Scorer(model, params, max_length=16)
    one = np.zeros(1, np.int32)
    with pytest.raises(UserError, match="has 18 tokens, and the model has full attention and may "):
        scorer.score([Request(np.zeros(17, np.int32), one)])
    with pytest.raises(UserError, match="a request has no context"):
        scorer.score([Request(one[:0], one)])
    with pytest.raises(UserError, match="has the token 20, but the model knows 20: its tokenizer"):
        scorer.score([Request(one, one + 20)])


def letters(tokens):
    return "".join(chr(ord("a") + token) for token in tokens)


def test_texts_end_at_the_first_stop_whatever_its_tokens():
    pattern = ("linear_attention",)
    model, params = build(pattern)
    draw = np.random.default_rng(1)
    prompts = [draw.integers(0, VOCABULARY, n) for n in (3, 21, 40)]
    write = functools.partial(
        continue_texts, model, params, prompts, letters, max_new_tokens=40, end=99, batch_size=2
    )
    free = write()
    for prompt, text in zip(prompts, free, strict=True):
        assert len(text) == 40
        row = np.zeros((1, LONGEST), np.int32)
        row[0, : len(prompt) + 40] = np.r_[prompt, [ord(c) - ord("a") for c in text]]
        best = np.asarray(whole_pass(pattern)(row))[0].argmax(1)
        assert letters(best[len(prompt) - 1 : len(prompt) + 39]) == text
    stop = free[1][14:18]  # four tokens, across the end of a look
    told = {}
    stopped = write(stops=["zz", stop], on_text=told.__setitem__)
    assert [text.partition(stop)[0] for text in free] == stopped == [told[i] for i in range(3)]
    end = ord(free[2][5]) - ord("a")
    assert write(end=end)[2] == free[2][: free[2].index(free[2][5])]
    with pytest.raises(UserError, match="has 80 tokens, and it may have 64"):
        write(max_length=64)


def test_the_first_stop_to_come_ends_a_text():
    tokens = np.array([0, 1, 2, 3, 9, 0])
    assert cut(tokens, letters, ["d", "bc"], 9) == ("a", True)
    assert cut(tokens, letters, ["x"], 9) == ("abcd", True)
    assert cut(tokens, letters, [""], 10) == ("abcdja", False)


def test_rows_make_few_shapes():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 513, 300).tolist()
    groups = list(batches(lengths, most_rows=16, most_tokens=512))
    assert sorted(i for members, _, _ in groups for i in members) == list(range(300))
    for members, count, length in groups:
        assert len(members) <= count <= 16
        assert count * length <= 512 or count == 1
        assert max(lengths[i] for i in members) <= length
    assert len({shape for _, *shape in groups for shape in [tuple(shape)]}) <= 12
    assert [bucket(n) for n in (1, 33, 48, 49, 65, 97)] == [32, 48, 48, 64, 96, 128]
    assert padded(512 + 40, 512) == 512 + 48


def test_a_row_in_pieces_is_one_program_when_parameters_are_committed():
    model, params = build(("gdn2",))
    scorer = Scorer(model, jax.device_put(params, jax.devices()[1]), batch_size=1, call_tokens=64)
    before = _read_and_score._cache_size()
    scorer.score([Request(np.ones(1, np.int32), np.ones(191, np.int32))])
    assert _read_and_score._cache_size() - before == 1
