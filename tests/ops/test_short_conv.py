import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.short_conv import short_conv

BATCH, LENGTH, CHANNELS = 2, 13, 5


def inputs(width: int, dtype: str = "float32", seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (BATCH, LENGTH, CHANNELS)).astype(dtype)
    kernel = jax.random.normal(keys[1], (width, CHANNELS))
    cache = jax.random.normal(keys[2], (BATCH, width - 1, CHANNELS)).astype(dtype)
    return x, kernel, cache


def by_loop(x, kernel, cache):
    width = kernel.shape[0]
    padded = np.concatenate([cache, x], axis=1, dtype=np.float64)
    y = np.zeros(x.shape)
    for t in range(x.shape[1]):
        for tap in range(width):
            y[:, t] += np.asarray(kernel[tap], np.float64) * padded[:, t + tap]
    return y


@pytest.mark.parametrize("width", [1, 2, 4])
def test_equals_the_sum_written_out(width):
    x, kernel, cache = inputs(width)
    y, tail = short_conv(x, kernel, cache=cache)
    np.testing.assert_allclose(y, by_loop(x, kernel, cache), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tail, x[:, LENGTH - width + 1 :])
    zero = np.zeros(cache.shape, np.float32)
    np.testing.assert_array_equal(
        short_conv(x, kernel)[0], short_conv(x, kernel, cache=jnp.asarray(zero))[0]
    )


def test_gradients_equal_those_of_the_library_convolution():
    x, kernel, _ = inputs(4)

    def library(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, None, :],
            (1,),
            [(3, 0)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=CHANNELS,
        )

    def gradients(function):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=(0, 1))(x, kernel)

    ours = gradients(lambda x, kernel: short_conv(x, kernel)[0])
    for mine, theirs in zip(ours, gradients(library), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [range(1, LENGTH), (1, 2), (5, 12)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_split_gives_the_same_bits(splits, dtype):
    x, kernel, cache = inputs(4, dtype)
    whole, last = short_conv(x, kernel, cache=cache)
    parts = []
    for part in jnp.split(x, jnp.array(splits), axis=1):
        y, cache = short_conv(part, kernel, cache=cache)
        parts.append(y)
    assert whole.dtype == cache.dtype == dtype
    np.testing.assert_array_equal(whole, jnp.concatenate(parts, axis=1))
    np.testing.assert_array_equal(last, cache)


def test_packed_documents_equal_documents_apart():
    x, kernel, cache = inputs(4)
    ends = [0, 2, 3, 9, LENGTH]
    segment_ids = jnp.repeat(jnp.arange(4), jnp.diff(jnp.array(ends)))[None].repeat(BATCH, 0)
    packed, tail = short_conv(x, kernel, cache=cache, segment_ids=segment_ids)
    for i in range(4):
        document = slice(ends[i], ends[i + 1])
        apart, own_tail = short_conv(x[:, document], kernel, cache=cache if i == 0 else None)
        np.testing.assert_array_equal(packed[:, document], apart)
    np.testing.assert_array_equal(tail, own_tail)

    short = segment_ids[:, :10]  # The last document has one token: the cache must forget the rest.
    _, tail = short_conv(x[:, :10], kernel, cache=cache, segment_ids=short)
    np.testing.assert_array_equal(tail[:, :2], np.zeros((BATCH, 2, CHANNELS)))
    np.testing.assert_array_equal(tail[:, 2], x[:, 9])


def test_later_inputs_change_no_bit():
    x, kernel, _ = inputs(4)
    changed = x.at[:, 7:].set(1e6)
    before, after = short_conv(x, kernel)[0], short_conv(changed, kernel)[0]
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert not np.array_equal(before[:, 7:], after[:, 7:])


def test_half_precision_is_summed_in_float32():
    x, kernel, _ = inputs(4, "bfloat16")
    y, _ = short_conv(x, kernel)
    exact, _ = short_conv(x.astype(jnp.float32), kernel)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": jnp.zeros((2, 3))}, "x has shape"),
        ({"kernel": jnp.zeros((4, 6))}, "kernel has shape"),
        ({"kernel": jnp.zeros((0, 5))}, "kernel has shape"),
        ({"cache": jnp.zeros((2, 4, 5))}, "cache has shape"),
        ({"segment_ids": jnp.zeros((2, 4), jnp.int32)}, "segment_ids has shape"),
    ],
)
def test_refuses_bad_shapes(change, words):
    x, kernel, _ = inputs(4)
    arguments = {"x": x, "kernel": kernel, **change}
    with pytest.raises(ValueError, match=words):
        short_conv(arguments.pop("x"), arguments.pop("kernel"), **arguments)
