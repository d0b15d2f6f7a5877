"""Where the tokens of a call stand among whole gate chunks, as kernels want them.

Rows are shifted and filled with null tokens (k = v = q = 0, g = 0), which change no state and write
nothing; nothing is copied where gate chunks stand right already.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.shapes import Array, Bool, Float32, Int32, Shaped
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.tiling import padded


class Layout(NamedTuple):
    """Where the tokens of a call stand among whole gate chunks.

    Attributes:
      chunk: L, tokens of a gate chunk.
      stride: tokens from the start of one gate chunk to that of the next: a power of two, or whole
        spans.
      length: T, tokens of the call.
      position: tokens already in each row's first gate chunk, or None for none.
    """

    chunk: int
    stride: int
    length: int
    position: Int32[Array, " B"] | None

    @classmethod
    def make(cls, chunk: int, length: int, position: Int32[Array, " B"] | None) -> "Layout":
        """The layout of a call."""
        stride = padded(chunk) if chunk <= SPAN else -(-chunk // SPAN) * SPAN
        return cls(chunk, stride, length, position)

    def lay(self, x: Shaped[Array, "B T *rest"]) -> Shaped[Array, "B laid *rest"]:
        """The tokens of the call, with null tokens where none of them stands."""
        if self.position is not None:
            shape = (self.length + self.chunk - 1, *x.shape[2:])
            x = jax.vmap(
                lambda row, start: jax.lax.dynamic_update_slice_in_dim(
                    jnp.zeros(shape, x.dtype), row, start, axis=0
                )
            )(x, self.position)
        if self.stride == self.chunk:
            return x
        others = [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % self.chunk), *others])
        x = x.reshape(x.shape[0], -1, self.chunk, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, self.stride - self.chunk), *others])
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def unlay(self, x: Shaped[Array, "B laid *rest"]) -> Shaped[Array, "B T *rest"]:
        """The call's tokens among tokens laid out so."""
        if self.stride != self.chunk:
            x = x[:, : x.shape[1] // self.stride * self.stride]
            x = x.reshape(x.shape[0], -1, self.stride, *x.shape[2:])[:, :, : self.chunk]
            x = x.reshape(x.shape[0], -1, *x.shape[3:])
        if self.position is None:
            return x[:, : self.length]
        return jax.vmap(
            lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, self.length, axis=0)
        )(x, self.position)

    def means(self, starts: Bool[Array, "B T"] | None, batch: int) -> Float32[Array, "B chunks"]:
        """1/L, or 0 where the next gate chunk starts a segment."""
        offset = 0 if self.position is None else self.chunk - 1
        chunks = -(-(self.length + offset) // self.chunk)
        mean = jnp.full((batch, chunks), 1.0 / self.chunk, jnp.float32)
        if starts is None:
            return mean
        starts = self.lay(starts)
        starts = jnp.pad(starts, ((0, 0), (0, chunks * self.stride - starts.shape[1])))
        fresh = starts.reshape(batch, chunks, self.stride).any(axis=2)
        following = jnp.pad(fresh[:, 1:], ((0, 0), (0, 1)))
        return jnp.where(following, 0.0, mean)

    def contents(
        self,
        first: Float32[Array, "B N V"],
        sums: Float32[Array, "B chunks N V"],
        mean: Float32[Array, "B chunks"],
    ) -> Float32[Array, "B chunks N V"]:
        """Content of each gate chunk, from that of the first and the sums of all.

        What a document that is not finite leaves does not reach the next one.
        """
        mean = mean[:, :-1, None, None]
        return jnp.concatenate(
            [first[:, None], jnp.where(mean > 0, mean * sums[:, :-1], 0.0)], axis=1
        )

    def ending(
        self, contents: Float32[Array, "B chunks N V"], sums: Float32[Array, "B chunks N V"]
    ) -> tuple[Float32[Array, "B N V"], Float32[Array, "B N V"], Int32[Array, " B"]]:
        """Content, partial sum and position after the call, from those of its gate chunks."""
        position = self.position
        if position is None:
            position = jnp.zeros(sums.shape[:1], jnp.int32)
        end = position + self.length
        last = ((end - 1) // self.chunk)[:, None, None, None]
        content, partial_sum = (
            jnp.take_along_axis(x, last, axis=1)[:, 0] for x in (contents, sums)
        )
        full = (end % self.chunk == 0)[:, None, None]
        return (
            jnp.where(full, partial_sum / self.chunk, content),
            jnp.where(full, 0.0, partial_sum),
            end % self.chunk,
        )
