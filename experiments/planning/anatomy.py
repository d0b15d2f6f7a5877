"""What a compiled train step does, part by part: arithmetic, bytes and predicted time.

Each kernel of the program (`memory_traffic.kernels`) belongs to the part of the model that XLA's
metadata name it by: modules, named scopes, and what JAX writes there of differentiation and
rematerialisation. A fusion of several parts counts whole where its name puts it. A kernel takes the
longer of its bytes at the rate of a copy and its products at the rate of a product, and no less
than `LAUNCH`; one of our own what `kernel_times` predicts of it. Kernels follow each other without
gaps, and what is sent between devices hides behind none.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.planning.collectives import Collective
from experiments.planning.memory_traffic import Instruction, Kernel
from experiments.planning.rates import Rates

PARTS = (
    "projections", "MLP", "attention", "embedding, head and loss", "short convolutions",
    "gates, norms and residuals", "documents kept apart", "rule forward", "rule forward again",
    "rule backward", "optimizer", "copies, casts and transposes", "collectives", "other",
)  # fmt: skip
PASSES = ("forward", "again", "backward", "update")
LAUNCH = 1.5e-6
"""Seconds of the shortest kernels that were measured (a cast of a few numbers on an H100)."""

AGAIN = "rematted_computation"
_NAME = re.compile(r'op_name="([^"]*)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:]\s*[{\[]([^}\]]*)[}\]]')
_ARRAY = re.compile(r"\b([a-z]+\d+\w*)\[([\d,]*)\]")
_OUR_NAME = re.compile(r'\bname = "([^"]*)"')
_MIXER = re.compile(r"\blayer_\d+_(\w+)")
_SENT = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?")
LAYOUT = frozenset(
    {
        "parameter", "constant", "iota", "bitcast", "copy", "copy-start", "transpose", "reshape",
        "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "broadcast",
        "convert", "tuple", "get-tuple-element", "reverse",
    }
)  # fmt: skip
INDEX = 8  # bytes: of a number that says where something lies
# A part by what its name contains, the first that fits; a rule's gates are named within the rule.
SCOPES = (
    ("documents kept apart", re.compile(r"/isolated/")),
    ("attention", re.compile(r"/attention/")),
    ("short convolutions", re.compile(r"/short_conv/")),
    ("rule", re.compile(r"\._rule/(?!.*\._(gates|content_projections)/)")),
    ("MLP", re.compile(r"/mlp/")),
    ("embedding, head and loss", re.compile(r"/(embed|loss|head)/|jvp\(loss\)|jvp\(\)")),
)


class Piece(NamedTuple):
    """What one kernel, or one collective, does in a step, all its turns together.

    Attributes:
      part: of `PARTS`.
      pass_: of `PASSES`: "again" is what rematerialisation computes a second time.
      name: of the operation in the model, as JAX traced it; of a kernel of ours, its own.
      flops: of products of matrices; 0 for kernels of ours, whose products the text does not show.
      moved: bytes read and written.
      seconds: predicted.
      ours: a kernel of our own.
    """

    part: str
    pass_: str
    name: str
    flops: float
    moved: float
    seconds: float
    ours: bool = False


def dissect(
    kernels: Sequence[Kernel],
    sent: Sequence[Collective],
    rates: Rates,
    ours: Mapping[tuple[str, str, str], float],
) -> list[Piece]:
    """The pieces of a step.

    Args:
      kernels: of the program.
      sent: its collectives.
      rates: of the device.
      ours: seconds of our kernels in one pass through all layers, by mixer, "forward" or
        "backward", and name; a pass's launches take equal shares.

    Raises:
      KeyError: a kernel of ours without a time.
    """
    found = [_sending(each, rates) for each in sent]
    launches: Counter[tuple[str, str, str]] = Counter()
    for kernel in kernels:
        if kernel.ours:
            launches[_launched(kernel)] += kernel.turns
    for kernel in kernels:
        if kernel.ours:
            mixer, pass_, name = key = _launched(kernel)
            seconds = ours[mixer, "backward" if pass_ == "backward" else "forward", name]
            share = seconds * kernel.turns / launches[key]
            moved = kernel.turns * kernel.moved
            found.append(Piece(f"rule {_rule(pass_)}", pass_, name, 0.0, moved, share, ours=True))
        elif not _SENT.fullmatch(kernel.instruction.operation):
            found.append(_piece(kernel, rates))
    return found


def _sending(each: Collective, rates: Rates) -> Piece:
    sent = each.sent * each.turns
    return Piece("collectives", pass_of(each.name), each.name, 0.0, 0.0, sent / rates.sending)


def _launched(kernel: Kernel) -> tuple[str, str, str]:
    """The mixer, the pass and the name of a kernel of ours."""
    name, own = name_of(kernel), _OUR_NAME.search(kernel.instruction.line)
    mixer = _MIXER.search(name)
    called = own[1] if own else kernel.instruction.name
    return mixer[1] if mixer else "", pass_of(name), called


def _piece(kernel: Kernel, rates: Rates) -> Piece:
    name, flops, at_half = name_of(kernel), 0.0, 0.0
    for inner in kernel.inside:
        count, dtype = product_flops(inner, kernel.shapes)
        flops += count
        at_half += count if dtype == "f32" else 0.0  # TF32 multiplies half as fast
    work = (flops + at_half) / rates.flops
    seconds = kernel.turns * max(kernel.moved / rates.bandwidth, work, LAUNCH)
    part = part_of(name, flops > 0, kernel.inside)
    moved = kernel.turns * kernel.moved
    return Piece(part, pass_of(name), name, kernel.turns * flops, moved, seconds)


def name_of(kernel: Kernel) -> str:
    """The name that JAX gave: of a product in it, else its own, else what most in it have."""
    inner = [(each, match[1]) for each in kernel.inside if (match := _NAME.search(each.line))]
    for each, name in inner:
        if each.operation == "dot":
            return name
    own = _NAME.search(kernel.instruction.line)
    if own:
        return own[1]
    common = Counter(name for _, name in inner).most_common(1)
    return common[0][0] if common else ""


def pass_of(name: str) -> str:
    """The pass, of `PASSES`, by what JAX writes into names."""
    if AGAIN in name:
        return "again"
    if "transpose(" in name:
        return "backward"
    return "forward" if "jvp(" in name or not name else "update"


def part_of(name: str, product: bool, inside: Sequence[Instruction]) -> str:
    """The part, of `PARTS`, of what is no kernel of ours.

    Args:
      name: as JAX traced it.
      product: it multiplies matrices.
      inside: what it is made of.
    """
    moves = all(each.operation in LAYOUT or each.size <= INDEX for each in inside)
    if moves or name.endswith("dynamic_update_slice"):
        return "copies, casts and transposes"
    if pass_of(name) == "update":
        return "optimizer"
    for part, scope in SCOPES:
        if scope.search(name):
            return f"rule {_rule(pass_of(name))}" if part == "rule" else part
    if product:
        return "projections"
    return "gates, norms and residuals" if re.search(r"mixer|norm|layer_", name) else "other"


def _rule(pass_: str) -> str:
    return "forward again" if pass_ == "again" else pass_


def product_flops(each: Instruction, shapes: Mapping[str, str]) -> tuple[float, str]:
    """Floating-point operations of a product of matrices, and its operands' dtype; 0 of others."""
    contracted = _CONTRACTED.search(each.line)
    if each.operation not in ("dot", "custom-call") or contracted is None:
        return 0.0, ""
    result, left = (_ARRAY.search(text) for text in (each.shape, shapes.get(each.operands[0], "")))
    if result is None or left is None:
        return 0.0, ""
    sizes = [int(size) for size in left[2].split(",") if size]
    inner = math.prod(sizes[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
    outer = math.prod(int(size) for size in result[2].split(",") if size)
    return 2.0 * outer * inner, left[1]


def table_of_parts(pieces: Sequence[Piece]) -> dict[str, dict[str, float]]:
    """FLOPs, bytes and seconds of each part, and the seconds of its passes, in order of `PARTS`."""
    parts: dict[str, dict[str, float]] = {}
    for part in PARTS:
        own = [piece for piece in pieces if piece.part == part]
        if not own:
            continue
        passes = {p: sum(x.seconds for x in own if x.pass_ == p) for p in PASSES}
        parts[part] = {
            "flops": sum(piece.flops for piece in own),
            "bytes": sum(piece.moved for piece in own),
            "seconds": sum(piece.seconds for piece in own),
            **{f"seconds {name}": value for name, value in passes.items() if value},
        }
    return parts


def done_twice(pieces: Sequence[Piece]) -> dict[str, float]:
    """Seconds of what has been computed before: by rematerialisation, by part, and by the rule's
    backward pass, which finds scores and states again."""
    twice: dict[str, float] = {}
    forward = {piece.name for piece in pieces if piece.ours and piece.part == "rule forward"}
    for piece in pieces:
        part = piece.part
        if piece.ours and part == "rule backward" and piece.name in forward:
            part = "inside rule backward: scores and states"
        elif piece.pass_ != "again":
            continue
        twice[part] = twice.get(part, 0.0) + piece.seconds
    return dict(sorted(twice.items(), key=lambda item: -item[1]))


def longest(pieces: Sequence[Piece], most: int) -> list[dict[str, object]]:
    """The names that take longest, of each part and pass, with their seconds."""
    seconds: dict[tuple[str, str, str], float] = {}
    for piece in pieces:
        key = piece.part, piece.pass_, _short(piece.name)
        seconds[key] = seconds.get(key, 0.0) + piece.seconds
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [
        {"part": part, "pass": pass_, "name": name, "seconds": value}
        for (part, pass_, name), value in ordered[:most]
    ]


def _short(name: str) -> str:
    """A name without what is said of it elsewhere: differentiation, loops, rematerialisation."""
    parts = re.sub(r"\b(transpose|jvp|jit)\(|\)", "", name).split("/")
    dull = {
        "",
        "train_step",
        "while",
        "body",
        "eval_jaxpr",
        "blocks",
        "checkpoint",
        "rematted_computation",
    }
    return "/".join(p for p in parts if p not in dull and not p.startswith("LanguageModel."))
