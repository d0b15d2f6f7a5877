"""Implementations by name: who is asked, in which order, and what is said when none runs."""

import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule, registry
from carve_jax.ops.gated_delta.implementation import Call, Implementation
from pallas_kernels.backends import BACKENDS, CHOSEN
from pallas_kernels.call import Request
from pallas_kernels.tiling import Tiles
from tests.ops.cases import CASES, Arrays, make_arrays
from tests.ops.test_gated_delta import apply_rule

REQUEST = Request("float32", {"B": 1, "T": 64, "N": 1, "K": 16, "V": 16})


class Says(Implementation):
    """An implementation of nothing but answers."""

    def __init__(self, unsupported=None, unchosen=None, distrusted=None) -> None:
        self.answers = {"unsupported": unsupported, "unchosen": unchosen, "distrusted": distrusted}
        self.asked: list[str] = []

    def _answer(self, question: str) -> str | None:
        self.asked.append(question)
        return self.answers[question]

    def unsupported_reason(self, request: Request) -> str | None:
        return self._answer("unsupported")

    def unchosen_reason(self, request: Request) -> str | None:
        return self._answer("unchosen")

    def distrusted_reason(self, request: Request) -> str | None:
        return self._answer("distrusted")

    def run(self, call: Call):
        return call.inputs.value * 2, call.state


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch):
    """Puts implementations in the place of the kernels."""

    def put(**made: Says) -> None:
        monkeypatch.setattr(registry, "CHOSEN", tuple(made))
        monkeypatch.setattr(registry, "REGISTRY", {**registry.REGISTRY, **made})
        monkeypatch.setattr(registry, "BEST_FIRST", (*made, "chunked", "recurrent"))
        names = ("recurrent", "chunked", "pallas", *made)
        monkeypatch.setattr(registry, "IMPLEMENTATIONS", names)
        registry._warn_once.cache_clear()

    return put


def test_every_backend_has_a_name() -> None:
    assert set(BACKENDS) | {"recurrent", "chunked"} == set(registry.REGISTRY)
    assert set(BACKENDS) >= set(CHOSEN)
    assert set(registry.BEST_FIRST) == {*CHOSEN, "recurrent", "chunked"}
    assert registry.IMPLEMENTATIONS == ("recurrent", "chunked", "pallas", "triton", "mosaic")
    assert registry.BEST_FIRST[-1] == "recurrent"  # which takes everything


def test_pallas_is_the_first_that_runs(kernels) -> None:
    kernels(first=Says(unsupported="it is for another GPU"), second=Says(), third=Says())
    assert registry.choose("pallas", REQUEST) == "second"
    assert registry.choose(None, REQUEST) == "second"
    assert registry.choose("third", REQUEST) == "third"


def test_every_reason_is_said(kernels) -> None:
    kernels(first=Says(unsupported="it is for another GPU"), second=Says(distrusted="it is wrong"))
    with pytest.raises(NotImplementedError) as caught:
        registry.choose("pallas", REQUEST)
    assert str(caught.value) == (
        "implementation 'pallas': 'first': it is for another GPU; 'second': it is wrong; use "
        "'chunked' or None"
    )
    with pytest.raises(NotImplementedError, match="'first': it is for another GPU; use 'chunked'"):
        registry.choose("first", REQUEST)


def test_a_reason_that_all_share_is_said_once(kernels) -> None:
    kernels(first=Says(unsupported="there is no GPU"), second=Says(unsupported="there is no GPU"))
    with pytest.raises(
        NotImplementedError, match=r"^implementation 'pallas': there is no GPU; use"
    ):
        registry.choose("pallas", REQUEST)


def test_what_is_not_chosen_runs_where_it_is_named(kernels) -> None:
    kernels(shy=Says(unchosen="it is for tests"))
    assert registry.choose("shy", REQUEST) == "shy"
    assert registry.choose(None, REQUEST) == "chunked"


def test_trust_is_asked_for_last(kernels) -> None:
    refused, shy = Says(unsupported="no GPU"), Says(unchosen="it is for tests")
    kernels(refused=refused, shy=shy)
    registry.choose(None, REQUEST)
    assert refused.asked == ["unsupported"]
    assert shy.asked == ["unsupported", "unchosen"]


def test_what_is_distrusted_is_passed_over_with_one_warning(kernels) -> None:
    kernels(broken=Says(distrusted="it is wrong"))
    with pytest.warns(RuntimeWarning, match="'broken' is passed over: it is wrong") as seen:
        chosen = [registry.choose(None, REQUEST) for _ in range(2)]
    assert chosen == ["chunked", "chunked"]
    assert len(seen) == 1


def test_the_rules_run_what_is_registered(kernels) -> None:
    kernels(double=Says())
    arrays = Arrays(*map(jnp.float32, make_arrays(CASES["plain"])))
    for rule in ("gated_delta", "carve"):
        output = apply_rule(rule, CASES["plain"], arrays, "double")[0]
        np.testing.assert_array_equal(output, 2 * arrays.value)


def test_one_token_and_float64_are_recurrent() -> None:
    one = REQUEST._replace(sizes={**REQUEST.sizes, "T": 1})
    assert registry.choose(None, one) == "recurrent"
    assert registry.choose("chunked", one) == "chunked"
    assert registry.choose(None, REQUEST._replace(dtype="float64")) == "recurrent"


@pytest.mark.parametrize("implementation", ["recurrent", "chunked"])
def test_options_of_others_are_ignored(implementation: str) -> None:
    arrays = Arrays(*map(jnp.float32, make_arrays(CASES["plain"])))
    options = {"tiles": Tiles(chunk=16), "log_decay_floor": -10.0}
    options |= {"chunk_size": 16} if implementation == "recurrent" else {}
    expected, got = (
        gated_delta_rule(*arrays[:6], implementation=implementation, **some)
        for some in ({}, options)
    )
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_array_equal(e, g)


def test_pallas_and_its_backend_are_one() -> None:
    case = CASES["odd sizes"]._replace(length=20)
    arrays = Arrays(*map(jnp.float32, make_arrays(case)))
    expected, got = (apply_rule("gated_delta", case, arrays, n) for n in ("pallas", "triton"))
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_array_equal(e, g)
