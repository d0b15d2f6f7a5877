"""Run by test_context_parallel.py in a process of its own with eight CPU devices."""

import collections
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from carve_jax.ops.gated_delta import CarveState, carve_rule, gated_delta_rule
from carve_jax.ops.gated_delta.context_parallel import carve_rule_over, gated_delta_rule_over
from tests.ops.cases import Arrays, Case, make_arrays, segment_ids

CASES = {
    "gdn2": Case(4, 128, 2, 4, 16, 8, decay="resets"),
    "gdn2, segments": Case(4, 128, 2, 2, 16, 8, decay="head", segments=True),
    "carve": Case(4, 128, 2, 4, 16, 8, gate_chunk=16),
    "carve, segments": Case(4, 128, 2, 2, 16, 8, gate_chunk=16, segments=True),
}


def difference(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-30))


def rules(name: str, case: Case):
    """The rule on one device and on eight, of the same arrays."""
    segments, position = segment_ids(case), jnp.zeros((case.batch,), jnp.int32)
    options = {"implementation": "chunked"}
    carve = options | {"gate_chunk": case.gate_chunk}

    def alone(a: Arrays):
        if name.startswith("gdn2"):
            erase = jax.nn.sigmoid(a.erase_logits)
            start = {"initial_state": a.memory, "segment_ids": segments}
            return gated_delta_rule(*a[:4], erase, a.write, **start, **options)
        state = CarveState(*a[8:], position)
        return carve_rule(*a[:8], initial_state=state, segment_ids=segments, **carve)

    def shard(arrays, projections, state, segments):
        start = {"segment_ids": segments}
        if name.startswith("gdn2"):
            erase = jax.nn.sigmoid(arrays[4])
            inputs = (*arrays[:4], erase, arrays[5])
            start["initial_state"] = state[0]
            return gated_delta_rule_over("sequence", *inputs, **start, **options)
        start["initial_state"] = CarveState(*state, position)
        arrays = (*arrays, *projections)
        return carve_rule_over("sequence", *arrays, micro_batches=2, **start, **carve)

    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
    cut = P(None, "sequence")
    specs = ((cut,) * 6, P(), P(), None if segments is None else cut)
    over = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=(cut, P()), check_vma=False)
    return alone, lambda a: over(a[:6], a[6:8], a[8:], segments)


def measure(function, arrays: Arrays):
    def total(arrays: Arrays):
        output, state = function(arrays)
        floats = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(state)]
        return jnp.sin(3 * output).sum() + sum(jnp.cos(x).sum() for x in floats), (output, state)

    compiled = jax.jit(jax.grad(total, has_aux=True)).lower(arrays).compile()
    gradients, outputs = compiled(arrays)
    return jax.tree.leaves(outputs), gradients, compiled.as_text()


def main(*names: str) -> None:
    for name in names or CASES:
        case = CASES[name]
        arrays = Arrays(*(jnp.asarray(a, jnp.float32) for a in make_arrays(case)))
        alone, over = rules(name, case)
        outputs, gradients, _ = measure(alone, arrays)
        found, found_gradients, program = measure(over, arrays)
        sent = re.findall(
            r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(",
            program,
        )
        record = {
            "name": name,
            "outputs": max(map(difference, found, outputs)),
            "gradients": max(
                difference(a, b)
                for a, b in zip(found_gradients, gradients, strict=True)
                if np.abs(b).max() > 0
            ),
            "collectives": collections.Counter(sent),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
