"""ejkernel (JAX; scalar decay and β), the peer of the cpu suite."""

from experiments.measuring.rule_calls import TILE, Shape, rule_inputs
from experiments.measuring.timing import Contender, contender, with_gradients


def ejkernel(shape: Shape) -> Contender | str:
    """ejkernel's gated delta rule (XLA, scalar decay and β), or why it is not here."""
    try:
        from ejkernel.kernels._xla.gated_delta_rule import gated_delta_rule as peer
    except ImportError as error:
        return f"not installed ({error.name}): pip install -e '.[peers]'"
    x = rule_inputs(shape)

    def function(query, key, value, beta, decay):
        return peer(query, key, value, beta, decay, chunk_size=TILE, use_qk_l2norm=False)[0]

    gates = (x["head_write"][..., 0], x["log_decay"][..., 0])
    both = with_gradients(function, x["cotangent"])
    return contender(both, x["query"], x["key"], x["value"], *gates)
