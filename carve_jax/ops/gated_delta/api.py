"""The two public rules: check the inputs, choose an implementation, run it."""

from collections.abc import Mapping

import jax.numpy as jnp

from carve_jax.ops.content_gate import CarveState, ContentGate
from carve_jax.ops.gated_delta import checks, registry
from carve_jax.ops.gated_delta.implementation import Call
from carve_jax.ops.gated_delta.reference import RuleInputs, recurrent
from carve_jax.shapes import Array, Float, Float32, Int
from pallas_kernels.call import Request
from pallas_kernels.tiling import Tiles

_RULE_SHAPES = {
    "query": ("B", "T", "H", "K"),
    "key": ("B", "T", "H", "K"),
    "value": ("B", "T", "N", "V"),
    "log_decay": ("B", "T", "H", ("K",)),
    "erase": ("B", "T", "H", ("K",)),
    "erase_logits": ("B", "T", "H", "K"),
    "write": ("B", "T", "N", ("V",)),
    "value_erase": ("B", "T", "N", "V"),
    "content_down": ("N", "V", "R"),
    "content_up": ("N", "R", "K"),
}


def gated_delta_rule(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T H Kg"],
    erase: Float[Array, "B T H Ke"],
    write: Float[Array, "B T N Vg"],
    *,
    scale: float | None = None,
    initial_state: Float32[Array, "B N K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | None = None,
    log_decay_floor: float | None = None,
    tiles: Tiles | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """Gated delta rule-2 (GDN-2, arXiv 2605.22791, eq. 9-10) over whole sequences.

    For each value head, with state S of K × V:

        S̄_t = Diag(exp g_t) S_{t−1}
        S_t = S̄_t + k_t (w_t ⊙ v_t − S̄_tᵀ (b_t ⊙ k_t))ᵀ,      o_t = S_tᵀ (scale · q_t)

    Every linear-attention mixer of the family is this rule with its gates tied. Value head n reads
    key head n // (N // H). State and accumulators are float32 (float64 for float64 inputs,
    `recurrent` alone). Outputs up to t do not depend, to the bit, on tokens after t.

    Args:
      query: q, usually of unit norm; bfloat16, float16, float32 (float64: `recurrent`).
      key: k, usually of unit norm.
      value: v; its heads are a multiple of the key heads.
      log_decay: g ≤ 0, natural logarithm of the decay, per channel `[..., K]` or per head
        `[..., 1]`; −1000 is a hard reset. Positive entries raise outside `jit`; inside, g ≤ 0 is
        the caller's promise. The gates (log_decay, erase, write) may be float32 beside
        half-precision query, key and value.
      erase: b, per channel `[..., K]` or per head `[..., 1]`, in [0, 1], or in [0, 2] with negative
        eigenvalues.
      write: w, per channel `[..., V]` or per head `[..., 1]`, in [0, 1].
      scale: factor of the query; K**-0.5 by default.
      initial_state: S before the first token (zero by default); belongs to a row's first segment.
      segment_ids: non-decreasing runs; the state restarts at each new one, anywhere. NaN and
        infinity in the inputs of one spoil no other's outputs or gradients.
      chunk_size: most tokens of a tile of `chunked`; rounded down to a power of two. No effect on
        the result beyond rounding; others ignore it.
      implementation: "recurrent" (token by token), "chunked" (tiles, in XLA), "pallas" (the best
        GPU kernels here) or one backend of theirs ("triton", "mosaic"), or None for the best that
        supports the inputs on this device. What is named runs or raises.
      log_decay_floor: promises log_decay ≥ it everywhere; −10 or more admits a cheaper path of the
        kernels, and a broken promise gives wrong numbers. Checked outside `jit`.
      tiles: how the kernels cut their work, where their table is not to say; others ignore it.

    Returns:
      Output in the shape and dtype of value, and the state after the last token.

    Raises:
      ValueError: when a shape is wrong, the sequence is empty, the key heads do not divide the
        value heads, a log-decay is positive, or the implementation is unknown.
      TypeError: when dtypes are mixed or not floating.
      NotImplementedError: when the named implementation does not support these inputs here.
    """
    arrays = {
        "query": query,
        "key": key,
        "value": value,
        "log_decay": log_decay,
        "erase": erase,
        "write": write,
    }
    sizes = _check_inputs(arrays)
    checks.check_segments(segment_ids, sizes)
    checks.check_positive("chunk_size", chunk_size)
    checks.check_floor(log_decay, log_decay_floor)
    call = Call(
        RuleInputs(query, key, value, log_decay, erase, write),
        _start(initial_state, sizes, query.dtype),
        segment_ids,
        scale=sizes["K"] ** -0.5 if scale is None else scale,
        chunk_size=chunk_size,
        tiles=tiles,
        log_decay_floor=log_decay_floor,
    )
    output, state = _run(call, implementation)
    return output, state.memory


def value_axis_erase_rule(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T H Kg"],
    erase: Float[Array, "B T H Ke"],
    write: Float[Array, "B T N Vg"],
    value_erase: Float[Array, "B T N V"],
    *,
    scale: float | None = None,
    initial_state: Float32[Array, "B N K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """The ablation that CARVE argues against: an erase mask on the value axis as well.

    As `gated_delta_rule`, with residual w_t ⊙ v_t − c_t ⊙ (S̄_tᵀ (b_t ⊙ k_t)) for the mask
    c = `value_erase` in [0, 1]. The system inside a tile then depends on the value channel, V
    triangular solves instead of one (arXiv 2606.27229), so the rule runs token by token alone.

    Raises:
      ValueError, TypeError: as `gated_delta_rule`.
    """
    arrays = {
        "query": query,
        "key": key,
        "value": value,
        "log_decay": log_decay,
        "erase": erase,
        "write": write,
        "value_erase": value_erase,
    }
    sizes = _check_inputs(arrays)
    checks.check_segments(segment_ids, sizes)
    inputs = RuleInputs(query, key, value, log_decay, erase, write)
    state = _start(initial_state, sizes, query.dtype)
    scale = sizes["K"] ** -0.5 if scale is None else scale
    output, state = recurrent(inputs, state, segment_ids, scale, value_erase=value_erase)
    return output, state.memory


def carve_rule(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T H Kg"],
    erase_logits: Float[Array, "B T H K"],
    write: Float[Array, "B T N Vg"],
    content_down: Float[Array, "N V R"],
    content_up: Float[Array, "N R K"],
    *,
    scale: float | None = None,
    initial_state: CarveState | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    gate_chunk: int = 64,
    erase_scale: float = 1.0,
    stop_gradient_content: bool = False,
    content_norm: bool = False,
    content_lag: int = 1,
    implementation: str | None = None,
    log_decay_floor: float | None = None,
    tiles: Tiles | None = None,
) -> tuple[Float[Array, "B T N V"], CarveState]:
    """CARVE (arXiv 2606.27229): the gated delta rule whose erase gate sees what memory returned.

    Time is cut into gate chunks of L = `gate_chunk` tokens, counted from the start of each segment.
    For gate chunk c, with m_c the mean of the outputs of chunk c − `content_lag` (0 without one):

        b_t = erase_scale · σ(x_t + m_c P_down P_up)

    and state and output follow `gated_delta_rule`. L is part of the model, not of the kernel. With
    P_up = 0 this is GDN-2 with erase = erase_scale · σ(x), bit for bit. b is rounded to the dtype
    of `erase_logits`, as a gate handed to `gated_delta_rule` is. Any split of a sequence into calls
    that hand on `CarveState`, at any offset, gives what one call gives.

    Args:
      query, key, value, log_decay, write, scale, implementation, log_decay_floor, tiles: as in
        `gated_delta_rule`.
      erase_logits: x, the erase gate before the content and the sigmoid.
      content_down: P_down, a projection from V to R for each value head.
      content_up: P_up, from R to K; zero at initialisation.
      initial_state: what an earlier call returned; belongs to a row's first segment.
      segment_ids: non-decreasing runs; state, content and gate chunks restart at each new one.
        Each must start on a multiple of `gate_chunk` from the start of the row (earlier calls
        counted in): checked outside `jit`, the caller's promise inside. What is not finite stays in
        its own, as in `gated_delta_rule`.
      gate_chunk: L, tokens.
      erase_scale: largest erase; 2 admits negative eigenvalues.
      stop_gradient_content: no gradient through the content (ablation).
      content_norm: divide m_c by its root mean square over V (eps 1e-6 under the root).
      content_lag: 1 as published, or 2, which breaks the tie of a gate chunk to the one just
        before it: its system may be solved while that one is still being read (an ablation, of
        "recurrent" and "chunked"; the kernels take single tokens of it alone).

    Returns:
      Output in the shape and dtype of value, and the state after the last token.

    Raises:
      ValueError, TypeError, NotImplementedError: as `gated_delta_rule`; ValueError also when a
        segment does not start on a gate chunk, or `content_lag` is neither 1 nor 2.
    """
    arrays = {
        "query": query,
        "key": key,
        "value": value,
        "log_decay": log_decay,
        "erase_logits": erase_logits,
        "write": write,
        "content_down": content_down,
        "content_up": content_up,
    }
    sizes = _check_inputs(arrays)
    checks.check_positive("gate_chunk", gate_chunk)
    checks.check_lag(content_lag)
    checks.check_floor(log_decay, log_decay_floor)
    state = _start_carve(initial_state, sizes, query.dtype, content_lag)
    position = None if initial_state is None else state.position
    checks.check_segments(segment_ids, sizes, gate_chunk, position)
    gate = ContentGate(
        content_down,
        content_up,
        chunk=gate_chunk,
        scale=erase_scale,
        stop_gradient=stop_gradient_content,
        norm=content_norm,
        dtype=erase_logits.dtype,
        lag=content_lag,
    )
    call = Call(
        RuleInputs(query, key, value, log_decay, erase_logits, write),
        state,
        segment_ids,
        scale=sizes["K"] ** -0.5 if scale is None else scale,
        gate=gate,
        aligned=initial_state is None,
        tiles=tiles,
        log_decay_floor=log_decay_floor,
    )
    return _run(call, implementation)


def _run(call: Call, implementation: str | None) -> tuple[Array, CarveState]:
    """The call by what is named, or by the best that takes it."""
    return registry.REGISTRY[registry.choose(implementation, call.request)].run(call)


def resolve_implementation(
    implementation: str | None,
    *,
    dtype: jnp.dtype | str = "float32",
    sizes: Mapping[str, int] | None = None,
    content: bool = False,
    content_lag: int = 1,
) -> str:
    """Name of the implementation that runs for these inputs on this device.

    Args:
      implementation: a name, or None for the best supported one: the best kernels ("pallas") where
        they can run, else "recurrent" for one token or float64, else "chunked".
      dtype: of the inputs.
      sizes: B, T, N, K and V of a call, if known.
      content: under a content gate.
      content_lag: of `carve_rule`.

    Returns:
      "recurrent", "chunked" or a backend's name, for "pallas" that of the kernels that run.

    Raises:
      ValueError: when the name is unknown.
      NotImplementedError: when the named implementation does not support the inputs here, or its
        kernels fail their self-test on this GPU.
    """
    request = Request(dtype, sizes, content, content_lag=content_lag)
    return registry.choose(implementation, request)


def _check_inputs(arrays: dict[str, Array]) -> dict[str, int]:
    sizes = checks.check_arrays(arrays, _RULE_SHAPES)
    checks.check_dtypes(arrays)
    checks.check_sizes(sizes)
    checks.check_log_decay(arrays["log_decay"])
    return sizes


def _start(memory: Array | None, sizes: dict[str, int], dtype: jnp.dtype) -> CarveState:
    """The state of the plain rule before the first token."""
    state = zero_state(sizes, dtype)
    if memory is None:
        return state
    checks.check_state({"initial_state": memory}, {"initial_state": state.memory})
    return state._replace(memory=memory)


def _start_carve(
    given: CarveState | None, sizes: dict[str, int], dtype: jnp.dtype, lag: int
) -> CarveState:
    """The state of CARVE before the first token."""
    state = zero_state(sizes, dtype, lag)
    if given is None:
        return state
    found, expected = (
        {f"initial_state.{name}": array for name, array in s._asdict().items()}
        for s in (given, state)
    )
    checks.check_state(found, expected)
    return given


def zero_state(sizes: Mapping[str, int], dtype: jnp.dtype, lag: int = 1) -> CarveState:
    """The state before any token: float32, or float64 for float64 inputs.

    Args:
      sizes: B, N, K and V.
      dtype: of the inputs.
      lag: `content_lag`.
    """
    dtype = jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
    batch, heads, channels = sizes["B"], sizes["N"], sizes["V"]
    return CarveState(
        memory=jnp.zeros((batch, heads, sizes["K"], channels), dtype),
        content=jnp.zeros((batch, heads, *[lag] * (lag > 1), channels), dtype),
        partial_sum=jnp.zeros((batch, heads, channels), dtype),
        position=jnp.zeros((batch,), jnp.int32),
    )
