"""Language models of pre-norm residual blocks, scanned over repeats of a pattern of mixers."""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from carve_jax.config import LMConfig
from carve_jax.mixers import MIXERS
from carve_jax.mixers.base import Cache, fan_in_uniform
from carve_jax.ops.layer_content import chunks_of
from carve_jax.shapes import Array, Float, Float32, Int32
from carve_jax.sharding import constrain
from pallas_kernels.call import KEPT

__all__ = ["LMConfig", "LanguageModel", "count_parameters"]

PARTS = {
    "mixer": "mixer",
    "mlp": "mlp",
    "embed": "embedding",
    "head": "head",
    "mixer_norm": "norm",
    "mlp_norm": "norm",
    "final_norm": "norm",
}
_KEEP_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_KEEP_RULE = jax.checkpoint_policies.save_only_these_names(KEPT)
REMAT_POLICY = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": _KEEP_DOTS,
    "rule": _KEEP_RULE,
    "rule_and_dots": jax.checkpoint_policies.save_from_both_policies(_KEEP_DOTS, _KEEP_RULE),
}


class SwiGLU(nn.Module):
    """`down(SiLU(gate x) ⊙ up x)` without biases."""

    config: LMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The MLP of every token."""
        linear = functools.partial(
            nn.Dense, use_bias=False, dtype=jnp.dtype(self.config.compute_dtype)
        )
        hidden = functools.partial(linear, self.config.mlp_dim, kernel_init=fan_in_uniform())
        down_init = fan_in_uniform((2 * self.config.layers) ** -0.5)
        gate, up = hidden(name="gate_proj")(x), hidden(name="up_proj")(x)
        return linear(x.shape[-1], kernel_init=down_init, name="down_proj")(jax.nn.silu(gate) * up)


class Stream(NamedTuple):
    """What goes from block to block.

    Attributes:
      x: the residual stream.
      content: of each gate chunk, for the erase gates of the next layer that reads the one below
        (`GateSpec.content_source`); None where no layer does.
    """

    x: Float[Array, "B T D"]
    content: Float32[Array, "B chunks N V"] | None


class Block(nn.Module):
    """`x + mixer(norm x)`, then `x + mlp(norm x)`."""

    config: LMConfig
    mixer_name: str

    def setup(self) -> None:
        """Declare the parts."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        self.mixer_norm = nn.RMSNorm(epsilon=config.norm_eps, dtype=dtype)
        self.mixer: Any = MIXERS[self.mixer_name].of_model(config)
        self.mlp_norm = nn.RMSNorm(epsilon=config.norm_eps, dtype=dtype)
        self.mlp = SwiGLU(config)

    def __call__(
        self,
        stream: Stream,
        cache: Cache,
        segment_ids: Int32[Array, "B T"] | None,
    ) -> tuple[Stream, Cache]:
        """One residual block; see `Mixer` for the cache."""
        x, content = stream
        # Between tokens: x + mixer(norm x) [B, T, D].
        if content is not None and MIXERS[self.mixer_name].reads_layer_below(self.config):
            mixed, cache, content = self.mixer.with_content(
                self.mixer_norm(x), cache, segment_ids, content
            )
        else:
            mixed, cache = self.mixer(self.mixer_norm(x), cache, segment_ids)
        x = constrain(x + mixed, "batch", "length", None)
        # Within each token: x + mlp(norm x) [B, T, D].
        x = constrain(x + self.mlp(self.mlp_norm(x)), "batch", "length", None)
        return Stream(x, content), cache


class Repeat(nn.Module):
    """One repeat of the pattern of mixers."""

    config: LMConfig

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        caches: dict[str, Cache] | None,
        segment_ids: Int32[Array, "B T"] | None,
    ) -> tuple[Stream, dict[str, Cache] | None]:
        """The blocks of the pattern, one after the other."""
        block: Any = Block
        if self.config.remat != "none":
            # Inside a scan nothing merges the two computations, so no barrier is needed.
            block = nn.remat(
                Block,
                policy=REMAT_POLICY[self.config.remat],
                prevent_cse=not self.config.scan_layers,
            )
        updated = {}
        for name, mixer_name in layer_names(self.config):
            past = None if caches is None else caches[name]
            stream, updated[name] = block(self.config, mixer_name, name=name)(
                stream, past, segment_ids
            )
        return stream, None if caches is None else updated


def layer_names(config: LMConfig) -> list[tuple[str, str]]:
    """Names of a repeat's blocks, with those of their mixers."""
    return [(f"layer_{i}_{mixer}", mixer) for i, mixer in enumerate(config.pattern)]


class LanguageModel(nn.Module):
    """A causal language model; purely functional, without random numbers after `init`.

    `init(rng, tokens)` gives float32 parameters `embed/embedding`,
    `blocks/layer_<i>_<mixer>/{mixer,mlp,mixer_norm,mlp_norm}` with the repeats of the pattern
    as first axis, `final_norm/scale` and, unless embeddings are tied, `head/kernel`.
    """

    config: LMConfig

    def setup(self) -> None:
        """Declare the parts."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        self.embed = nn.Embed(
            config.vocab_size,
            config.d_model,
            dtype=dtype,
            embedding_init=nn.initializers.normal(0.02),
        )
        self.blocks = nn.scan(
            Repeat,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.repeats,
            unroll=1 if config.scan_layers else config.repeats,
        )(config)
        self.final_norm = nn.RMSNorm(epsilon=config.norm_eps, dtype=dtype)
        if not config.tie_embeddings:
            self.lm_head = nn.Dense(
                config.vocab_size,
                use_bias=False,
                dtype=dtype,
                kernel_init=fan_in_uniform(),
                dot_general=functools.partial(
                    jax.lax.dot_general, preferred_element_type=jnp.float32
                ),
                name="head",
            )

    def __call__(
        self,
        tokens: Int32[Array, "B T"],
        cache: Cache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float32[Array, "B T vocab"], Cache | None]:
        """Logits of each next token, and the next cache (None if none was given).

        Args:
          tokens: ids below `vocab_size`; others give NaN.
          cache: from `init_cache` or an earlier call; it belongs to the first document of
            each row. Any split of a sequence into calls gives what one call gives.
          segment_ids: non-decreasing document numbers of packed rows; documents start at
            multiples of `config.segment_alignment`.

        Raises:
          ValueError: when a shape does not fit, or the tokens do not fit the cache.
          TypeError: when `tokens` are not integers.
        """
        x, cache = self.hidden(tokens, cache, segment_ids)
        return self.logits(x), cache

    def hidden(
        self,
        tokens: Int32[Array, "B T"],
        cache: Cache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """What the head reads: the residual stream after the final norm, in compute dtype."""
        _check_tokens(tokens, segment_ids)
        # Tokens [B, T] to the residual stream [B, T, D]. Rows look tokens up in a table that each
        # device has gathered: of what could be sent, a table is the least.
        with jax.named_scope("embed"):
            table = constrain(self.embed.embedding.astype(self.config.compute_dtype), None, None)
            x = constrain(jnp.take(table, tokens, axis=0), "batch", "length", None)
        # The blocks, repeat by repeat, and the final norm [B, T, D].
        stream = Stream(x, self._no_content(tokens, continued=cache is not None))
        stream, cache = self.blocks(stream, cache, segment_ids)
        return self.final_norm(stream.x), cache

    def _no_content(
        self, tokens: Int32[Array, "B T"], continued: bool
    ) -> Float32[Array, "B chunks N V"] | None:
        """The content that the first layer is given."""
        config, (batch, length) = self.config, tokens.shape
        if config.content_chunk is None:
            return None
        chunks = chunks_of(length, config.content_chunk, continued)
        return jnp.zeros((batch, chunks, config.num_heads, config.value_dim), jnp.float32)

    def logits(self, x: Float[Array, "*rest D"]) -> Float32[Array, "*rest vocab"]:
        """Logits, summed and returned in float32."""
        if not self.config.tie_embeddings:
            return self.lm_head(x)
        embedding = self.embed.embedding.astype(x.dtype)
        return jnp.einsum("...d,vd->...v", x, embedding, preferred_element_type=jnp.float32)

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int) -> dict[str, Cache]:
        """An empty cache for rows of up to `max_length` tokens; needs no parameters.

        Its leaves have the repeats of the pattern as first axis and the batch as second. Only
        those of full attention grow with `max_length`.
        """
        if batch < 1 or max_length < 1:
            raise ValueError(
                f"init_cache: batch={batch}, max_length={max_length}; both must be 1 or more."
            )
        caches = {
            name: MIXERS[mixer].of_model(self.config).init_cache(batch, max_length)
            for name, mixer in layer_names(self.config)
        }
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * self.config.repeats), caches)


def count_parameters(params: Any) -> dict[str, int]:
    """Numbers of parameters by part: mixer, mlp, embedding, head, norm and total.

    `params` is a tree of arrays or of shapes, as `jax.eval_shape` gives.
    """
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(PARTS.values(), 0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part = next(PARTS[key.key] for key in path if key.key in PARTS)
        counts[part] += leaf.size
    return {**counts, "total": counts.total()}


def _check_tokens(tokens: Array, segment_ids: Array | None) -> None:
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens have shape {tokens.shape}; expected [B, T] with T >= 1.")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens are {tokens.dtype}; expected integers.")
    if segment_ids is not None and segment_ids.shape != tokens.shape:
        raise ValueError(
            f"segment_ids have shape {segment_ids.shape}; expected {tokens.shape} as tokens."
        )
