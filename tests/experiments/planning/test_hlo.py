"""What the text of a compiled program says of its collectives and its memory traffic."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from carve_jax.sharding import make_mesh
from experiments.planning.collectives import collectives
from experiments.planning.memory_traffic import traffic

PROGRAM = """HloModule jit_step, is_scheduled=true

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

%inner (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %part = f32[2,16]{1,0} reduce-scatter(%grad), replica_groups=[2,4]<=[8], to_apply=%sum
}

%outer (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %start = (bf16[2,16]{1,0}, /*index=1*/bf16[8,16]{1,0}) all-gather-start(%weights), \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, metadata={op_name="jit(step)/gathered"}
  %done = bf16[8,16]{1,0} all-gather-done(%start)
  %while.2 = (s32[], f32[8,16]) while(%tuple), condition=%goes_on, body=%inner, \
backend_config={"known_trip_count":{"n":"5"}}
}

%never (x: f32[8]) -> f32[8] {
  %lost = f32[8] all-reduce(%x), replica_groups={}, to_apply=%sum
}

ENTRY %main (x: f32[8,16]) -> f32[] {
  %while.1 = (s32[], f32[8,16]) while(%tuple), condition=%goes_on, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %total = f32[100]{0} all-reduce-start(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
  ROOT %moved = (f32[6]{0}, f32[6]{0}, u32[], u32[]) all-to-all(%y), replica_groups={}
}
"""


def test_collectives_count_as_often_as_their_loops_turn():
    found = collectives(PROGRAM, 8)
    assert [(c.kind, c.turns, c.devices) for c in found] == [
        ("reduce-scatter", 15, 4),
        ("all-gather", 3, 4),
        ("all-reduce", 1, 2),
        ("all-to-all", 1, 8),
    ]
    assert found[0].sent == 3 / 4 * (4 * 2 * 16 * 4)  # of the whole operand
    assert found[1].sent == 3 / 4 * (8 * 16 * 2)  # of the whole result
    assert found[2].sent == 2 * 1 / 2 * 400
    assert found[3].sent == 7 / 8 * (2 * 6 * 4 + 2 * 4)
    assert found[1].name == "jit(step)/gathered"


def test_collectives_of_a_program_that_xla_compiled():
    mesh = make_mesh({"data": 2})

    def step(x):
        def turn(carry, _):
            return carry + jax.lax.psum(jnp.sin(carry), "data"), None

        return jax.lax.scan(turn, x, None, length=3)[0]

    spec = PartitionSpec("data")
    cut = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    text = jax.jit(cut).lower(jnp.zeros((8, 16))).compile().as_text()
    [found] = collectives(text, 2)
    assert (found.kind, found.turns, found.devices) == ("all-reduce", 3, 2)
    assert found.sent == 2 * 1 / 2 * (4 * 16 * 4)


SCHEDULED = """HloModule jit_step, is_scheduled=true

%sliced (p0: f32[3,8], p1: s32[]) -> f32[8] {
  %p0 = f32[3,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8}
  ROOT %row = f32[8]{0} bitcast(%slice)
}

%stacked (q0: bf16[3,8], q1: bf16[1,8], q2: s32[]) -> bf16[3,8] {
  %q0 = bf16[3,8]{1,0} parameter(0)
  %q1 = bf16[1,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = bf16[3,8]{1,0} dynamic-update-slice(%q0, %q1, %q2)
}

%turn (carry: (s32[], f32[3,8])) -> (s32[], f32[3,8]) {
  %carry = (s32[], f32[3,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %all = f32[3,8]{1,0} get-tuple-element(%carry), index=1
  %one = f32[8]{0} fusion(%all, %i), kind=kLoop, calls=%sliced
  %half = bf16[1,8]{1,0} convert(%one)
  %kept = bf16[3,8]{1,0} fusion(%half3, %half, %i), kind=kLoop, calls=%stacked
  %rule = f32[3,8]{1,0} custom-call(%all), metadata={op_name="jit(step)/pallas_call"}
}

ENTRY %main (x: f32[3,8]) -> f32[3,8] {
  %x = f32[3,8]{1,0} parameter(0)
  %while = (s32[], f32[3,8]{1,0}) while(%tuple), condition=%goes_on, body=%turn, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %product = f32[3,8]{1,0} multiply(%x, %x)
}
"""


def test_traffic_counts_slices_as_slices_and_no_kernel_of_ours():
    sliced = 8 * 4 + 4 + 8 * 4  # read, with where it starts; written
    converted = 8 * 4 + 8 * 2
    stacked = 8 * 2 + 4 + 8 * 2
    assert traffic(SCHEDULED) == 3 * (sliced + converted + stacked) + 3 * (3 * 8 * 4)
