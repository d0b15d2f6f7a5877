"""What the rules refuse, and that the sentence says what was given and what is allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import (
    CarveState,
    carve_rule,
    gated_delta_rule,
    resolve_implementation,
)
from tests.ops.cases import Case, make_arrays

CASE = Case(2, 40, 2, 4)


def inputs(**changes) -> dict:
    arrays = {k: jnp.asarray(v, jnp.float32) for k, v in make_arrays(CASE)._asdict().items()}
    names = ("query", "key", "value", "log_decay", "erase_logits", "write")
    chosen = {name: arrays[name] for name in (*names, "content_down", "content_up")}
    for name, change in changes.items():
        chosen[name] = change(chosen[name])
    return chosen


def carve(**changes):
    return carve_rule(**inputs(**changes), gate_chunk=16)


def plain(options=None, **changes):
    chosen = inputs(**changes)
    erase = chosen.pop("erase_logits")
    del chosen["content_down"], chosen["content_up"]
    return gated_delta_rule(**chosen, erase=jax.nn.sigmoid(erase), **(options or {}))


SHAPES = {
    "query": (lambda x: x[0], r"query has shape \(40, 2, 16\), of rank 3; expected rank 4, \[B, T"),
    "key": (
        lambda x: x[:, :-1],
        r"key has shape \(2, 39, 2, 16\); expected \[B=2, T=40, H=2, K=16\]",
    ),
    "value": (lambda x: x[:1], r"value has shape \(1, 40, 4, 8\); expected \[B=2, T=40, N, V\]"),
    "log_decay": (lambda x: x[..., :5], r"log_decay has shape .*5\); expected .*K=16 or 1\]"),
    "erase_logits": (lambda x: x[:, :, :1], r"erase_logits has shape .*expected .*H=2, K=16\]"),
    "write": (
        lambda x: x[:, :, :2],
        r"write has shape \(2, 40, 2, 1\); expected .*N=4, V=8 or 1\]",
    ),
    "content_down": (lambda x: x[1:], r"content_down has shape .*expected \[N=4, V=8, R\]"),
    "content_up": (lambda x: x[:, 1:], r"content_up has shape .*expected \[N=4, R=3, K=16\]"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shapes(name: str) -> None:
    change, message = SHAPES[name]
    with pytest.raises(ValueError, match=message):
        carve(**{name: change})


@pytest.mark.parametrize("name", SHAPES)
def test_mixed_dtypes(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name if name != 'query' else 'key'} has dtype"):
        carve(**{name: lambda x: x.astype(jnp.bfloat16)})


def test_integers_are_no_inputs() -> None:
    with pytest.raises(TypeError, match="value has dtype int32; allowed are bfloat16"):
        carve(value=lambda x: x.astype(jnp.int32))


def test_key_heads_must_divide_value_heads() -> None:
    with pytest.raises(ValueError, match="value has 3 heads and query/key have 2"):
        plain(value=lambda x: x[:, :, :3], write=lambda x: x[:, :, :3])


@pytest.mark.parametrize("bad", [0.25, np.nan])
def test_growth_is_refused_where_it_is_seen(bad: float) -> None:
    with pytest.raises(ValueError, match=r"log_decay has an entry of .*at most 0"):
        plain(log_decay=lambda x: x.at[0, 3, 0, 0].set(bad))


def test_empty_sequence() -> None:
    cut = {
        n: (lambda x: x[:, :0])
        for n in ("query", "key", "value", "log_decay", "erase_logits", "write")
    }
    with pytest.raises(ValueError, match=r"the sequence is empty \(T = 0\)"):
        carve(**cut)


def test_misaligned_segments_name_the_token() -> None:
    ids = jnp.asarray(np.repeat([0, 1], [17, 23])[None].repeat(2, 0))
    with pytest.raises(ValueError, match=r"row 0 starts at token 17.*gate_chunk=16"):
        carve_rule(**inputs(), gate_chunk=16, segment_ids=ids)
    plain({"segment_ids": ids})  # without a content gate segments may start anywhere


def test_segments_align_to_the_row_not_to_the_call() -> None:
    arrays = make_arrays(CASE)
    state = CarveState(*(jnp.float32(a) for a in arrays[8:]), jnp.full((2,), 5, jnp.int32))
    ids = jnp.asarray(np.repeat([0, 1], [11, 29])[None].repeat(2, 0))
    carve_rule(**inputs(), gate_chunk=16, segment_ids=ids, initial_state=state)
    with pytest.raises(ValueError, match="starts at token 11"):
        carve_rule(**inputs(), gate_chunk=16, segment_ids=ids)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.zeros((2, 39), np.int32), ValueError, r"segment_ids has shape \(2, 39\)"),
        (np.zeros((2, 40), np.float32), TypeError, "segment_ids has dtype float32"),
        (np.arange(40)[::-1][None].repeat(2, 0), ValueError, "segment_ids decrease"),
    ],
)
def test_bad_segments(ids: np.ndarray, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        plain({"segment_ids": jnp.asarray(ids)})


def test_bad_state() -> None:
    with pytest.raises(ValueError, match=r"initial_state has shape \(2, 4, 8, 16\)"):
        plain({"initial_state": jnp.zeros((2, 4, 8, 16))})
    with pytest.raises(TypeError, match="initial_state has dtype bfloat16"):
        plain({"initial_state": jnp.zeros((2, 4, 16, 8), jnp.bfloat16)})


def test_bad_carve_state_names_the_field() -> None:
    state = CarveState(*(jnp.float32(a) for a in make_arrays(CASE)[8:]), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"initial_state.content has shape \(1, 4, 8\); expected"):
        carve_rule(**inputs(), initial_state=state._replace(content=state.content[:1]))


@pytest.mark.parametrize("rule", [plain, carve])
def test_sizes_must_be_positive(rule) -> None:
    with pytest.raises(ValueError, match="is 0; it must be at least 1"):
        carve_rule(**inputs(), gate_chunk=0) if rule is carve else plain({"chunk_size": 0})


def test_implementations_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown implementation 'cuda'; allowed are 'recurrent', .* 'triton', 'mosaic' and",
    ):
        plain({"implementation": "cuda"})
    with monkeypatch.context() as patched:
        patched.delenv("CARVE_PALLAS", raising=False)
        for name in ("pallas", "triton"):
            with pytest.raises(NotImplementedError, match=f"'{name}'.*on cpu here; use 'chunked'"):
                plain({"implementation": name})
    with pytest.raises(NotImplementedError, match=r"'pallas'.*float64 inputs; use 'recurrent'"):
        resolve_implementation("pallas", dtype="float64")
    with pytest.raises(NotImplementedError, match="up to 256 channels, and K is 300"):
        resolve_implementation("pallas", sizes={"B": 1, "T": 1, "N": 1, "K": 300, "V": 16})
    with pytest.raises(NotImplementedError, match="count elements in 32 bits"):
        resolve_implementation("pallas", sizes={"B": 2**20, "T": 2**7, "N": 1, "K": 3, "V": 9})
    with pytest.raises(
        NotImplementedError, match=r"'chunked': it computes in float32.*'recurrent'"
    ):
        resolve_implementation("chunked", dtype="float64")
    sizes = {"B": 2, "T": 64, "N": 1, "K": 16, "V": 16}
    assert resolve_implementation(None, sizes=sizes) == "chunked"
    assert resolve_implementation(None, sizes={**sizes, "T": 1}) == "recurrent"
    assert resolve_implementation(None, dtype="float64") == "recurrent"
    # What is recorded is whose kernels run.
    assert resolve_implementation("pallas", sizes=sizes) == "triton"
    assert resolve_implementation("triton") == "triton"


def test_checks_of_values_stay_out_of_jit() -> None:
    growing = inputs(log_decay=lambda x: -x)
    erase = jax.nn.sigmoid(growing.pop("erase_logits"))
    del growing["content_down"], growing["content_up"]
    output, _ = jax.jit(gated_delta_rule)(**growing, erase=erase)
    assert output.shape == growing["value"].shape
