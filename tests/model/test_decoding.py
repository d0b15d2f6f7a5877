import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.decoding import Decoding, extend, prefill, slots
from carve_jax.generate import STEPS_A_CALL, decode, generate
from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel, LMConfig
from tests.mixers.parameters import random_parameters, random_tokens

# The tests of a pattern share sizes, and so programs: as many rows, and room, as these.
PATTERNS = [("carve", "swa"), ("gdn2",), ("carve", "attention")]
# Tests of one mixer's cache are in tests/mixers; the whole of these patterns is for the night.
EACH = [pytest.param(p, marks=() if "swa" in p else pytest.mark.slow) for p in PATTERNS]
LENGTHS = (1, 5, 21, 9, 8)
ROOM = 41
LONGEST = 48


@functools.cache
def build(pattern):
    config = LMConfig(
        vocab_size=50,
        d_model=32,
        layers=2,
        pattern=pattern,
        mlp_dim=48,
        num_heads=2,
        key_dim=8,
        value_dim=16,
        gates={"gate_chunk": 8, "content_rank": 4},
        window=6,
        # It compiles fastest, and needs no alignment; others take what a user would.
        implementation="recurrent" if "attention" in pattern else None,
    )
    model = LanguageModel(config)
    return model, random_parameters(model, jnp.zeros((1, 1), jnp.int32))


@functools.cache
def whole_pass(pattern):
    model, _ = build(pattern)
    return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens)[0])


# One of a kind by day.
DAY = ("carve", "gdn2", "mamba3_mimo", "rwkv7", "attention", "swa")
SINGLE = [pytest.param((m,), marks=() if m in DAY else pytest.mark.slow, id=m) for m in MIXERS]


@pytest.mark.parametrize("pattern", SINGLE)
def test_where_float64_is_on_caches_and_decoding_are_as_without(pattern):
    config = dataclasses.replace(build(("gdn2",))[0].config, layers=1, pattern=pattern)
    model = LanguageModel(config)
    like = jax.eval_shape(lambda: model.init_cache(1, 8))
    params = jax.eval_shape(lambda: random_parameters(model, jnp.zeros((1, 1), jnp.int32)))
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)

    def read(params, tokens):
        cache = model.init_cache(1, 8)
        _, cache = model.apply({"params": params}, tokens, cache, method="hidden")
        return cache, model.apply({"params": params}, tokens[:, :1], cache, method="hidden")[1]

    with jax.enable_x64(True):
        after, again = jax.eval_shape(read, params, tokens)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    assert jax.tree.map(_kind, after) == jax.tree.map(_kind, again) == jax.tree.map(_kind, like)


def _kind(leaf):
    return leaf.shape, str(leaf.dtype)


@pytest.mark.parametrize(
    ("pattern", "pad_to"),
    [
        pytest.param(("carve", "swa"), 1, marks=pytest.mark.slow),
        pytest.param(("carve", "swa"), 5, marks=pytest.mark.slow),
        (("carve", "attention"), 1),
        pytest.param(("carve", "attention"), 5, marks=pytest.mark.slow),
    ],
)
def test_prompts_and_rooms_below_a_gate_chunk(pattern, pad_to):
    model, params = build(pattern)
    row = prompts((3,))[0]
    decoding = prefill(model, params, [row], max_length=5, pad_to=pad_to)
    expected = logits_of(pattern, [row])
    np.testing.assert_allclose(decoding.logits[0], expected[0, 2], rtol=2e-5, atol=2e-5)
    assert decoding.position.tolist() == [3]


def prompts(lengths=LENGTHS):
    return [np.asarray(random_tokens(n, below=50, seed=n)) for n in lengths]


def logits_of(pattern, rows):
    """Logits of the whole forward pass at every token; what pads the rows comes after them."""
    tokens = np.zeros((len(LENGTHS), LONGEST), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    _, params = build(pattern)
    return np.asarray(whole_pass(pattern)(params, tokens))[: len(rows)]


def assert_continues(pattern, rows, new):
    """The new tokens are those of the argmax of the whole forward pass over each row."""
    logits = logits_of(pattern, [np.r_[row, more] for row, more in zip(rows, new, strict=True)])
    for row, more, scores in zip(rows, np.asarray(new), logits, strict=True):
        start = len(row) - 1
        np.testing.assert_array_equal(more, scores[start : start + len(more)].argmax(-1))


@pytest.mark.parametrize(
    "chunk",
    # A gate chunk of 8 is the least that is read.
    [5, pytest.param(16, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("pattern", EACH, ids="-".join)
def test_rows_of_different_lengths_continue_as_their_whole_forward_pass(pattern, chunk):
    model, params = build(pattern)
    new = np.asarray(
        generate(model, params, prompts(), max_new_tokens=ROOM - max(LENGTHS), prefill_chunk=chunk)
    )
    assert_continues(pattern, prompts(), new)
    assert len(np.unique(new)) > 3


@pytest.mark.slow  # always: one short row
@pytest.mark.parametrize("pattern", EACH, ids="-".join)
def test_a_row_alone_continues_as_among_others(pattern):
    model, params = build(pattern)
    steps = ROOM - max(LENGTHS)
    new = generate(model, params, prompts(), max_new_tokens=steps)
    alone = generate(model, params, [prompts()[0]], max_new_tokens=steps)
    np.testing.assert_array_equal(alone[0], new[0])


@pytest.mark.parametrize("pattern", EACH, ids="-".join)
def test_prefill_gives_the_logits_of_each_rows_last_token(pattern):
    model, params = build(pattern)
    read = prefill(model, params, prompts(), max_length=ROOM, chunk=5)
    expected = logits_of(pattern, prompts())
    for index, length in enumerate(LENGTHS):
        np.testing.assert_allclose(read.logits[index], expected[index, length - 1], atol=2e-5)
    np.testing.assert_array_equal(read.position, LENGTHS)
    assert read.logits.dtype == jnp.float32


@pytest.mark.slow  # always: logits of the last tokens, read in chunks of 5
@pytest.mark.parametrize("pattern", EACH[::2], ids="-".join)
def test_chunks_of_any_size_read_as_one_call(pattern):
    """Rows of one length, with a gate chunk and a window cut anywhere."""
    model, params = build(pattern)
    rows = random_tokens(2, 21, below=50)
    one = prefill(model, params, rows, max_length=24)
    parts = prefill(model, params, rows, max_length=24, chunk=5)
    for whole, cut in zip(jax.tree.leaves(one), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(cut, whole, atol=2e-5)


def test_rows_that_have_not_begun_leave_an_empty_cache():
    """Whatever the padding writes, a prompt that starts with a later call finds nothing of it."""
    model, params = build(("carve", "attention"))
    read = prefill(model, params, prompts((16, 8)), max_length=ROOM, chunk=8)
    alone = prefill(model, params, prompts((8,)), max_length=ROOM, chunk=8)
    both = jax.tree.map(lambda leaf: leaf[:, 1:], read.cache)
    for one, other in zip(jax.tree.leaves(both), jax.tree.leaves(alone.cache), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("pattern", EACH[::2], ids="-".join)
def test_decoding_goes_on_after_more_prompt(pattern):
    model, params = build(pattern)
    first = prompts((5, 13, 1, 8, 9))
    decoding = prefill(model, params, first, max_length=ROOM, chunk=8)
    new, decoding = decode(model, params, decoding, max_new_tokens=3)
    more = prompts((4, 8, 1, 2, 3))
    decoding = prefill(model, params, more, decoding=decoding, chunk=4)
    np.testing.assert_array_equal(decoding.position, [12, 24, 5, 13, 15])
    rows = [np.concatenate(parts) for parts in zip(first, np.asarray(new), more, strict=True)]
    last, decoding = decode(model, params, decoding, max_new_tokens=9)
    assert_continues(pattern, rows, last)
    np.testing.assert_array_equal(decoding.position, [21, 33, 14, 22, 24])


def test_decoding_in_parts_is_decoding_at_once():
    model, params = build(("carve", "swa"))
    steps = STEPS_A_CALL + 3
    at_once, _ = decode(
        model, params, prefill(model, params, prompts(), max_length=99), max_new_tokens=steps
    )
    decoding, parts = prefill(model, params, prompts(), max_length=99), []
    for count in (STEPS_A_CALL, 0, 3):
        new, decoding = decode(model, params, decoding, max_new_tokens=count)
        parts.append(new)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), at_once)


@pytest.mark.slow  # always: of tokens and stops, in test_generate.py
def test_streaming_draws_what_a_call_of_many_steps_draws():
    model, params = build(("carve", "swa"))
    rows, steps = prompts((3, 3)), []
    options = {"max_new_tokens": 9, "temperature": 1.0, "rng": jax.random.key(3)}
    at_once = generate(model, params, rows, **options)
    generate(model, params, rows, on_token=steps.append, **options)
    np.testing.assert_array_equal(np.stack(steps, axis=1), at_once)
    assert len(np.unique(at_once)) > 6


def test_a_row_that_stopped_waits_and_can_go_on():
    model, params = build(("carve", "attention"))
    rows = prompts((5, 13))
    read = prefill(model, params, rows, max_length=ROOM, chunk=8)
    free = np.asarray(decode(model, params, read, max_new_tokens=12)[0])
    stop = int(free[0, 3])
    ends = [1 + np.flatnonzero(row == stop)[0] if stop in row else 12 for row in free]
    assert min(ends) < max(ends)
    decoding = prefill(model, params, rows, max_length=ROOM, chunk=8)
    new, decoding = decode(model, params, decoding, max_new_tokens=12, stop_tokens=[stop])
    np.testing.assert_array_equal(decoding.position, np.add((5, 13), ends))
    new = np.asarray(new)
    for row, whole, end in zip(new, free, ends, strict=True):
        np.testing.assert_array_equal(row[:end], whole[:end])
        assert (row[end:] == row[end - 1]).all()
    last, _ = decode(model, params, decoding, max_new_tokens=4)
    read = [np.r_[row, whole[:end]] for row, whole, end in zip(rows, free, ends, strict=True)]
    assert_continues(("carve", "attention"), read, last)


def test_caches_are_updated_in_place():
    model, params = build(("carve", "swa"))
    read = prefill(model, params, prompts(), max_length=ROOM)
    _, decoded = decode(model, params, read, max_new_tokens=2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(read))
    prefill(model, params, prompts(), decoding=decoded)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(decoded.cache))


def test_more_room_changes_no_token():
    model, params = build(("carve", "attention"))
    rows = prompts((5, ROOM - 8))
    tight = prefill(model, params, rows, max_length=ROOM - 8, chunk=8)
    assert slots(model.config, tight.cache) == ROOM - 8
    wide = extend(model, tight, ROOM)
    assert slots(model.config, wide.cache) == ROOM
    with pytest.raises(ValueError, match="continuation of row 1 has 9 tokens, of which 8 fit"):
        decode(model, params, wide, max_new_tokens=9)
    new, full = decode(model, params, wide, max_new_tokens=8)
    assert_continues(("carve", "attention"), rows, new)
    more = prefill(model, params, prompts((1, 1)), decoding=full, max_length=ROOM + 1)
    np.testing.assert_array_equal(more.position, [14, ROOM + 1])


def test_only_full_attention_and_short_windows_bound_a_row():
    def bound(pattern, max_length):
        model, _ = build(pattern)
        return slots(model.config, model.init_cache(1, max_length))

    assert bound(("gdn2",), 4) is None
    assert bound(("carve", "swa"), 6) is None
    assert bound(("carve", "swa"), 5) == 5
    assert bound(("carve", "attention"), 9) == 9


@pytest.mark.parametrize(
    ("rows", "options", "error", "words"),
    [
        ([[1], []], {}, ValueError, "prompt 1 has shape .* at least one token"),
        ([], {}, ValueError, "no prompts"),
        ([[1], [2.5]], {}, TypeError, "float64 in row 1; expected integers"),
        ([[1], [3, 50]], {}, ValueError, "prompt 1 has token 50; .* vocabulary of 50"),
        ([[-1]], {}, ValueError, "prompt 0 has token -1"),
        ([[1]], {"chunk": 0}, ValueError, "chunk=0"),
        ([[1]], {"max_length": None}, ValueError, "needs max_length"),
        (
            [[1], [2] * 9],
            {},
            ValueError,
            "prompt of row 1 has 9 tokens, of which 8 fit.*max_length of at least 9",
        ),
    ],
)
def test_prefill_refuses(rows, options, error, words):
    model, params = build(("carve", "attention"))
    with pytest.raises(error, match=words):
        prefill(model, params, rows, **{"max_length": 8, **options})


def test_going_on_refuses_other_rows_and_too_many_tokens():
    model, params = build(("carve", "attention"))
    logits = np.zeros((2, model.config.vocab_size), np.float32)
    decoding = Decoding(model.init_cache(2, 16), logits, np.array([5, 8], np.int32))
    with pytest.raises(ValueError, match="1 prompts for the 2 rows"):
        prefill(model, params, prompts((5,)), decoding=decoding)
    with pytest.raises(ValueError, match="prompt of row 1 has 9 tokens, of which 8 fit"):
        prefill(model, params, prompts((9, 9)), decoding=decoding)
    with pytest.raises(ValueError, match="continuation of row 1 has 9 tokens, of which 8 fit"):
        decode(model, params, decoding, max_new_tokens=9)
