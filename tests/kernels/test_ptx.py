"""Inline PTX against its plain form, and both against NumPy.

No GPU is needed: `ptx_machine` runs the strings. What a compiler takes on trust (operand numbers,
which half of a register is which element, early clobbers) is what these tests are for.
"""

import functools
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import triton
from pallas_kernels.blocks import wy
from pallas_kernels.triton import ptx, ptx_gradients, ptx_scan
from tests.kernels import ptx_machine
from tests.kernels.ptx_machine import BF16

SHAPE = (4, 64)
SQUARE = (64, 64)
MODULES = (ptx, ptx_gradients, ptx_scan)


class Example(NamedTuple):
    """A call, and what it should give by NumPy in float64."""

    call: Callable[[], Any]
    expected: Sequence[np.ndarray]


def _normal(seed: int, dtype: Any = BF16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _exact(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def _distance() -> np.ndarray:
    """Base 2, from none to a hard reset."""
    found = -10.0 * np.random.default_rng(9).random(SHAPE).astype(np.float32)
    found[0, :4] = 0.0, -180.0, -1e4, -1e-6
    return found


def _upper() -> np.ndarray:
    """−1 or 0 in each row, as in the kernels: the columns of a register are alike."""
    rows = np.arange(SHAPE[0])[:, None] & 1
    return np.broadcast_to(-rows, SHAPE).astype(np.int32)


def _differing() -> np.ndarray:
    index = np.arange(SQUARE[0])
    return (index[:, None] ^ index[None, :]).astype(np.int32)


def _decayed_examples() -> Iterator[tuple[str, Example]]:
    x, y, z, d, up = _normal(0), _normal(1), _normal(2), _distance(), _upper()
    a, b, c, e = *map(_exact, (x, y, z)), np.exp2(_exact(d))
    yield "decayed", Example(lambda: ptx.decayed(x, d), [a * e])
    yield "decayed_pair", Example(lambda: ptx.decayed_pair(x, y, d), [a * e, b * e, e])
    chosen, other = np.where(up, a, b), np.where(up, c, b)
    yield (
        "decayed_choice",
        Example(lambda: ptx.decayed_choice(up, x, y, z, d), [chosen * e, c * e]),
    )
    yield (
        "decayed_choices",
        Example(lambda: ptx_gradients.decayed_choices(up, x, y, z, d), [chosen * e, other * e, e]),
    )
    yield "exp2", Example(lambda: ptx.exp2(d), [e])


def _elementwise_examples() -> Iterator[tuple[str, Example]]:
    x, y, z = _normal(0), _normal(1), _normal(2)
    f, g, h = (_normal(seed, np.float32) for seed in (3, 4, 5))
    u, v, up = _normal(6, np.float32), _normal(7, np.float32), _upper()
    yield "fence", Example(lambda: ptx.fence(x), [_exact(x)])
    yield "fence", Example(lambda: ptx.fence(f), [_exact(f)])
    yield "fence", Example(lambda: ptx.fence(up), [_exact(up)])
    yield "laid_out_as", Example(lambda: ptx_gradients.laid_out_as(x, f), [_exact(x)])
    yield "times", Example(lambda: ptx.times(x, y), [_exact(x) * _exact(y)])
    yield (
        "multiply_add",
        Example(lambda: ptx_gradients.multiply_add(x, f, g), [_exact(x) * _exact(f) + _exact(g)]),
    )
    yield (
        "multiply_add",
        Example(lambda: ptx_gradients.multiply_add(h, f, g), [_exact(h) * _exact(f) + _exact(g)]),
    )
    added = _exact(u) * _exact(v)
    yield (
        "accumulate",
        Example(
            lambda: ptx_gradients.accumulate(f, g, u, v, up),
            [_exact(f) + np.where(up, added, 0), _exact(g) + np.where(up, 0, added)],
        ),
    )
    total = _exact(x) * _exact(f) + _exact(y) * _exact(g) - _exact(z) * _exact(h)
    yield (
        "decay_gradient",
        Example(lambda: _sum(ptx_gradients.decay_gradient(x, y, z, (f, g, h), 2)), [total]),
    )
    product = _exact(x) * _exact(f)
    yield (
        "halved_product",
        Example(lambda: _sum(ptx_gradients.halved_product(x, f, 2)), [product]),
    )
    decay = -np.abs(f)
    decay[0, :4] = 0.0, -1000.0, -1e-30, -2e38
    logarithm = np.maximum(_exact(decay) / np.log(2.0), ptx.LOWEST)
    yield "split", Example(lambda: _sum(ptx.split(decay, 2)), [logarithm])
    yield "halves", Example(lambda: _sum(ptx.halves(f)), [_exact(f)])


def _square_examples() -> Iterator[tuple[str, Example]]:
    x, y = _normal(0, shape=SQUARE), _normal(1, shape=SQUARE)
    f, g, h = (_normal(seed, np.float32, SQUARE) for seed in (3, 4, 5))
    ordered = np.asarray(wy.order(SQUARE[0]))
    a, b = _exact(x), _exact(y)
    below = np.tril(np.ones(SQUARE, bool), -1)
    for level in (1, 3, 5):
        inside = (_differing() >> level == 1) & below
        expected = [np.where(inside, -a, 0)]
        yield (
            "level_negated",
            Example(lambda level=level: ptx.level_negated(x, ordered, level), expected),
        )
        # Only on and below the diagonal; above it pairs at the diagonal are the caller's matter.
        within = _differing() < 2 << level
        yield (
            "merge",
            Example(
                lambda level=level: jnp.tril(ptx.merge(x, f, ordered, 2 << level)),
                [np.tril(np.where(within, f.astype(BF16), x).astype(np.float64))],
            ),
        )
        yield (
            "merge_both",
            Example(
                lambda level=level: [
                    jnp.tril(part) for part in ptx.merge_both(x, f, g, h, ordered, 2 << level)
                ],
                [
                    np.tril(np.where(within, g.astype(BF16), x).astype(np.float64)),
                    np.tril(np.where(within, h, f).astype(np.float64)),
                ],
            ),
        )
    lowest, above = ordered < 2, _differing() == 1
    scores = np.where(ordered == 1, g, np.where(ordered == 0, h, 0)).astype(BF16)
    upper = above & (ordered == wy.ABOVE)
    yield (
        "merge_lowest",
        Example(
            lambda: ptx.merge_lowest(x, f, g, h, f, ordered),
            [
                np.where(lowest | upper, scores, x).astype(np.float64),
                np.where(lowest | upper, np.where(ordered == 1, f, 0), f).astype(np.float64),
            ],
        ),
    )
    off_diagonal = ~np.eye(SQUARE[0], dtype=bool)
    x, y = np.where(off_diagonal, x, BF16.type(0)), np.where(off_diagonal, y, BF16.type(0))
    for level in (0, 1, 5):
        inside = _differing() >> level == 1
        yield (
            "on_level",
            Example(
                lambda level=level, x=x, y=y: ptx_gradients.on_level(
                    x, y, _differing() | 1, jnp.int32(level)
                ),
                [np.where(inside, a, 0), np.where(inside, b, 0)],
            ),
        )


def _scan_examples() -> Iterator[tuple[str, Example]]:
    x, f, row = _normal(0), _normal(3, np.float32), _normal(4, np.float32)[0]
    a, bf16 = _exact(x), jnp.dtype(jnp.bfloat16)
    nearest = _exact(f.astype(BF16))
    yield "minus", Example(lambda: ptx_scan.minus(x), [-a])
    yield "minus_rounded", Example(lambda: ptx_scan.minus_rounded(f, bf16), [-nearest])
    yield "rounded", Example(lambda: ptx_scan.rounded(f), [nearest, nearest])
    yield "add_times", Example(lambda: ptx_scan.add_times(f, x, f), [_exact(f) + a * f])
    total = a + _exact(row)
    yield "raised", Example(lambda: ptx_scan.raised(x, row, 0.125, bf16), [total, 0.125 * total])
    logits = 4 * x
    logits[0, :4] = -200.0, 200.0, 0.0, -50.0
    sigma = 1 / (1 + np.exp(-_exact(logits) - _exact(row)))
    for scale in (1.0, 2.0):
        call = functools.partial(ptx_scan.minus_gate, logits, row, scale)
        yield "minus_gate", Example(call, [-scale * sigma])


def _transposed_examples() -> Iterator[tuple[str, Example]]:
    """Examples of squares held transposed."""
    bf16, ordered = jnp.dtype(jnp.bfloat16), np.asarray(wy.order(SQUARE[0])).T.copy()
    x, f = _normal(0, shape=SQUARE), np.triu(_normal(3, np.float32, SQUARE))
    minus = np.where(ordered == 0, -1.0, _exact(f))
    lowest = np.where(ordered == 0, 1.0, np.where(ordered == 1, f, 0.0))
    call = functools.partial(ptx_scan.begin_inverse, f, ordered, bf16)
    yield "begin_inverse", Example(lambda: [_sum(call()[:2]), call()[2]], [minus, lowest])
    for low in (1, 2, 32):
        expected = [np.where((ordered >= low) & (ordered < 2 * low), _exact(x), 0)]
        counted = functools.partial(ptx_scan.counted_level, x, ordered, jnp.int32(low))
        yield "counted_level", Example(counted, expected)
        if low > 1:
            yield "level", Example(functools.partial(ptx_scan.level, x, ordered, low), expected)
    for bound in (2, 8, 64):
        expected = [np.where((ordered > 0) & (ordered < bound), _exact(x), 0)]
        yield "below", Example(functools.partial(ptx_scan.below, x, ordered, bound), expected)


def _sum(parts: Sequence[Any]) -> Any:
    first, second = (part.astype(jnp.float32) for part in parts)
    return first + second


EXAMPLES = [*_decayed_examples(), *_elementwise_examples(), *_square_examples()]
EXAMPLES += [*_scan_examples(), *_transposed_examples()]
NAMES = [name for name, _ in EXAMPLES]


def _list(found: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in (found if isinstance(found, (tuple, list)) else [found])]


def _by_machine(*args: Any, asm: str, constraints: str, pack: int, dtypes: Any) -> list[Any]:
    arrays = [np.asarray(arg) for arg in args]
    return [jnp.asarray(x) for x in ptx_machine.run(asm, constraints, pack, arrays, dtypes)]


def _assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Within two roundings; sums of two bfloat16 parts hold 16 bits."""
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        bits = 7 if got.dtype == BF16 else 15
        np.testing.assert_allclose(_exact(got), want, rtol=2.0**-bits, atol=2.0**-18)


@pytest.mark.parametrize("example", [e for _, e in EXAMPLES], ids=NAMES)
def test_plain_form_against_numpy(example: Example) -> None:
    _assert_close(_list(example.call()), example.expected)


@pytest.mark.parametrize("example", [e for _, e in EXAMPLES if _ != "halves"], ids=lambda _: "")
def test_ptx_against_numpy_and_its_plain_form(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_results = _list(example.call())
    calls = []

    def machine(asm, constraints, pack, args, dtypes, plain):
        calls.append(asm)
        found = _by_machine(*args, asm=asm, constraints=constraints, pack=pack, dtypes=dtypes)
        for got, want in zip(found, plain(*args), strict=True):
            # To the bit, but where a product and a sum are contracted or a power's last differs.
            got, want = np.asarray(got), np.asarray(want)
            assert got.dtype == want.dtype
            bits = 7 if got.dtype == BF16 else 20
            np.testing.assert_allclose(_exact(got), _exact(want), rtol=2.0**-bits, atol=2.0**-16)
            if got.dtype == BF16:
                assert np.mean(got != want) < 0.02
        return found

    monkeypatch.setattr(ptx, "_ptx", machine)
    found = _list(example.call())
    assert calls, "no PTX ran"
    _assert_close(found, example.expected)
    assert [x.dtype for x in found] == [x.dtype for x in plain_results]


def test_every_operation_has_an_example() -> None:
    operations = {
        name
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert operations == set(NAMES)
    found = {name for _, name, _ in pkgutil.iter_modules(triton.__path__) if "ptx" in name}
    assert found == {module.__name__.rpartition(".")[2] for module in MODULES}


@pytest.mark.parametrize(
    ("asm", "constraints", "message"),
    [
        ("{ mov.b32 $0, $2; mov.b32 $1, $2; }", "=r,=r,r", "needs =&"),
        ("{ add.f32 $0, $1, $3; }", "=f,f,f", r"\$3 is read before it is written"),
        ("{ mov.b32 $0, s; }", "=r,r", "s is read before it is written"),
        ("{ mov.b32 s, $1; mov.b32 $0, s; }", "=r,r", "s is no result"),
        ("{ .reg .b32 s; sqrt.rn.f32 s, $1; mov.b32 $0, s; }", "=f,f", "unknown instruction"),
        ("{ mov.b32 $1, $0; mov.b32 $0, $1; }", "=r,r", r"\$1 is no result"),
        ("{ .reg .pred p; @p mov.b32 $0, $1; }", "=r,r", "predicate p is read"),
        ("mov.b32 $0, $1;", "=r,f", "constraints =r,f for"),
        ("{ add.f32 $0, $1, $2; }", "=f,0,f", r"\$1 is read before it is written"),
    ],
)
def test_the_machine_refuses_what_a_compiler_would_not(
    asm: str, constraints: str, message: str
) -> None:
    letters = constraints.split(",")
    count = sum(letter.startswith("=") for letter in letters)
    kinds = {"r": np.int32, "f": np.float32}
    args = [np.ones(4, kinds[letter]) for letter in letters[count:] if letter in kinds]
    args = [np.ones(4, np.float32)] * letters.count("0") + args
    dtypes = [np.dtype(kinds[letter[-1]]) for letter in letters[:count]]
    if "constraints" in message:
        args = [np.ones(4, np.int32)]
    with pytest.raises(ValueError, match=message):
        ptx_machine.run(asm, constraints, 1, args, dtypes)


def test_a_tied_argument_starts_in_the_register_of_its_result() -> None:
    x, y = np.asarray([1.0, 2.0], np.float32), np.asarray([3.0, 5.0], np.float32)
    asm = "{ .reg .pred p; setp.eq.s32 p, $2, 0x40400000; @p add.f32 $0, $0, $2; }"
    (found,) = ptx_machine.run(asm, "=&f,0,f", 1, [x, y], [np.dtype(np.float32)])
    np.testing.assert_array_equal(found, np.asarray([4.0, 2.0], np.float32))


def test_the_machine_packs_the_first_element_low() -> None:
    x = np.asarray([1.0, 2.0, 3.0, 4.0], BF16)
    (low,) = ptx_machine.run("shl.b32 $0, $1, 16;", "=r,r", 2, [x], [BF16])
    np.testing.assert_array_equal(low, np.asarray([0.0, 1.0, 0.0, 3.0], BF16))
    f = np.asarray([1.0, 2.0], np.float32)
    (packed,) = ptx_machine.run("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", 2, [f], [BF16])
    np.testing.assert_array_equal(packed, f.astype(BF16))


@pytest.mark.parametrize(
    ("asm", "expected"),
    [
        ("lop3.b32 $0, $1, $2, $3, 0xCA;", 0b11001010),  # a ? b : c
        ("lop3.b32 $0, $1, $2, $3, 0x30;", 0b00110000),  # a and not b
        ("prmt.b32 $0, $1, $2, 0x5410;", 0xAAAAF0),
    ],
)
def test_bitwise_instructions(asm: str, expected: int) -> None:
    args = [np.asarray([value], np.int32) for value in (0xF0, 0xCC, 0xAA)]
    if asm.startswith("prmt"):
        args = [np.asarray([value], np.int32) for value in (0xF0, 0xAA)]
        expected = 0x00AA00F0
    letters = ",".join(["=r", *"r" * len(args)])
    (found,) = ptx_machine.run(asm, letters, 1, args, [np.dtype(np.int32)])
    assert int(found[0]) == expected
