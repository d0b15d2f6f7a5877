"""How gradients flow: to the content gate's two projections, down the layers, back in time.

P_up starts at zero. The gradient of P_down is a product with P_up and so is zero too, until the
first step has moved P_up; every other gradient is what it would be without the content gate.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from carve_jax.mixers.changes import GateChanges
from carve_jax.model import LanguageModel
from carve_jax.training.norms import norms_by_group
from carve_jax.training.optimizer import leaf_name, make_optimizer, make_schedule
from carve_jax.training.run import Run, build
from carve_jax.training.step import gradient, make_loss
from experiments.theory import small_models
from experiments.theory.figures import COLOURS, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number

CARVE, NORMED = "CARVE", "CARVE, content_norm"
STRENGTHS = (10.0, 100.0, 1000.0)  # of a random P_up: outputs are small, so that they are large


class Course(NamedTuple):
    """A short training.

    Attributes:
      first, last: gradients at initialisation and at the last step.
      up, down: norms of the gradients of P_up and P_down in each layer, [steps, layers].
      initial, final: parameters.
      loss: nats per token at the last step.
    """

    first: Any
    last: Any
    up: np.ndarray
    down: np.ndarray
    initial: Any
    final: Any
    loss: float


def recall_run(quick: bool, steps: int, **model: Any) -> Run:
    """A small CARVE on associative recall."""
    sizes = {"layers": 2, "d_model": 16, "mlp_dim": 16, "key_dim": 8, "value_dim": 8}
    changes: dict[str, Any] = {**sizes, **model} if quick else model
    return build(small_models.recall_config("carve", steps, **changes))


def projections(gradients: Any, name: str) -> np.ndarray:
    """Norm of the gradient of "content_up" or "content_down" in each layer."""
    (block,) = gradients["blocks"].values()
    leaf = np.asarray(block["mixer"][name], np.float64)
    return np.sqrt(np.square(leaf).sum(axis=tuple(range(1, leaf.ndim))))


def train(run: Run) -> Course:
    """The config's steps as `experiments.train` takes them, with the gradients' norms."""
    settings = run.settings
    schedule = make_schedule(settings.optimizer, settings.steps)
    optimizer = make_optimizer(settings.optimizer, schedule)
    loss = make_loss(run.model, loss_chunk=settings.loss_chunk)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any, jax.Array]:
        grads, sums = gradient(loss, params, batch, 1)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads, sums.nats / sums.tokens

    start = run.init()
    initial, params, state = jax.device_get(start.params), start.params, start.opt_state
    batches, kept, nats = run.pipeline.train_iterator(), [], jnp.nan
    for _ in range(settings.steps):
        params, state, grads, nats = step(params, state, next(batches))
        kept.append(jax.device_get(grads))
    return Course(
        kept[0],
        kept[-1],
        np.stack([projections(grads, "content_up") for grads in kept]),
        np.stack([projections(grads, "content_down") for grads in kept]),
        initial,
        jax.device_get(params),
        float(nats),
    )


def with_content(params: Any, strength: float) -> Any:
    """The parameters with P_up normal, of that standard deviation."""
    rng = np.random.default_rng(0)

    def set_up(path: tuple[Any, ...], leaf: Any) -> Any:
        if leaf_name(path) != "content_up":
            return leaf
        return (strength * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(set_up, params)


def gradient_without_gate(run: Run, params: Any) -> Any:
    """Gradients of the first batch of GDN-2 with a scalar write gate, in CARVE's parameters."""
    gates = GateChanges.of({**run.model.config.gates.given(), "write": "scalar"})
    config = dataclasses.replace(run.model.config, pattern=("gdn2",), gates=gates)
    loss = make_loss(LanguageModel(config), loss_chunk=run.settings.loss_chunk)
    batch = next(run.pipeline.train_iterator())
    return jax.jit(lambda p: gradient(loss, p, batch, 1)[0])(without_content(params))


def without_content(params: Any) -> Any:
    """CARVE's parameters (or their gradients) as GDN-2 has them."""
    (block,) = params["blocks"].values()
    mixer = {k: v for k, v in block["mixer"].items() if not k.startswith("content_")}
    return {**params, "blocks": {"layer_0_gdn2": {**block, "mixer": mixer}}}


def largest_difference(found: Any, expected: Any) -> float:
    """Largest difference of two trees' leaves, each over the largest number of its leaf."""
    ratios = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)), found, expected
    )
    return max(jax.tree.leaves(ratios))


def back_in_time(model: LanguageModel, many: list[Any], rows: int, length: int) -> np.ndarray:
    """Norm of the last token's gradient at each input, by distance, for each set of parameters.

    No token comes twice in a row, so that the gradient of a row of the embedding is that of the
    input at one place. Geometric mean over rows of random tokens: [sets, length], distance 0 first.
    """
    rng = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    tokens = np.stack([rng.permutation(vocabulary)[: length + 1] for _ in range(rows)])

    def last_loss(embedding: jax.Array, params: Any, row: jax.Array) -> jax.Array:
        params = {**params, "embed": {"embedding": embedding}}
        hidden: Any = model.apply({"params": params}, row[None, :-1], method="hidden")
        logits: Any = model.apply({"params": params}, hidden[0][:, -1:], method="logits")
        return optax.softmax_cross_entropy_with_integer_labels(logits[0, 0], row[-1])

    @jax.jit
    def norms(params: Any, tokens: jax.Array) -> jax.Array:
        each = jax.vmap(jax.grad(last_loss), in_axes=(None, None, 0))
        found = jnp.linalg.norm(each(params["embed"]["embedding"], params, tokens), axis=-1)
        return jnp.take_along_axis(found, tokens[:, :-1], axis=1)

    found = [np.asarray(norms(params, jnp.asarray(tokens)), np.float64) for params in many]
    return np.exp(np.log(np.maximum(found, 1e-30)).mean(axis=1))[:, ::-1]


def depth_ratio(gradients: Any) -> np.ndarray:
    """Norm of each layer's mixer gradient over the last layer's."""
    norms = {k: np.asarray(v) for k, v in norms_by_group(gradients).items()}
    (mixer,) = (v for k, v in norms.items() if k.endswith("/mixer"))
    return mixer / mixer[-1]


def measure(quick: bool) -> Finding:
    """Short trainings, and the flow back in time before and after them."""
    steps, rows, length = (3, 2, 32) if quick else (60, 16, 128)
    run = recall_run(quick, steps)
    courses = {CARVE: train(run)}
    carve = courses[CARVE]
    equal: float | None = None
    ends: dict[str, np.ndarray] = {}
    if not quick:  # which saves most of the compiling
        courses[NORMED] = train(recall_run(quick, steps, gates={"content_norm": True}))
        plain = gradient_without_gate(run, carve.initial)
        equal = largest_difference(without_content(carve.first), jax.device_get(plain))
        sets = {"P_up = 0": carve.initial, "trained": carve.final}
        sets |= {f"P_up random, {s:g}": with_content(carve.initial, s) for s in STRENGTHS}
        flows = back_in_time(run.model, list(sets.values()), rows, length)
        ends = dict(zip(sets, flows, strict=True))
    depths = {
        f"{name}, {when}": depth_ratio(grads)
        for name, c in courses.items()
        for when, grads in (("at initialisation", c.first), ("trained", c.last))
    }
    spread = max(max(r.max(), 1 / r.min()) for r in depths.values())
    total = float(optax.tree.norm(carve.first))
    balance = float(carve.down[-1].mean() / carve.up[-1].mean())
    checks = (
        Check("gradient of P_down at initialisation, largest norm", carve.down[0].max(), at_most=0),
        Check("gradient of P_up at initialisation, least norm of a layer", carve.up[0].min(),
              at_least=1e-12),
        Check("gradient of P_down at the second step, least norm of a layer", carve.down[1].min(),
              at_least=1e-12),
        *([] if equal is None else [
            Check("other gradients at initialisation less GDN-2's with a scalar write, largest "
                  "over the largest of its array", equal, at_most=1e-5)]),
        Check("gradient of P_up at initialisation over the whole gradient",
              float(carve.up[0].mean() / total), at_least=1e-3, edge=True),
        Check("gradient of P_down over P_up's at the last step", balance, at_least=0.01, edge=True),
        Check("spread of mixers' gradient norms over depth", float(spread), at_most=10, edge=True),
        *(time_checks(ends, length) if ends else []),
    )  # fmt: skip
    sizes = run.model.config
    return Finding(
        title="Gradients reach the content gate, and flow past it",
        found="P_down gets no gradient until P_up has moved, and P_up's is "
        f"{carve.up[0].mean() / total:.0e} of the whole at first; after {steps} steps P_down's is "
        f"{balance:.2f} of P_up's",
        claim="At initialisation P_down's gradient is exactly 0, P_up's is not, and all others are "
        "those of the model without a content gate; one step later both flow. P_up's is no "
        "negligible part of the whole, gradients stay of one order over depth and do not vanish "
        "back in time, and an open content gate keeps them within a factor of three (edges).",
        setup=f"associative recall, {sizes.layers} layers of width {sizes.d_model}, gate chunks of "
        f"{sizes.segment_alignment}, {steps} steps of {run.settings.batch_size} rows of "
        f"{run.settings.sequence_length}; back in time over {length} tokens, {rows} rows; P_up "
        f"as trained and normal with standard deviations {STRENGTHS}; seed 0",
        checks=checks,
        numbers=tuple(figures_of(courses, ends, length)),
        curves={"courses": courses, "ends": ends, "depths": depths},
    )


def near_and_far(flow: np.ndarray, length: int) -> float:
    """Mean gradient in the further half of the row over that of the last eight tokens."""
    return float(flow[length // 2 :].mean() / flow[1:9].mean())


def time_checks(ends: dict[str, np.ndarray], length: int) -> list[Check]:
    """What the claim says of the flow back in time."""
    shut = ends["P_up = 0"]
    ratio = np.stack([ends[f"P_up random, {s:g}"][1:] / shut[1:] for s in STRENGTHS])
    what = "gradient under a random P_up over that at P_up = 0"
    return [
        Check(f"{what}, least of all distances", float(ratio.min()), at_least=1 / 3, edge=True),
        Check(f"{what}, largest of all distances", float(ratio.max()), at_most=3, edge=True),
        Check(
            f"gradient beyond {length // 2} tokens over that within 8, trained",
            near_and_far(ends["trained"], length),
            at_least=1e-2,
            edge=True,
        ),
    ]


def figures_of(
    courses: dict[str, Course], ends: dict[str, np.ndarray], length: int
) -> Iterator[Number]:
    """The numbers for the report."""
    for name, course in courses.items():
        yield Number(f"loss at the last step, {name}", course.loss, "nats")
        whole, first = float(optax.tree.norm(course.first)), float(course.up[0].mean())
        yield Number(f"gradient of P_up at initialisation, {name}", first / whole, "of all")
        (block,) = course.initial["blocks"].values()
        elements = block["mixer"]["content_up"][0].size
        yield Number(
            f"element of P_up's gradient at initialisation (Adam's eps is 1e-8), {name}",
            first / elements**0.5,
            "root mean square",
        )
        for which, norms in (("up", course.up), ("down", course.down)):
            last = float(norms[-1].mean())
            yield Number(f"gradient of P_{which} at the last step, {name}", last, "norm")
    for name, flow in ends.items():
        far = near_and_far(flow, length)
        yield Number(f"gradient beyond {length // 2} tokens over within 8, {name}", far, "times")


def draw(figure: Figure, finding: Finding) -> None:
    """Gradients of the projections by step, of mixers by depth, of inputs by distance."""
    ends = finding.curves["ends"]  # of no mixer where sizes are quick
    left, middle, *right = panels(figure, 3 if ends else 2, lines=3)
    for index, (name, course) in enumerate(finding.curves["courses"].items()):
        for which, line in (("up", "-"), ("down", ":")):
            norms = getattr(course, which).mean(1)
            norms = np.where(norms > 0, norms, np.nan)
            left.plot(norms, line, color=COLOURS[index], label=f"P_{which}, {name}")
    left.set_yscale("log")
    legend(left)
    label(left, "step", "gradient's norm, mean of layers", "The content gate's projections")
    for index, (name, ratio) in enumerate(finding.curves["depths"].items()):
        middle.plot(np.arange(1, len(ratio) + 1), ratio, label=name, **style(index))
    middle.set_yscale("log")
    legend(middle, columns=1)
    label(middle, "layer", "gradient's norm over the last layer's", "Mixers by depth")
    for axes in right:
        for index, (name, flow) in enumerate(ends.items()):
            axes.plot(flow, ("-", "--", ":")[index % 3], color=COLOURS[index], label=name)
        axes.set_yscale("log")
        legend(axes)
        label(axes, "tokens back in time", "gradient of the last token's loss", "By distance")


EXPERIMENT = Experiment(measure, draw)
