"""Sweeps: CARVE by passes of GDN-2 under the contents of the pass before, and what is swept.

See `parallel_in_time`, which counts them.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.ops.content_gate import ContentGate, erase_gate, erase_shift
from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from carve_jax.ops.gated_delta.reference import RuleInputs
from carve_jax.training.run import build
from experiments.theory import capacity

PRECISION = 2.0**-8  # a unit in the last place of bfloat16
HISTORY = 3  # sweeps that Anderson's mixing looks back on
RANK = 16


class Problem(NamedTuple):
    """A layer's rule and its inputs, of whole gate chunks.

    Attributes:
      inputs: of the rule [B, T, N, …], T a multiple of `chunk`; `erase` holds logits.
      down, up: P_down [N, V, R] and P_up [N, R, K].
      chunk: L.
    """

    inputs: RuleInputs
    down: jax.Array
    up: jax.Array
    chunk: int

    @property
    def chunks(self) -> int:
        """N, gate chunks of a row."""
        return self.inputs.value.shape[1] // self.chunk


@functools.partial(jax.jit, static_argnames="chunk")
def _in_order(inputs: RuleInputs, down: jax.Array, up: jax.Array, *, chunk: int) -> jax.Array:
    return carve_rule(*inputs, down, up, gate_chunk=chunk, implementation="recurrent")[0]


def in_order(problem: Problem) -> jax.Array:
    """Outputs as CARVE computes them, chunk after chunk."""
    inputs, down, up, chunk = problem
    return _in_order(inputs, down, up, chunk=chunk)


@functools.partial(jax.jit, static_argnames="chunk")
def sweep(
    inputs: RuleInputs, down: jax.Array, up: jax.Array, contents: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Outputs under these contents [B, N, chunks, V], and the contents of these outputs."""
    dtype = inputs.erase.dtype
    gate = ContentGate(down, up, chunk, 1.0, stop_gradient=False, norm=False, dtype=dtype)
    shift = jnp.moveaxis(jnp.repeat(erase_shift(contents, gate), chunk, axis=2), 1, 2)
    given = inputs._replace(erase=erase_gate(inputs.erase, shift, gate))
    output, _ = gated_delta_rule(*given, implementation="recurrent")
    batch, length, heads, width = output.shape
    means = output.reshape(batch, length // chunk, chunk, heads, width).mean(axis=2)
    before = jnp.pad(means[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return output, jnp.moveaxis(before, 2, 1)


def no_contents(problem: Problem) -> jax.Array:
    """The contents that the first sweep is given."""
    batch, _, heads, width = problem.inputs.value.shape
    return jnp.zeros((batch, heads, problem.chunks, width))


def sweeps(problem: Problem, mixed: bool = False) -> Iterator[jax.Array]:
    """Outputs after each sweep; with `mixed` contents by Anderson's mixing, of each head alone."""
    inputs, down, up, chunk = problem
    contents, history = no_contents(problem), list[tuple[jax.Array, jax.Array]]()
    for _ in range(problem.chunks):
        output, found = sweep(inputs, down, up, contents, chunk=chunk)
        yield output
        history = [*history, (contents, found)][-HISTORY - 1 :]
        contents = mix(history) if mixed and len(history) > 1 else found


def mix(history: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Anderson's mixing: the sum of what was found, by weights of least residual that add to 1.

    Chunks that are right in all sweeps looked back on stay right, since the weights add to 1.
    """
    shape = history[-1][0].shape
    given, found = (
        jnp.stack(part).reshape(len(part), *shape[:2], -1) for part in zip(*history, strict=True)
    )
    residual = found - given  # [sweeps, B, N, chunks · V]
    steps = jnp.moveaxis(jnp.diff(residual, axis=0), 0, -1)  # [B, N, chunks · V, sweeps − 1]
    small = 1e-10 * jnp.eye(steps.shape[-1])[None, None]
    square = jnp.einsum("bnxi,bnxj->bnij", steps, steps, precision="highest")
    square = square + small * jnp.trace(square, axis1=-2, axis2=-1)[..., None, None] + 1e-30
    right = jnp.einsum("bnxi,bnx->bni", steps, residual[-1], precision="highest")
    weights = jnp.linalg.solve(square, right[..., None])[..., 0]
    change = jnp.einsum("sbnx,bns->bnx", jnp.diff(found, axis=0), weights, precision="highest")
    return (found[-1] - change).reshape(shape)


def distance(found: jax.Array, expected: jax.Array) -> np.ndarray:
    """Distance of outputs [B, T, N, V], by token: the largest norm of the difference, over rows
    and heads, divided by the root mean square of the norms of that row and head."""
    norms = np.linalg.norm(np.asarray(found - expected, np.float64), axis=-1)
    size = np.square(np.linalg.norm(np.asarray(expected, np.float64), axis=-1)).mean(1) ** 0.5
    return (norms / size[:, None]).max(axis=(0, 2))


class Course(NamedTuple):
    """What sweeping one problem gave.

    Attributes:
      errors: largest distance over the tokens after each sweep, up to the one that was enough.
      needed: sweeps until it was at most `PRECISION`.
      prefix: largest distance in the chunks that must be right by then, over all sweeps.
      chunks: N.
    """

    errors: list[float]
    needed: int
    prefix: float
    chunks: int


def course(problem: Problem, mixed: bool = False, to_the_end: bool = False) -> Course:
    """Sweeps until outputs agree to bfloat16's precision, or all N of them."""
    expected, errors, prefix = in_order(problem), [], 0.0
    for count, output in enumerate(sweeps(problem, mixed), 1):
        by_token = distance(output, expected)
        errors.append(float(by_token.max()))
        prefix = max(prefix, float(by_token[: count * problem.chunk].max()))
        if errors[-1] <= PRECISION and not to_the_end:
            break
    enough = (n for n, error in enumerate(errors, 1) if error <= PRECISION)
    return Course(errors, next(enough, len(errors) + 1), prefix, problem.chunks)


def random_problem(length: int, chunk: int, strength: float, rows: int, width: int) -> Problem:
    """Inputs like those of a layer at initialisation, tokens independent of one another.

    P_up is normal, and of such a size that the first contents shift logits by `strength`, root mean
    square.
    """
    heads, keys = 2, jax.random.split(jax.random.key(0), 7)
    shape = (rows, length, heads, width)
    query, key, value = (jax.random.normal(k, shape) for k in keys[:3])
    query, key = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    logits = 0.5 * jax.random.normal(keys[3], shape)
    write = jax.nn.sigmoid(jax.random.normal(keys[4], (*shape[:3], 1)))
    decay = jnp.broadcast_to(capacity.log_decay("carve", heads, width)[None, :, 0, 0], shape)
    inputs = RuleInputs(query, key, value, decay, logits, write)
    down = jax.random.normal(keys[5], (heads, width, RANK)) * width**-0.5
    up = jax.random.normal(keys[6], (heads, RANK, width))
    problem = Problem(inputs, down, up, chunk)
    _, contents = sweep(inputs, down, up, no_contents(problem), chunk=chunk)
    shift = jnp.einsum("bnjv,nvr,nrk->bnjk", contents[:, :, 1:], down, up, precision="highest")
    return problem._replace(up=up * strength / jnp.sqrt(jnp.mean(jnp.square(shift))))


def relay(chunks: int) -> Problem:
    """The worst case: what each gate chunk does hangs, by a threshold, on what the last one did.

    A number in memory grows by 0.37 per gate chunk, until its reading, above 1, has it erased.
    """
    channels, chunk = 2, 4
    shape = (1, chunks * chunk, 1, channels)
    one = jnp.zeros(shape).at[..., 0].set(1.0)
    first = jnp.arange(shape[1]) % chunk == 0
    key = one * first[None, :, None, None]
    steep = 64.0
    inputs = RuleInputs(
        one * channels**0.5, key, 0.37 * key, jnp.zeros(shape), -steep * jnp.ones(shape),
        jnp.ones((*shape[:3], 1)),
    )  # fmt: skip
    down = jnp.zeros((1, channels, 1)).at[0, 0, 0].set(1.0)
    return Problem(inputs, down, jnp.full((1, 1, channels), steep), chunk)


def of_layers(model: Any, params: Any, tokens: np.ndarray) -> list[Problem]:
    """The rule of each layer of a CARVE model on these tokens, cut to whole gate chunks."""
    (name,) = params["blocks"]
    sown = model.apply({"params": params}, tokens, method="hidden", mutable="intermediates")[1]
    given = sown["intermediates"]["blocks"][name]["mixer"]["rule_inputs"][0]
    chunk = model.config.segment_alignment
    length = tokens.shape[1] // chunk * chunk
    mixer = params["blocks"][name]["mixer"]
    return [
        Problem(
            RuleInputs(*(leaf[layer][:, :length] for leaf in given)),
            jnp.asarray(mixer["content_down"][layer]),
            jnp.asarray(mixer["content_up"][layer]),
            chunk,
        )
        for layer in range(model.config.repeats)
    ]


def trained(config: Any, steps: int) -> list[Problem]:
    """Rules of a small model after so many steps, on rows that it was not trained on."""
    run = build(config)
    state, batches = run.init(), run.pipeline.train_iterator()
    for _ in range(steps):
        state, _ = run.train_step(state, next(batches))
    rows = np.asarray(next(batches)["tokens"])[:8]
    return of_layers(run.model, jax.device_get(state.params), rows)
