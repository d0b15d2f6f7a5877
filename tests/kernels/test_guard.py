"""The guard before a GPU's first use of kernels, on a CPU with backends that stand for kernels."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule, registry, resolve_implementation
from carve_jax.ops.gated_delta.kernels import Kernels
from pallas_kernels import guard, selftest, verdicts
from pallas_kernels.call import Request
from pallas_kernels.verdicts import Check, Verdict
from tests.kernels.test_selftest import TILES, Stand, stand  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"B": 1, "T": 64, "N": 2, "K": 16, "V": 16}
ASKED = Check("gated_delta", "stand", "float32", 16, 16, TILES)


@pytest.fixture
def used(stand: Any, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    """A backend that None prefers and "pallas" means, guarded as on a GPU; and how often the
    self-test ran."""
    monkeypatch.setenv(guard.SWITCH, "on")
    monkeypatch.setattr(guard, "_on_gpu", lambda: True)
    monkeypatch.setattr(guard, "_reasons", {})
    monkeypatch.setattr(Kernels, "unchosen_reason", lambda self, request: None)
    registry._warn_once.cache_clear()
    runs: list[Check] = []
    run_check = selftest.run_check

    def counted(check: Check) -> Verdict:
        runs.append(check)
        return run_check(check)

    monkeypatch.setattr(selftest, "run_check", counted)

    def put(wrong: str = "") -> tuple[Stand, list[Check]]:
        made = stand(wrong)
        monkeypatch.setattr(registry, "CHOSEN", ("stand",))
        monkeypatch.setitem(registry.REGISTRY, "stand", Kernels("stand"))
        monkeypatch.setattr(registry, "BEST_FIRST", ("stand", "chunked", "recurrent"))
        names = (*registry.IMPLEMENTATIONS, "stand")
        monkeypatch.setattr(registry, "IMPLEMENTATIONS", names)
        return made, runs

    return put


def arrays(length: int = 64) -> list[jax.Array]:
    key = jax.random.key(0)
    wide = [jax.random.normal(key, (1, length, 2, 16)) for _ in range(3)]
    return [*wide, -jnp.abs(wide[0]), jax.nn.sigmoid(wide[1]), jnp.ones((1, length, 2, 1))]


def rule(*x: jax.Array, implementation: str | None = "stand") -> jax.Array:
    return gated_delta_rule(*x, implementation=implementation)[0]


def test_one_check_a_kind_and_none_the_second_time(used: Any) -> None:
    _, runs = used()
    for _ in range(3):
        rule(*arrays())
    assert runs == [ASKED]
    rule(*(x.astype("bfloat16") for x in arrays()))
    assert [check.dtype for check in runs] == ["float32", "bfloat16"]


def test_a_verdict_is_kept_for_later_processes(used: Any, monkeypatch) -> None:
    _, runs = used()
    rule(*arrays())
    monkeypatch.setattr(guard, "_reasons", {})  # as in a new process
    rule(*arrays())
    assert runs == [ASKED]
    monkeypatch.setattr(guard, "_reasons", {})
    monkeypatch.setattr(verdicts, "sources_digest", lambda: "other kernels")
    rule(*arrays())
    assert runs == [ASKED, ASKED]


DAMAGES = ["", "{", "[]", "null", '{"facts": 1}', "\0\0", "empty errors"]
BY_DAY = ("{", '{"facts": 1}', "empty errors")  # no JSON, another, and one that lacks something


@pytest.mark.parametrize(
    "damage",
    [pytest.param(d, marks=() if d in BY_DAY else pytest.mark.slow) for d in DAMAGES],
)
def test_a_damaged_verdict_is_replaced(used: Any, monkeypatch, damage: str) -> None:
    _, runs = used()
    rule(*arrays())
    [path] = verdicts.folder().iterdir()
    whole = path.read_text()
    if damage == "empty errors":
        damage = json.dumps(json.loads(whole) | {"errors": {}})
    path.write_text(damage)
    monkeypatch.setattr(guard, "_reasons", {})
    rule(*arrays())
    assert runs == [ASKED, ASKED]
    assert json.loads(path.read_text()).keys() == json.loads(whole).keys()
    assert [p.name for p in verdicts.folder().iterdir()] == [path.name]


def test_wrong_kernels_are_refused_by_name(used: Any) -> None:
    used("gradient")
    for name in ("stand", "pallas"):
        with pytest.raises(NotImplementedError) as caught:
            rule(*arrays(), implementation=name)
        said = str(caught.value)
        assert said.startswith(f"implementation '{name}': its kernels failed their self-test")
        for part in ("gradient of value is off by", "Triton before 3.7.1", "CARVE_SELFTEST=off",
                     "python -m pallas_kernels.selftest", "use 'chunked' or None"):  # fmt: skip
            assert part in said


def test_none_takes_chunked_and_warns_once(used: Any) -> None:
    made, _ = used("output")
    with pytest.warns(RuntimeWarning, match="'stand' is passed over: its kernels failed") as seen:
        found = rule(*arrays(), implementation=None)
    assert len(seen) == 1
    tested = made.calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_implementation(None, sizes=SIZES) == "chunked"
        again = rule(*arrays(), implementation=None)
    assert made.calls == tested
    assert (found == again).all()


def test_right_kernels_are_chosen(used: Any) -> None:
    used()
    assert resolve_implementation(None, sizes=SIZES) == "stand"
    assert resolve_implementation("pallas", sizes=SIZES) == "stand"


def jitted() -> Any:
    """The rule under a `jit` that no other test has traced."""
    return jax.jit(lambda *x: rule(*x))


def under_jit() -> jax.Array:
    return jitted()(*arrays())


def under_grad_of_jit() -> jax.Array:
    return jax.grad(lambda x: jitted()(x, *arrays()[1:]).sum())(arrays()[0])


def under_vmap() -> jax.Array:
    return jax.vmap(lambda s: rule(arrays()[0] * s, *arrays()[1:]))(jnp.arange(2.0))


def under_a_mesh() -> jax.Array:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec()
        return jax.jit(
            jax.shard_map(lambda *x: rule(*x), in_specs=spec, out_specs=spec, check_vma=False)
        )(*arrays())


def under_float64() -> jax.Array:
    with jax.enable_x64(True):
        return jitted()(*(x.astype(jnp.float32) for x in arrays()))


def under_a_lowering() -> Any:
    return jitted().lower(*arrays())


@pytest.mark.parametrize(
    "traced",
    [under_jit, under_grad_of_jit, under_vmap, under_a_mesh, under_float64, under_a_lowering],
)
@pytest.mark.parametrize("wrong", ["", pytest.param("gradient", marks=pytest.mark.slow)])
def test_first_called_inside_a_trace(used: Any, traced: Any, wrong: str) -> None:
    _, runs = used(wrong)
    if wrong:
        with pytest.raises(NotImplementedError, match="gradient of value is off"):
            traced()
    else:
        traced()
    assert runs == [ASKED]


def test_what_does_not_run_is_refused_and_not_kept(used: Any, monkeypatch) -> None:
    used()

    def broken(check: Check) -> Verdict:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(selftest, "run_check", broken)
    with pytest.raises(NotImplementedError, match=r"did not run \(RuntimeError: out of memory\)"):
        rule(*arrays())
    assert not verdicts.folder().exists()


def test_the_switch(used: Any, monkeypatch) -> None:
    _, runs = used("output")
    monkeypatch.setenv(guard.SWITCH, "off")
    rule(*arrays())
    assert runs == []
    monkeypatch.setenv(guard.SWITCH, "no")
    with pytest.raises(ValueError, match="CARVE_SELFTEST='no'; allowed are on, off"):
        rule(*arrays())


def test_nothing_is_tested_off_a_gpu(stand: Any, monkeypatch) -> None:  # noqa: F811
    stand("output")
    monkeypatch.setenv(guard.SWITCH, "on")
    for mode in ("interpret", "compile"):
        monkeypatch.setenv("CARVE_PALLAS", mode)
        assert guard.distrusted_reason("stand", Request("float32", SIZES)) is None
    monkeypatch.setattr(guard, "_on_gpu", lambda: True)
    assert guard.distrusted_reason("stand", Request("float32")) is None


def test_a_folder_that_cannot_be_written_keeps_nothing(used: Any, monkeypatch, tmp_path) -> None:
    _, runs = used()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    rule(*arrays())
    assert runs == [ASKED]


def test_a_verdict_is_written_whole_or_not_at_all(stand: Any, monkeypatch) -> None:  # noqa: F811
    stand()
    verdict = Verdict(ASKED, {"output": float("inf")}, 1e-4, 0.5)

    def interrupted(*paths: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        verdicts.write(verdict)
    assert list(verdicts.folder().iterdir()) == []
    verdicts.write(verdict)
    assert verdicts.read(ASKED) == verdict
    other = ASKED._replace(tiles=None)
    assert verdicts.read(other) is None


def test_what_one_process_found_another_reads(
    stand: Any,  # noqa: F811
    monkeypatch,
    tmp_path,
) -> None:
    monkeypatch.setattr(verdicts, "sources_digest", lambda: "as of the test")
    program = (
        "from pallas_kernels import verdicts\n"
        "from pallas_kernels.verdicts import *\n"
        "verdicts.sources_digest = lambda: 'as of the test'\n"
        "tiles = Tiles(chunk=16, product='f32', inverse='f32')\n"
        "check = Check('gated_delta', 'stand', 'float32', 16, 16, tiles)\n"
        "write(Verdict(check, {'output': 0.25}, 1e-4, 0.5))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)
        for _ in range(2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    stand()
    assert verdicts.read(ASKED) == Verdict(ASKED, {"output": 0.25}, 1e-4, 0.5)


@pytest.mark.parametrize(
    ("value", "expected"), [("/somewhere", Path("/somewhere")), ("", None), ("relative", None)]
)
def test_where_verdicts_are_kept(monkeypatch, value: str, expected: Path | None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    expected = Path.home() / ".cache" if expected is None else expected
    assert verdicts.folder() == expected / "carve_jax" / "selftest"


def test_facts_name_what_compiles() -> None:
    known = verdicts.facts(ASKED)
    assert known["jax"] == jax.__version__
    assert known["jaxlib"]
    assert "jaxtyping" not in known
    assert known["device"] == jax.local_devices()[0].device_kind
    assert {"flags", "driver", "ptxas", "platform", "sources", "check"} <= known.keys()
    assert all(isinstance(fact, str) for fact in known.values())
