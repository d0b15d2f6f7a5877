import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.attention import (
    AttentionCache,
    attention,
    document_positions,
    fused_reason,
    init_attention_cache,
    rope,
)

BATCH, LENGTH, HEADS, CHANNELS = 2, 14, 4, 8
THETA = 100.0
attend = jax.jit(attention, static_argnames=("window", "rope_theta"))


def inputs(kv_heads: int = HEADS, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = (HEADS, kv_heads, kv_heads)
    return tuple(
        jax.random.normal(k, (BATCH, LENGTH, n, CHANNELS)) for k, n in zip(keys, sizes, strict=True)
    )


def by_loop(query, key, value, window=None, segment_ids=None):
    """Softmax attention in float64, one query at a time."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    group = query.shape[2] // key.shape[2]
    output = np.zeros(query.shape)
    for b, t, h in np.ndindex(query.shape[:3]):
        seen = [
            s
            for s in range(t + 1)
            if (window is None or t - s < window)
            and (segment_ids is None or segment_ids[b, s] == segment_ids[b, t])
        ]
        scores = key[b, seen, h // group] @ query[b, t, h] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        output[b, t, h] = weights / weights.sum() @ value[b, seen, h // group]
    return output


def segments(*lengths):
    ids = np.repeat(np.arange(len(lengths)), lengths)
    return jnp.asarray(np.tile(ids, (BATCH, 1)), jnp.int32)


@pytest.mark.parametrize(("kv_heads", "window"), [(4, None), (2, 3), (1, 100)])
def test_equals_softmax_written_out(window, kv_heads):
    query, key, value = inputs(kv_heads)
    ids = segments(5, 1, 8)
    np.testing.assert_allclose(
        attend(query, key, value, window=window)[0],
        by_loop(query, key, value, window),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        attend(query, key, value, window=window, segment_ids=ids)[0],
        by_loop(query, key, value, window, np.asarray(ids)),
        atol=1e-6,
    )


def test_an_implementation_that_cannot_run_says_why():
    query, key, value = inputs()
    with pytest.raises(ValueError, match="implementation='flash'; choose from xla, cudnn, or None"):
        attention(query, key, value, implementation="flash")
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match=r"needs an NVIDIA GPU.*choose 'xla'"):
            attention(query, key, value, implementation="cudnn")
        assert fused_reason(query) is not None
    cache = init_attention_cache(BATCH, LENGTH, HEADS, CHANNELS)
    with pytest.raises(ValueError, match="takes no cache"):
        attention(query, key, value, cache=cache, implementation="cudnn")


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flash_attention_equals_float32_with_its_gradients(window, kv_heads, dtype):
    keys = jax.random.split(jax.random.key(3), 4)
    sizes = (4, kv_heads, kv_heads, 4)
    drawn = (jax.random.normal(k, (2, 256, n, 64)) for k, n in zip(keys, sizes, strict=True))
    arrays = [x.astype(dtype) for x in drawn]
    ids = jnp.asarray(np.tile(np.repeat([0, 1, 2], [100, 1, 155]), (2, 1)), jnp.int32)

    def run(implementation, segment_ids, *arrays):
        def output(*inputs):
            return attention(
                *inputs, window=window, segment_ids=segment_ids, implementation=implementation
            )[0]

        found, pull = jax.vjp(output, *arrays[:3])
        return found, *pull(arrays[3])

    for segment_ids in (None, ids):
        assert fused_reason(arrays[0]) is None
        got = jax.jit(run, static_argnums=0)("cudnn", segment_ids, *arrays)
        wide = [a.astype(jnp.float32) for a in arrays]
        expected = jax.jit(run, static_argnums=0)("xla", segment_ids, *wide)
        for one, other in zip(got, expected, strict=True):
            error = jnp.linalg.norm(one.astype(jnp.float32) - other) / jnp.linalg.norm(other)
            assert error < 1e-2


def test_rope_turns_by_position_and_keeps_the_norm():
    x = jax.random.normal(jax.random.key(1), (1, 6, 1, CHANNELS))
    positions = jnp.arange(6, dtype=jnp.int32)[None]
    turned = rope(x, positions, THETA)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-6
    )
    pair = np.asarray(x[0, 5, 0, 1]) + 1j * np.asarray(x[0, 5, 0, 5])
    expected = pair * np.exp(5j * THETA ** (-1 / 4))
    np.testing.assert_allclose(turned[0, 5, 0, 1], expected.real, rtol=1e-5)
    np.testing.assert_allclose(turned[0, 5, 0, 5], expected.imag, rtol=1e-5)
    shifted = rope(x, positions + 40, THETA)
    products = jnp.einsum("btac,bsac->bts", turned, turned)
    np.testing.assert_allclose(products, jnp.einsum("btac,bsac->bts", shifted, shifted), atol=1e-4)


def test_rope_refuses_an_odd_head():
    with pytest.raises(ValueError, match="make it even"):
        rope(jnp.zeros((1, 1, 1, 3)), jnp.zeros((1, 1), jnp.int32))


def test_positions_are_counted_from_the_start_of_each_document():
    ids = jnp.array([[3, 3, 4, 7, 7, 7]], jnp.int32)
    np.testing.assert_array_equal(document_positions(1, 6, segment_ids=ids), [[0, 1, 0, 0, 1, 2]])
    start = jnp.array([10], jnp.int32)
    np.testing.assert_array_equal(
        document_positions(1, 6, start=start, segment_ids=ids), [[10, 11, 0, 0, 1, 2]]
    )
    np.testing.assert_array_equal(document_positions(1, 3, start=start), [[10, 11, 12]])


def stream(arrays, cache, splits, ids=None, **options):
    parts = []
    for start, end in zip([0, *splits], [*splits, LENGTH], strict=True):
        part = [a[:, start:end] for a in arrays]
        own = None if ids is None else ids[:, start:end]
        output, cache = attend(*part, cache=cache, segment_ids=own, **options)
        parts.append(output)
    return jnp.concatenate(parts, axis=1), cache


@pytest.mark.parametrize("splits", [[*range(1, LENGTH)], [1, 9], []], ids=str)
@pytest.mark.parametrize("window", [None, 1, 4])
def test_any_split_gives_the_same(splits, window):
    arrays = inputs(kv_heads=2)
    options = {"window": window, "rope_theta": THETA}
    cache = init_attention_cache(BATCH, LENGTH, 2, CHANNELS, window=window)
    assert cache.key.shape[1] == (LENGTH if window is None else window)
    whole, nothing = attend(*arrays, **options)
    streamed, cache = stream(arrays, cache, splits, **options)
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    np.testing.assert_array_equal(cache.position, [LENGTH] * BATCH)
    assert nothing is None


@pytest.mark.parametrize("splits", [[*range(1, LENGTH)], [9]], ids=str)
@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_equal_documents_apart(splits, window):
    arrays = inputs()
    lengths = (4, 5, 5)
    ids = segments(*lengths)
    options = {"window": window, "rope_theta": THETA}
    apart = [
        attend(*(a[:, end - n : end] for a in arrays), **options)[0]
        for n, end in zip(lengths, np.cumsum(lengths), strict=True)
    ]
    apart = jnp.concatenate(apart, axis=1)
    packed, _ = attend(*arrays, segment_ids=ids, **options)
    np.testing.assert_allclose(packed, apart, atol=1e-6)

    # A cache goes on with the row's first document, so calls are cut where documents go on or
    # the cache starts anew.
    cache = init_attention_cache(BATCH, LENGTH, HEADS, CHANNELS, window=window)
    outputs = []
    for start, end in zip([0, *splits], [*splits, LENGTH], strict=True):
        if start and ids[0, start] != ids[0, start - 1]:
            cache = jax.tree.map(jnp.zeros_like, cache)
        part = [a[:, start:end] for a in arrays]
        output, cache = attend(*part, cache=cache, segment_ids=ids[:, start:end], **options)
        outputs.append(output)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), apart, atol=1e-6)
    np.testing.assert_array_equal(cache.position, [lengths[-1]] * BATCH)


def test_later_tokens_change_no_bit():
    query, key, value = inputs()
    before, _ = attend(query, key, value, rope_theta=THETA)
    after, _ = attend(query, key.at[:, 9:].set(30.0), value.at[:, 9:].set(1e6), rope_theta=THETA)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert not np.allclose(before[:, 9:], after[:, 9:])


def test_what_does_not_fit_the_cache_is_refused():
    arrays = inputs()
    cache = init_attention_cache(BATCH, 10, HEADS, CHANNELS)
    with pytest.raises(ValueError, match="14 tokens after 0 do not fit a cache of 10"):
        attention(*arrays, cache=cache)
    _, cache = attention(*(a[:, :8] for a in arrays), cache=cache)
    with pytest.raises(ValueError, match=r"3 tokens after 8 .* max_length.* at least 11"):
        attention(*(a[:, :3] for a in arrays), cache=cache)
    with pytest.raises(ValueError, match="14 tokens after 0"):
        jax.jit(lambda cache: attention(*arrays, cache=cache))(cache)
    windowed = init_attention_cache(BATCH, 10, HEADS, CHANNELS, window=4)
    attention(*arrays, cache=windowed, window=4)


def with_cache(**changes) -> AttentionCache:
    return init_attention_cache(
        **{"batch": BATCH, "max_length": LENGTH, "kv_heads": HEADS, "head_dim": CHANNELS, **changes}
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": jnp.zeros((2, 14, 8))}, ValueError, "query has shape"),
        ({"query": jnp.zeros((2, 0, 4, 8))}, ValueError, "T >= 1"),
        ({"value": jnp.zeros((2, 14, 2, 8))}, ValueError, "value has shape"),
        ({"query": jnp.zeros((2, 14, 6, 8))}, ValueError, "4 key heads do not divide 6"),
        ({"value": jnp.zeros((2, 14, 4, 8), jnp.bfloat16)}, TypeError, "value is bfloat16"),
        ({"window": 0}, ValueError, "window=0"),
        ({"segment_ids": jnp.zeros((2, 13), jnp.int32)}, ValueError, "segment_ids has shape"),
        ({"cache": with_cache(batch=3)}, ValueError, "cache.key has shape"),
        ({"cache": with_cache(dtype=jnp.bfloat16)}, TypeError, "cache is bfloat16"),
    ],
)
def test_refuses_bad_arguments(change, error, words):
    query, key, value = inputs()
    arguments = {"query": query, "key": key, "value": value, **change}
    with pytest.raises(error, match=words):
        attention(**arguments)


def test_refuses_an_empty_cache():
    with pytest.raises(ValueError, match="at least 1"):
        init_attention_cache(1, 0, 1, 2)
