"""The jaxtyping annotations of ops, mixers and model are true of what runs, call by call as traced.

In a process of its own, with jaxtyping's import hook, since wrong inputs must meet the ops' own
errors everywhere else.
"""

import subprocess
import sys

import pytest

from carve_jax import MIXERS

PROGRAM = """
import jax
import jax.numpy as jnp
import sys
from jaxtyping import install_import_hook

MIXERS = "base entry family gated_delta gate_projections gates layer mamba3 presets rwkv7 softmax"
ROOMS = ["carve_jax.ops", "carve_jax.model", "carve_jax.decoding", "carve_jax.generate"]
ROOMS += [f"carve_jax.mixers.{name}" for name in MIXERS.split()]  # changes.py has typing.Self

with install_import_hook("carve_jax.ops", "beartype.beartype"):
    import carve_jax
    from carve_jax.ops import attention, rotation, short_conv, trapezoid
    from carve_jax.ops.gated_delta import tiles

def of(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)

def check(rule, *arguments, **options):
    def total(*arguments):
        found = rule(*arguments, **options)
        floats = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(x.astype("float32").sum() for x in floats)
    places = [i for i, x in enumerate(arguments) if x.dtype != "int32"]
    jax.eval_shape(jax.grad(total, argnums=places), *arguments)

def inputs(length, dtype, key_gate, value_gate):
    key, value = of(2, length, 2, 8, dtype=dtype), of(2, length, 4, 16, dtype=dtype)
    write = of(2, length, 4, value_gate, dtype=dtype)
    gate = of(2, length, 2, key_gate, dtype=dtype)
    return key, key, value, of(2, length, 2, key_gate), gate, write

documents = of(2, 50, dtype="int32")
per_channel, per_head = ("float32", 8, 16), ("bfloat16", 1, 1)
for name, kinds in (("chunked", (per_channel, per_head)), ("recurrent", (per_head,))):
    for dtype, key_gate, value_gate in kinds:
        plain = inputs(50, dtype, key_gate, value_gate)
        check(carve_jax.gated_delta_rule, *plain, implementation=name, chunk_size=16)
        carve = (*inputs(50, dtype, 8, 1), of(4, 16, 3, dtype=dtype), of(4, 3, 8, dtype=dtype))
        for chunk, lag in ((16, 1), (24, 1), (16, 2)):
            options = {"implementation": name, "gate_chunk": chunk, "content_lag": lag}
            check(carve_jax.carve_rule, *carve, **options)
    def packed(documents, *arrays):
        return carve_jax.gated_delta_rule(*arrays, segment_ids=documents, implementation=name)
    check(packed, documents, *inputs(50, "float32", 8, 1))
    state = (of(2, 4, 8, 16), of(2, 4, 16), of(2, 4, 16), of(2, dtype="int32"))
    def continued(memory, content, partial_sum, position, *arrays):
        state = carve_jax.CarveState(memory, content, partial_sum, position)
        return carve_jax.carve_rule(*arrays, initial_state=state, implementation=name)
    check(continued, *state, *inputs(50, "float32", 8, 1), of(4, 16, 3), of(4, 3, 8))
check(carve_jax.carve_rule, *inputs(50, "float32", 8, 1), of(4, 16, 3), of(4, 3, 8),
      gate_chunk=24, implementation="triton")
check(short_conv.short_conv, of(2, 9, 8), of(4, 8))
check(attention.attention, of(2, 9, 4, 8), of(2, 9, 2, 8), of(2, 9, 2, 8), rope_theta=1e4)
check(rotation.cumulative_turns, of(2, 9, 3, 4))
mimo = (of(2, 9, 2, 3, 8), of(2, 9, 2, 3, 8), of(2, 9, 2, 3, 16))
check(trapezoid.trapezoidal_rule, *mimo, *[of(2, 9, 3)] * 3)

for mixer in sys.argv[1:]:
    grouped = 1 if mixer in ("gdn2", "carve") else None
    config = carve_jax.LMConfig(
        vocab_size=11, d_model=32, layers=1, pattern=(mixer,), mlp_dim=16, num_heads=2,
        num_key_heads=grouped, key_dim=8, value_dim=16, chunk_size=16,
    )
    model, tokens = carve_jax.LanguageModel(config), of(2, 20, dtype="int32")
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    def loss(params, tokens, documents):
        return model.apply({"params": params}, tokens, segment_ids=documents)[0].sum()
    jax.eval_shape(jax.grad(loss), params, tokens, tokens)
    cache = jax.eval_shape(lambda: model.init_cache(2, 20))
    jax.eval_shape(lambda *x: model.apply({"params": x[0]}, *x[1:]), params, tokens, cache)

try:
    tiles.decay_factors(jnp.zeros((16, 8), "bfloat16"))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    "mixers", [["carve"], pytest.param(sorted(MIXERS), marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_annotations_hold_and_are_looked_at(mixers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARVE_PALLAS", "interpret")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-c", PROGRAM, *mixers]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "TypeCheckError"
