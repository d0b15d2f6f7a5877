"""The kernels' self-test: what it finds, and its command."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.content_gate import CarveState
from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from pallas_kernels import device, selftest, verdicts
from pallas_kernels.backends import BACKENDS
from pallas_kernels.call import Request, Result
from pallas_kernels.reference import recurrence
from pallas_kernels.tiling import Tiles
from pallas_kernels.triton import stretches
from pallas_kernels.verdicts import Check, Verdict

TILES = Tiles(chunk=16, product="f32", inverse="f32")


class Stand:
    """A backend without kernels: right, or wrong in a way of its own."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.calls = 0

    def unsupported_reason(self, request: Request) -> str | None:
        return None

    def choose_tiles(self, request: Request) -> Tiles:
        return request.tiles or TILES

    def run(self, inputs: Any, memory: jax.Array, options: Any, content: Any = None) -> Result:
        self.calls += 1
        if self.wrong == "gradient":  # right numbers, and a gradient a tenth too large
            value = inputs.value.astype(jnp.float32)
            value += 0.1 * (value - jax.lax.stop_gradient(value))
            inputs = inputs._replace(value=value.astype(inputs.value.dtype))
        length = inputs.value.shape[1]
        if content is not None and length % content.stride:
            raise NotImplementedError("whole gate chunks alone")
        group = inputs.value.shape[2] // inputs.key.shape[2]
        keys = ("query", "key", "log_decay", "erase")
        wide = {n: jnp.repeat(getattr(inputs, n), group, axis=2) for n in keys}
        found = recurrence(inputs._replace(**wide), memory, options.scale, content)
        output = found.output.astype(inputs.query.dtype)
        if self.wrong == "output":  # one tile of one head
            output = output.at[:, 16:32, 0].multiply(1.5)
        if self.wrong == "infinite":
            output = output.at[0, -1].set(jnp.inf)
        return found._replace(output=output)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Any:
    """Puts a backend beside the others, and the verdicts into a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def put(wrong: str = "") -> Stand:
        made = Stand(wrong)
        monkeypatch.setitem(BACKENDS, "stand", made)
        return made

    return put


def check(rule: str = "gated_delta", dtype: str = "float32") -> Check:
    return Check(rule, "stand", dtype, 16, 16, None if rule == "decode" else TILES)


@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
def test_the_recurrence_is_that_of_carve_jax(rule: str) -> None:
    asked = check(rule)
    arrays = selftest.Arrays(**jax.tree.map(jnp.asarray, selftest.make_arrays(asked)))

    def theirs(asked: Check, arrays: selftest.Arrays) -> Result:
        if rule == "gated_delta":
            options = {"initial_state": arrays.memory, "implementation": "recurrent"}
            return Result(*gated_delta_rule(*arrays[:6], **options))
        state = CarveState(arrays.memory, arrays.content, arrays.partial_sum, jnp.zeros(1, int))
        output, state = carve_rule(
            *arrays[:6], arrays.down, arrays.up, initial_state=state,
            gate_chunk=selftest.GATE_CHUNK, implementation="recurrent",
        )  # fmt: skip
        return Result(output, state.memory)

    def ours(asked: Check, arrays: selftest.Arrays) -> Result:
        return selftest._by_recurrence(asked, arrays)._replace(sums=None)

    if rule == "carve":  # there the partial sum belongs to the middle of a chunk
        arrays = arrays._replace(partial_sum=jnp.zeros_like(arrays.partial_sum))
    found, expected = (jax.jit(lambda a, f=f: selftest._figures(asked, f, a))(arrays)
                       for f in (ours, theirs))  # fmt: skip
    for got, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        size = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * size + 1e-30)


@pytest.mark.parametrize("rule", ["gated_delta", "carve"])
def test_what_is_right_passes(stand: Any, rule: str) -> None:
    stand()
    verdict = selftest.run_check(check(rule))
    assert verdict.passed
    assert verdict.worst[1] < 1e-6
    gradients = {name for name in verdict.errors if name.startswith("gradient")}
    assert len(gradients) == (11 if rule == "carve" else 7)


@pytest.mark.parametrize(
    ("wrong", "named"), [("output", "output"), ("gradient", "gradient of value")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_wrong_is_named(stand: Any, wrong: str, named: str, dtype: str) -> None:
    stand(wrong)
    verdict = selftest.run_check(check(dtype=dtype))
    assert not verdict.passed
    assert verdict.errors[named] > verdict.tolerance
    assert verdict.worst[1] > 5e-2
    assert "of its largest entry where" in verdict.sentence()
    assert f"gated_delta stand {dtype} 16x16" in verdict.sentence()


def test_infinities_are_wrong(stand: Any) -> None:
    stand("infinite")
    verdict = selftest.run_check(check())
    assert verdict.worst == ("output", float("inf"))
    assert not verdict.passed
    assert "output is not finite" in verdict.sentence()


@pytest.mark.parametrize(
    ("rule", "per_head"),
    [
        pytest.param("gated_delta", False, marks=pytest.mark.slow),  # always: below, and tests/ops
        ("gated_delta", True),
        pytest.param("carve", False, marks=pytest.mark.slow),
        ("decode", False),
    ],
)
def test_the_kernels_pass_interpreted(rule: str, per_head: bool) -> None:
    backend = "pallas" if rule == "decode" else "triton"
    sizes = {"B": 1, "T": 1 if rule == "decode" else 64, "N": 1, "K": 16, "V": 9}
    request = Request("float32", sizes, content=rule == "carve", decay_per_head=per_head)
    asked = selftest.check_of("triton", request)
    assert asked.decay_per_head == per_head
    assert asked[:5] == (rule, backend, "float32", 16, 9 if rule == "decode" else 16)
    verdict = selftest.run_check(asked)
    assert verdict.passed, verdict.sentence()


def test_tolerance_is_that_of_the_coarsest_rounding() -> None:
    def allowed(dtype: str, product: str) -> float:
        tiles = dataclasses.replace(TILES, product=product)
        return selftest.tolerance(check(dtype=dtype)._replace(tiles=tiles))

    assert allowed("float32", "f32") == allowed("float32", "tf32x3") == 1e-4
    assert allowed("float32", "tf32") == allowed("float16", "tf32x3") == 1e-2
    assert allowed("bfloat16", "f32") == allowed("float32", "bf16") == 3e-2


def test_a_promised_floor_is_kept() -> None:
    free, bounded = (
        selftest.make_arrays(check()._replace(decay_floor=floor))["log_decay"]
        for floor in (None, -10.0)
    )
    assert free.min() == -1000
    assert bounded.min() == -10


def test_what_ships_is_checked_and_the_most_used_first() -> None:
    quick, every = selftest.shipped_checks(quick=True), selftest.shipped_checks()
    assert [c.rule for c in quick[:3]] == ["gated_delta", "carve", "decode"]
    assert {c.dtype for c in quick[:3]} == {"bfloat16"}
    assert set(quick) <= set(every)
    assert len(every) == len(set(every))
    kinds = {(c.dtype, max(c.key_channels, c.value_channels)) for c in every}
    assert kinds == {(d, w) for d in ("bfloat16", "float32", "float16") for w in (128, 256)} | {
        ("bfloat16", 64)
    }
    in_scan = [c for c in every if c.tiles is not None and c.tiles.solve == "walk"]
    assert any(c.rule == "gated_delta" for c in in_scan)
    assert any(c.decay_floor is not None for c in every)
    assert any(c.decay_per_head for c in every)


def table(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(selftest, "shipped_checks", lambda quick=False, backends=(): list(checks))


def test_the_command_when_all_agree(stand: Any, monkeypatch, capsys) -> None:
    stand()
    missing = Check("decode", "triton", "float32", 16, 16)
    table(monkeypatch, check(), missing)
    assert selftest.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "the kernels agree with the recurrence" in said
    assert "left out: backend 'triton' has no interpret mode" in said
    assert verdicts.read(check()).passed


def test_the_command_when_some_differ(stand: Any, monkeypatch, capsys) -> None:
    stand("gradient")
    table(monkeypatch, check())
    assert selftest.main([]) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said
    assert "the kernels are wrong on this machine: gradient of value is off by" in said
    assert "Triton before 3.7.1 and ptxas 12.8.93 and 13.0.88" in said
    assert not verdicts.read(check()).passed


def test_the_command_goes_on_after_what_does_not_run(stand: Any, monkeypatch, capsys) -> None:
    stand()

    def broken(asked: Check) -> Verdict:
        if asked.dtype == "float32":
            raise RuntimeError("ptxas exited with 255\nand a long log")
        return Verdict(asked, {"output": 0.0}, 1e-4, 0.1)

    monkeypatch.setattr(selftest, "run_check", broken)
    table(monkeypatch, check(), check(dtype="bfloat16"))
    assert selftest.main([]) == 1
    said = capsys.readouterr().out
    assert "did not run: RuntimeError: ptxas exited with 255" in said
    assert "and a long log" not in said
    assert "1 checks did not run, the first of them gated_delta stand float32" in said
    assert "bfloat16 16x16" in said


@pytest.mark.parametrize(("mode", "why"), [("gpu", "on cpu here"), ("compile", "not be there"),
                                           ("cuda", "allowed are gpu")])  # fmt: skip
def test_the_command_where_there_is_nothing_to_test(mode: str, why: str, monkeypatch, capsys):
    if jax.default_backend() == "gpu" and mode == "gpu":
        pytest.skip("there is a GPU")
    monkeypatch.setenv(device.SWITCH, mode)
    assert selftest.main([]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "CARVE_PALLAS=interpret" in said


def test_stretches_are_checked_where_maps_are_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four stretches have maps; leaving theirs out is found."""
    sizes = {"B": 1, "T": 4096, "N": 1, "K": 16, "V": 16}
    tiles = Tiles(chunk=64, product="tf32", inverse="tf32", stretches=0)
    asked = selftest.check_of("triton", Request("float32", sizes, tiles=tiles))
    assert "in stretches" in asked.label
    carve = selftest.check_of("triton", Request("float32", sizes, content=True, tiles=tiles))
    assert carve.tiles is not None
    assert carve.tiles.stretches == 1
    many = selftest.check_of("triton", Request("float32", sizes | {"N": 128}, tiles=tiles))
    assert many.tiles is not None
    assert many.tiles.stretches == 1  # as such a call takes none
    assert selftest.run_check(asked).passed
    monkeypatch.setattr(stretches, "_times", lambda states, carried: jnp.zeros_like(states))
    assert not selftest.run_check(asked).passed
