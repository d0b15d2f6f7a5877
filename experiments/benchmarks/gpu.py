"""The gpu suite: the kernels against their peers, the machine's ceilings and the targets.

How it times, everywhere: contenders take turns; a turn is a settling call and then calls back to
back, with one wait at the end, for about TURN seconds; the median turn counts. So what is measured
is the device's own time, unless launching a call takes longer than running it. The peer is replayed
as CUDA graphs. JAX must not preallocate, or PyTorch starves beside it; `experiments.benchmark` sees
to that before the first array.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.decode_steps import DecodePlan, measure_decode, print_decode
from experiments.benchmarks.gpu_figures import DIRECTIONS, print_shape, shape_figures, targets
from experiments.benchmarks.parts import kept_parts
from experiments.benchmarks.train_steps import TrainPlan, measure_training, print_training
from experiments.measuring.rule_calls import LAYER, Shape, rule_contender, rule_inputs
from experiments.measuring.timing import (
    Contender,
    LeftOut,
    attempt,
    device_bytes,
    device_ceilings,
    median_seconds,
    require_gpu,
)
from experiments.peers import Fla, FlaAtShape, Jla, load_fla, load_jla
from experiments.peers.jla import RULES as JLA_RULES
from experiments.peers.jla import jla_contender
from pallas_kernels import tiling
from pallas_kernels.blocks.decay import LOWEST_ANCHORED
from pallas_kernels.device import capability

TURN = 0.03
SHAPES = (
    LAYER,
    Shape(1, 8192, 96, 128),
    Shape(2, 16384, 16, 128),
    Shape(4, 2048, 16, 128),
    Shape(4, 4096, 64, 128),
    Shape(8, 2048, 32, 256),
    Shape(8, 1024, 8, 64),
)


class Ours(NamedTuple):
    """One of our contenders.

    Attributes:
      rule, implementation: what runs.
      solve: that field of the tiles, which are then those that a content gate has; None for the
        kernels' own choice of tiles.
      floor: promised of the log-decays; None for no promise.
    """

    rule: str
    implementation: str
    solve: str | None = None
    floor: float | None = None


OURS = {
    "gdn2 pallas": Ours("gdn2", "pallas"),
    "gdn2 pallas walk": Ours("gdn2", "pallas", "walk"),
    "gdn2 pallas, bounded": Ours("gdn2", "pallas", floor=LOWEST_ANCHORED),
    "carve pallas": Ours("carve", "pallas"),
    "carve pallas, bounded": Ours("carve", "pallas", floor=LOWEST_ANCHORED),
    "gdn2 chunked": Ours("gdn2", "chunked"),
    "carve chunked": Ours("carve", "chunked"),
}
FLA_RULES = ("gdn2", "kda")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the suite measures; `chunked` sits out shapes of more than `chunked_elements`."""

    shapes: tuple[Shape, ...] = SHAPES
    ours: Mapping[str, Ours] = dataclasses.field(default_factory=lambda: dict(OURS))
    dtype: str = "bfloat16"
    chunked_elements: int = LAYER.elements
    decode: DecodePlan | None = dataclasses.field(default_factory=DecodePlan)
    train: TrainPlan | None = dataclasses.field(default_factory=TrainPlan)
    turn_seconds: float = TURN

    def only(self, wanted: tuple[str, ...]) -> "Plan":
        """The parts whose names hold one of these texts; all of them if there is none.

        Raises:
          UserError: a text that no part's name holds.
        """
        names = [*(shape.label for shape in self.shapes), "decode", "train_step"]
        kept = kept_parts(wanted, names)
        return dataclasses.replace(
            self,
            shapes=tuple(shape for shape in self.shapes if shape.label in kept),
            decode=self.decode if "decode" in kept else None,
            train=self.train if "train_step" in kept else None,
        )


class Peers(NamedTuple):
    """Other projects' packages, or why each is not here."""

    fla: Fla | str
    jla: Jla | str

    @property
    def versions(self) -> dict[str, Any]:
        """The versions of each package; a sentence for one that is missing."""
        return {
            "flash-linear-attention": self.fla if isinstance(self.fla, str) else self.fla.versions,
            "jax-linear-attention": self.jla if isinstance(self.jla, str) else self.jla.versions,
        }


def gpu_suite(repeats: int, save: Callable[[dict[str, Any]], None], plan: Plan) -> dict[str, Any]:
    """All parts of a plan in one run on one GPU.

    Args:
      repeats: timed rounds.
      save: called with the figures so far after each part, so that a run cut short leaves them.
      plan: what is measured.

    Raises:
      UserError: no NVIDIA GPU is here.
    """
    require_gpu("--suite=gpu")
    peers = Peers(load_fla(), load_jla())
    for reason in (peers.fla, peers.jla):
        if isinstance(reason, str):
            print(reason)
    return measure(plan, repeats, peers, save, device_ceilings(repeats, plan.turn_seconds))


def measure(
    plan: Plan,
    repeats: int,
    peers: Peers,
    save: Callable[[dict[str, Any]], None],
    ceilings: dict[str, float],
) -> dict[str, Any]:
    """The suite's figures, printed as they come; targets last."""
    figures: dict[str, Any] = {
        "targets": [],
        "shapes": {},
        "ceilings": ceilings,
        "repeats": repeats,
        "turn_seconds": plan.turn_seconds,
        "dtype": f"{plan.dtype}, log-decay float32",
        "method": " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "peers": peers.versions,
    }
    print(
        f"copy {ceilings['bytes_per_second'] / 1e9:.0f} GB/s, "
        f"bf16 product {ceilings['flop_per_second'] / 1e12:.0f} TFLOP/s"
    )
    for shape in plan.shapes:
        part = measure_shape(shape, plan, repeats, peers, ceilings)
        figures["shapes"][shape.label] = part
        print_shape(shape, part)
        save(figures)
    if plan.decode is not None:
        copy_rate = ceilings["bytes_per_second"]
        part = measure_decode(plan.decode, copy_rate, repeats, plan.turn_seconds)
        figures["decode"] = part
        print_decode(part)
        save(figures)
    if plan.train is not None:
        made = attempt(functools.partial(measure_training, plan.train, repeats))
        figures["train_step"] = {"left_out": made} if isinstance(made, str) else made
        print_training(figures["train_step"])
    figures["targets"] = [target._asdict() | {"met": target.met} for target in targets(figures)]
    for target in targets(figures):
        print(target)
    return figures


def measure_shape(
    shape: Shape, plan: Plan, repeats: int, peers: Peers, ceilings: dict[str, float]
) -> dict[str, Any]:
    """Forward, and forward and backward, of all contenders at one shape."""
    x = rule_inputs(shape, plan.dtype)
    fla = FlaAtShape(peers.fla, x) if isinstance(peers.fla, Fla) else None
    made = make_all({**our_makers(shape, plan, x), **_peer_makers(x, peers, fla)})
    seconds = median_seconds(made.contenders, repeats, turn_seconds=plan.turn_seconds)
    part = {
        **shape_figures(shape, plan.dtype, seconds, rules(plan), ceilings),
        "peak_bytes": {name: c.peak_bytes for name, c in made.contenders.items()},
        "left_out": made.left_out,
    }
    if fla is not None:
        if "gdn2 pallas, forward" in made.contenders:
            output = made.contenders["gdn2 pallas, forward"]
            part["difference_from_fla_gdn2"] = fla.difference(
                "gdn2", output.compiled(*output.arguments)
            )
        part["notes"] = fla.notes
        made.contenders.clear()
        fla.close()
    return part


def rules(plan: Plan) -> dict[str, str]:
    """The rule of each contender whose least work is known."""
    peers = {"fla gdn2": "gdn2", "jla gdn2": "gdn2"}
    return {name: mine.rule for name, mine in plan.ours.items()} | peers


class Made(NamedTuple):
    """Contenders, and why the others are none."""

    contenders: dict[str, Contender]
    left_out: dict[str, str]


def make_all(makers: Mapping[str, Callable[[], Contender | str]]) -> Made:
    """Makes all it can; a maker that fails, or gives a reason instead, is left out."""
    made = Made({}, {})
    for name, make in makers.items():
        outcome = attempt(make)
        if isinstance(outcome, str):
            made.left_out[name] = outcome
        else:
            made.contenders[name] = outcome
    return made


def our_makers(
    shape: Shape, plan: Plan, x: dict[str, jax.Array]
) -> dict[str, Callable[[], Contender]]:
    """How each contender is made, under its name: "gdn2 pallas, forward"."""
    return {
        f"{name}, {way}": functools.partial(_make, shape, plan, x, mine, way != "forward")
        for way in DIRECTIONS
        for name, mine in plan.ours.items()
    }


def _peer_makers(
    x: dict[str, jax.Array], peers: Peers, fla: FlaAtShape | None
) -> dict[str, Callable[[], Contender | str]]:
    makers: dict[str, Callable[[], Contender | str]] = {}
    for way in DIRECTIONS:
        backward = way != "forward"
        for rule in FLA_RULES:
            makers[f"fla {rule}, {way}"] = (
                functools.partial(str, peers.fla)
                if fla is None
                else functools.partial(fla.contender, rule, backward)
            )
        for rule in JLA_RULES:
            makers[f"jla {rule}, {way}"] = (
                functools.partial(str, peers.jla)
                if isinstance(peers.jla, str)
                else functools.partial(jla_contender, peers.jla, x, rule, backward)
            )
    return makers


def compile_ours(
    shape: Shape, plan: Plan, x: Mapping[str, Any], mine: Ours, backward: bool
) -> Contender:
    """One of ours, compiled; `x` may be the inputs or their shapes.

    Raises:
      LeftOut: the plan leaves it out at this shape.
    """
    if mine.implementation == "chunked" and shape.elements > plan.chunked_elements:
        raise LeftOut(f"plain XLA sits out shapes above {plan.chunked_elements} numbers a tensor")
    options: dict[str, Any] = {}
    if mine.solve is not None:
        # CARVE's tiles: with them the arithmetic is CARVE's own, to the bit.
        device, size = jax.devices()[0].device_kind, shape.channels
        row = tiling.choose(
            plan.dtype, size, size, device, content=True, capability=capability() or 9.0
        )
        options["tiles"] = dataclasses.replace(row, solve=mine.solve)
    if mine.floor is not None:
        options["log_decay_floor"] = mine.floor
    return rule_contender(x, mine.rule, mine.implementation, backward, **options)


def _make(
    shape: Shape, plan: Plan, x: dict[str, jax.Array], mine: Ours, backward: bool
) -> Contender:
    if mine.floor is not None:
        lowest = float(x["log_decay"].min())  # the rules cannot check it under jit
        if lowest < mine.floor:
            raise LeftOut(f"a log-decay is {lowest:.1f}, below {mine.floor:g}")
    made = compile_ours(shape, plan, x, mine, backward)
    if made.peak_bytes > device_bytes() / 3:
        raise LeftOut(f"needs {made.peak_bytes / 1e9:.0f} GB, more than a third of the device")
    jax.block_until_ready(made.compiled(*made.arguments))
    return made
