"""A backend's GPU kernels behind the rules: sequences, and one token through the decode step."""

import jax.numpy as jnp

from carve_jax.ops.content_gate import (
    CONTENT_NORM_EPS,
    CarveState,
    ContentGate,
    after_token,
    erase_gate,
    erase_shift,
    present_content,
)
from carve_jax.ops.gated_delta.implementation import Call, Implementation
from carve_jax.ops.gated_delta.isolation import isolated
from carve_jax.ops.gated_delta.layout import Layout
from carve_jax.ops.gated_delta.reference import RESTART, RuleInputs, segment_starts
from carve_jax.shapes import Array, Float, Float32
from pallas_kernels import device, guard
from pallas_kernels.backends import BACKENDS
from pallas_kernels.call import Content, Options, Request
from pallas_kernels.decode.step import decode_step


class Kernels(Implementation):
    """The kernels of one backend.

    Args:
      backend: its name in `pallas_kernels.backends.BACKENDS`.
    """

    def __init__(self, backend: str) -> None:
        self._name, self._backend = backend, BACKENDS[backend]

    def unsupported_reason(self, request: Request) -> str | None:
        """Content of another gate chunk than the one before; else as the backend says."""
        one_token = request.sizes is not None and request.sizes["T"] == 1
        if request.content_lag != 1 and not one_token:
            return (
                "its kernels know the content of the gate chunk before alone, and were asked for "
                f"content_lag={request.content_lag}"
            )
        return self._backend.unsupported_reason(request)

    def unchosen_reason(self, request: Request) -> str | None:
        """Interpreted kernels are for tests: they are run where they are named, never chosen."""
        if device.mode() != "interpret":
            return None
        return "interpreted kernels run where they are named alone"

    def distrusted_reason(self, request: Request) -> str | None:
        """What the self-test found wrong with kernels like these on this GPU."""
        return guard.distrusted_reason(self._name, request)

    def run(self, call: Call) -> tuple[Float[Array, "B T N V"], CarveState]:
        """Both rules; of one token through the decode step.

        A document that is not finite spoils no other one of its row: see `isolated`.
        """
        if call.inputs.value.shape[1] == 1:
            return _decode(call) if call.gate is None else _decode_carve(call, call.gate)
        starts, gate = _starts(call), call.gate
        if gate is not None:

            def carve(inputs: RuleInputs, state: CarveState) -> tuple[Array, CarveState]:
                return self._carve(call._replace(inputs=inputs, state=state), gate, starts)

            return isolated(carve, call.inputs, call.state, call.segment_ids, logits=True)

        def plain(inputs: RuleInputs, memory: Array) -> tuple[Array, Array]:
            options = Options(call.scale, call.tiles, call.decay_floor)
            result = self._backend.run(_restart(inputs, starts), memory, options)
            return result.output, result.memory

        output, memory = isolated(plain, call.inputs, call.state.memory, call.segment_ids)
        return output, call.state._replace(memory=memory)

    def _carve(
        self, call: Call, gate: ContentGate, starts: Array | None
    ) -> tuple[Array, CarveState]:
        state = call.state
        batch, length = call.inputs.value.shape[:2]
        layout = Layout.make(gate.chunk, length, None if call.aligned else state.position)
        mean = layout.means(starts, batch)
        content = Content(
            down=gate.down,
            up=gate.up,
            content=state.content,
            partial_sum=state.partial_sum,
            mean=mean,
            stride=layout.stride,
            scale=gate.scale,
            stop_gradient=gate.stop_gradient,
            norm_eps=CONTENT_NORM_EPS if gate.norm else None,
            dtype=gate.dtype,
        )
        laid = RuleInputs(*map(layout.lay, _restart(call.inputs, starts)))
        options = Options(call.scale, call.tiles, call.decay_floor)
        result = self._backend.run(laid, state.memory, options, content)
        assert result.sums is not None  # under a content gate
        contents = layout.contents(state.content, result.sums, mean)
        ending = layout.ending(contents, result.sums)
        return layout.unlay(result.output), CarveState(result.memory, *ending)


def _starts(call: Call) -> Array | None:
    if call.segment_ids is None:
        return None
    return segment_starts(call.segment_ids, *call.inputs.value.shape[:2])


def _restart(inputs: RuleInputs, starts: Array | None) -> RuleInputs:
    """A new segment as a decay that keeps nothing."""
    if starts is None:
        return inputs
    decay = inputs.log_decay.astype(jnp.float32)
    return inputs._replace(log_decay=jnp.where(starts[..., None, None], RESTART, decay))


def _decode(call: Call) -> tuple[Array, CarveState]:
    inputs, state = call.inputs, call.state
    output, memory = _step(inputs, inputs.erase[:, 0], state.memory, call.scale, inputs.value.dtype)
    return output[:, None], state._replace(memory=memory)


def _step(
    inputs: RuleInputs,
    erase: Array,
    memory: Float32[Array, "B N K V"],
    scale: float,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "B N V"], Float32[Array, "B N K V"]]:
    query, key, value, log_decay, _, write = (x[:, 0] for x in inputs)
    return decode_step(
        query,
        key,
        value,
        log_decay,
        erase,
        write,
        memory,
        scale=scale,
        interpret=device.mode() == "interpret",
        output_dtype=dtype,
    )


def _decode_carve(call: Call, gate: ContentGate) -> tuple[Array, CarveState]:
    """One token of CARVE: its gate is made here, the state edited by the decode step."""
    inputs, state = call.inputs, call.state
    heads = inputs.value.shape[2]

    def to_value_heads(x: Array) -> Array:
        return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)

    query, key, log_decay, logits = map(
        to_value_heads, (inputs.query, inputs.key, inputs.log_decay, inputs.erase)
    )
    shift = erase_shift(present_content(state)[:, :, None], gate)[:, :, 0]
    erase = erase_gate(logits[:, 0].astype(jnp.float32), shift, gate).astype(logits.dtype)
    wide = RuleInputs(query, key, inputs.value, log_decay, logits, inputs.write)
    # In float32: content is the mean of the outputs before any rounding.
    output, memory = _step(wide, erase, state.memory, call.scale, jnp.dtype("float32"))
    after = after_token(state, memory, output, gate.chunk)
    return output[:, None].astype(inputs.value.dtype), after
