"""One module for the whole gated delta family: CARVE, GDN-2 and the mixers they generalise."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from carve_jax.mixers.base import fan_in_uniform, l2_normalize, rms_norm
from carve_jax.mixers.gate_projections import GateProjections
from carve_jax.mixers.layer import ACTIVATIONS
from carve_jax.ops.attention import document_positions, rope
from carve_jax.ops.content_gate import ContentGate, erase_gate
from carve_jax.ops.gated_delta import CarveState, carve_rule, gated_delta_rule
from carve_jax.ops.gated_delta.api import zero_state
from carve_jax.ops.gated_delta.context_parallel import carve_rule_over, gated_delta_rule_over
from carve_jax.ops.gated_delta.reference import RuleInputs
from carve_jax.ops.layer_content import chunks_of, content_of_outputs, shift_from_below
from carve_jax.ops.short_conv import short_conv
from carve_jax.shapes import Array, Float, Float32, Int32
from carve_jax.sharding import axis_size, constrain, per_device, spec


class GatedDeltaCache(NamedTuple):
    """What a layer carries from one call to the next.

    Attributes:
      query, key, value: the last inputs of the three convolutions; None without them.
      position: tokens read of the row's present document, for rotary positions; None without.
      state: of the rule.
    """

    query: Float[Array, "B W-1 H*K"] | None
    key: Float[Array, "B W-1 H*K"] | None
    value: Float[Array, "B W-1 N*V"] | None
    position: Int32[Array, " B"] | None
    state: CarveState | Float32[Array, "B N K V"]


class GatedDeltaMixer(GateProjections):
    """A layer of the gated delta family: the rule, with gates and surroundings as two values.

    Projections; short convolutions; activation and norm of queries and keys; the rule; a gated
    RMSNorm; output projection. As it stands it is the layer of GDN-2 (arXiv 2605.22791); with the
    content gate it is CARVE (arXiv 2606.27229); `presets` has the others. Parameters are
    float32, products are in `compute_dtype`, log-decay and state in float32.

    Where the collection `intermediates` is mutable, what the rule reads (`rule_inputs`, a
    `RuleInputs`) and what it gives (`rule_output`) are sown there; elsewhere nothing is.

    Attributes:
      conv_width: taps of the short convolution, W.
      norm_eps: of the output's RMSNorm.
      output_scale: factor of the output projection's initial values where `layer.init` is
        "fan_in": 1/√(2·layers) in a model.
      implementation: of the rule; None for the best one here.
      chunk_size: tokens in a tile of the rule.
      others: of `GateProjections`.
    """

    conv_width: int = 4
    norm_eps: float = 1e-5
    output_scale: float = 1.0
    implementation: str | None = None
    chunk_size: int = 64

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int) -> GatedDeltaCache:
        """An empty cache, of one size whatever `max_length` is."""
        del max_length
        dtype = jnp.dtype(self.compute_dtype)
        key_width, value_width = self.key_heads * self.key_dim, self.num_heads * self.value_dim

        def history(width: int) -> Array | None:
            if not self.layer.short_conv:
                return None
            return jnp.zeros((batch, self.conv_width - 1, width), dtype)

        sizes = {"B": batch, "N": self.num_heads, "K": self.key_dim, "V": self.value_dim}
        state = zero_state(sizes, jnp.dtype("float32"), max(1, self.gates.content_lag))
        return GatedDeltaCache(
            history(key_width),
            history(key_width),
            history(value_width),
            jnp.zeros((batch,), jnp.int32) if self.layer.rope else None,
            state if self.gates.content else state.memory,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: GatedDeltaCache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaCache | None]:
        """Mix `x`; see `Mixer`. Where content comes from the layer below, there is none."""
        return self.with_content(x, cache, segment_ids)[:2]

    @nn.compact
    def with_content(
        self,
        x: Float[Array, "B T D"],
        cache: GatedDeltaCache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
        below: Float32[Array, "B chunks N V"] | None = None,
    ) -> tuple[
        Float[Array, "B T D"], GatedDeltaCache | None, Float32[Array, "B chunks N V"] | None
    ]:
        """Mix `x` under the content that the layer below hands up.

        Args:
          x, cache, segment_ids: as in `Mixer`.
          below: content of each gate chunk that the call touches (`ops.layer_content`); None for
            a layer that has none below. Read where `gates.reads_layer_below` alone.

        Returns:
          The output, the next cache, and the content for the layer above (None where no layer
          reads it).

        Raises:
          ValueError: the layer below has other heads or channels of values, or L.
        """
        if self.num_heads % self.key_heads:
            raise ValueError(
                f"num_key_heads={self.key_heads} does not divide num_heads={self.num_heads}."
            )
        # Queries and keys [B, T, H, K], values [B, T, N, V]: projection, convolution, activation.
        past = GatedDeltaCache(*(None,) * 5) if cache is None else cache  # type: ignore[arg-type]
        query, query_tail = self._projected("q", x, past.query, segment_ids)
        key, key_tail = self._projected("k", x, past.key, segment_ids)
        value, value_tail = self._projected("v", x, past.value, segment_ids)
        # Norm, positions and correction of queries and keys.
        if self.layer.qk_norm == "l2":
            query, key = l2_normalize(query), l2_normalize(key)
        position = None
        if self.layer.rope:
            positions = document_positions(
                *x.shape[:2], start=past.position, segment_ids=segment_ids
            )
            query, key, position = (
                rope(query, positions),
                rope(key, positions),
                positions[:, -1] + 1,
            )
        if self.layer.query_correction:
            shape = (self.key_heads,)
            multiple = self.param("q_correction", nn.initializers.ones, shape, jnp.float32)
            query = query - multiple.astype(key.dtype)[None, None, :, None] * key
        if self.gate_heads > self.key_heads:
            repeats = self.gate_heads // self.key_heads
            query, key = jnp.repeat(query, repeats, axis=2), jnp.repeat(key, repeats, axis=2)

        # The rule, with its gates: outputs [B, T, N, V], state [B, N, K, V].
        decay, erase, write = self._gates(x)
        arrays, content = (query, key, value, decay, erase, write), None
        if self.gates.reads_layer_below:
            output, state, content = self._rule_under(below, arrays, past.state, segment_ids)
        else:
            output, state = self._rule(arrays, past.state, segment_ids)
        self.sow("intermediates", "rule_output", output)
        if self.layer.skip:
            skip = self.param("D", nn.initializers.ones, (self.num_heads,), jnp.float32)
            output = (output + skip[None, None, :, None] * value).astype(output.dtype)
        # Norm, output gate and projection [B, T, D].
        y = self._output(x, output)
        if cache is None:
            return y, None, content
        return y, GatedDeltaCache(query_tail, key_tail, value_tail, position, state), content

    def _projected(
        self, name: str, x: Array, cache: Array | None, segment_ids: Array | None
    ) -> tuple[Array, Array | None]:
        """Queries, keys or values by heads, and what their convolution saw last."""
        of_values = name == "v"
        heads = self.num_heads if of_values else self.key_heads
        width = heads * (self.value_dim if of_values else self.key_dim)
        y, tail = self._linear(f"{name}_proj", width)(x), None
        if self.layer.short_conv:
            shape = (self.conv_width, width)
            kernel = self.param(f"{name}_conv", fan_in_uniform(), shape, jnp.float32)
            y, tail = short_conv(y, kernel, cache=cache, segment_ids=segment_ids)
            if self.layer.conv_bias:
                bias = self.param(f"{name}_conv_bias", self._conv_bias_init, (width,), jnp.float32)
                y = y + bias.astype(y.dtype)[None, None]
        activation = self.layer.value_activation if of_values else self.layer.activation
        return self._heads(ACTIVATIONS[activation](y), heads), tail

    def _conv_bias_init(self, rng: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        bound = self.conv_width**-0.5
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    def _output(self, x: Array, output: Array) -> Array:
        """The rule's output through norm, gate and output projection."""
        width, out_gate = self.num_heads * self.value_dim, None
        if self.layer.output_gate == "low_rank":
            out_gate = self._heads(self._low_rank("g", x, width, bias=True), self.num_heads)
        elif self.layer.output_gate == "full":
            out_gate = self._heads(self._linear("g_proj", width)(x), self.num_heads)
        if out_gate is not None:
            out_gate = ACTIVATIONS[self.layer.gate_activation](out_gate.astype(jnp.float32))
        flat = (*x.shape[:2], width)
        if self.layer.output_norm == "head":
            weight = self.param("o_norm", nn.initializers.ones, (self.value_dim,), jnp.float32)
            normed = rms_norm(output, weight, self.norm_eps, gate=out_gate).reshape(flat)
        else:
            weight = self.param("o_norm", nn.initializers.ones, (width,), jnp.float32)
            gated = output if out_gate is None else output * out_gate
            normed = rms_norm(gated.reshape(flat), weight, self.norm_eps).astype(output.dtype)
        init = fan_in_uniform(self.output_scale) if self.layer.init == "fan_in" else None
        return self._linear("o_proj", x.shape[-1], init=init)(normed)

    def _rule_under(
        self,
        below: Array | None,
        arrays: tuple[Array, ...],
        state: Any,
        segment_ids: Array | None,
    ) -> tuple[Array, Any, Array]:
        """The rule whose erase gate reads the layer below: output, state, content for the next.

        The state is a `CarveState`, or None for none, before as after.
        """
        query, key, value, decay, logits, write = arrays
        gates, (batch, length, heads, width) = self.gates, value.shape
        shape = (batch, chunks_of(length, gates.gate_chunk, state is not None), heads, width)
        if below is None:
            below = jnp.zeros(shape, jnp.float32)
        if below.shape != shape:
            raise ValueError(
                f"the content of the layer below has shape {below.shape}, where this layer reads "
                f"{shape}: give both as many value heads and channels, and the same gate_chunk."
            )
        self.sow("intermediates", "content_below", below)
        self.sow("intermediates", "erase_logits", logits)
        gate = ContentGate(
            *self._content_projections(value.dtype),
            chunk=gates.gate_chunk,
            scale=gates.erase_scale,
            stop_gradient=gates.stop_gradient_content,
            norm=gates.content_norm,
            dtype=logits.dtype,
        )
        shift = shift_from_below(below, gate, None if state is None else state.position, length)
        if (repeats := heads // logits.shape[2]) > 1:
            query, key, decay, logits = (
                jnp.repeat(x, repeats, axis=2) for x in (query, key, decay, logits)
            )
        erase = erase_gate(logits.astype(shift.dtype), shift, gate).astype(logits.dtype)
        arrays = (query, key, value, decay, erase, write)
        memory: Any = None if state is None else state.memory
        output, memory = self._rule(arrays, memory, segment_ids)
        kept = None if state is None else (state.content, state.partial_sum, state.position)
        content, kept = content_of_outputs(output, kept, segment_ids, gates.gate_chunk)
        content = constrain(content, "batch", None, "heads", None)
        return output, None if kept is None else CarveState(memory, *kept), content

    def _rule(
        self,
        arrays: tuple[Array, ...],
        state: CarveState | Array | None,
        segment_ids: Array | None,
    ) -> tuple[Array, CarveState | Array]:
        """The rule of query, key, value, decay, erase and write, each device on its rows, heads
        and shard of the sequence."""
        with_content = self.gates.content_lag > 0
        content = self._content_projections(arrays[2].dtype) if with_content else ()

        # Heads are independent, so that a mesh cuts the rule by rows and heads and nothing is sent;
        # where it cuts the sequence too, states are.
        by_head, memory = spec("batch", "length", "heads", None), spec("batch", "heads", None, None)
        state_spec: Any = memory
        if with_content:
            parts: Any = (memory, *(spec("batch", "heads", None),) * 2, spec("batch"))
            state_spec = CarveState(*parts)
        in_specs = (
            (by_head,) * 6,
            (spec("heads", None, None),) * len(content),
            None if state is None else state_spec,
            None if segment_ids is None else spec("batch", "length"),
        )
        self.sow("intermediates", "rule_inputs", RuleInputs(*arrays))
        rule = functools.partial(_run_rule, self, axis_size("sequence"))
        run = per_device(rule, in_specs, (by_head, state_spec))
        return run(arrays, content, state, segment_ids)


def _run_rule(
    mixer: GatedDeltaMixer,
    shards: int,
    arrays: tuple[Array, ...],
    content: tuple[Array, ...],
    state: Any,
    segment_ids: Array | None,
) -> tuple[Array, Any]:
    """The mixer's rule on a device's part of the arrays, a sequence cut into so many shards."""
    options: dict[str, Any] = {
        "scale": mixer.layer.scale,
        "initial_state": state,
        "segment_ids": segment_ids,
        "log_decay_floor": mixer.gates.log_decay_floor,
        "implementation": mixer.implementation,
    }
    if not mixer.gates.content_lag:
        options["chunk_size"] = mixer.chunk_size
        if shards == 1:
            return gated_delta_rule(*arrays, **options)
        return gated_delta_rule_over("sequence", *arrays, **options)
    run: Any = carve_rule
    if shards > 1:  # One row at a time leaves the fewest devices idle.
        rows = arrays[0].shape[0]
        run = functools.partial(carve_rule_over, "sequence", micro_batches=rows)
    return run(
        *arrays,
        *content,
        gate_chunk=mixer.gates.gate_chunk,
        erase_scale=mixer.gates.erase_scale,
        stop_gradient_content=mixer.gates.stop_gradient_content,
        content_norm=mixer.gates.content_norm,
        content_lag=mixer.gates.content_lag,
        **options,
    )
