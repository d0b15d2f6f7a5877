"""GPUs that a run may be planned for, as their maker describes them.

Sources: NVIDIA's datasheets of the A100 (80 GB, SXM), H100 (SXM), H200 (SXM) and HGX B200, for
arithmetic (`carve_jax.training.reports.utilisation`), bandwidth, NVLink and the network of their
DGX machines; what a program may see of the memory, and of the chip, from XLA's descriptions of them
(openxla/xla, xla/backends/gpu/target_config/specs).
"""

from typing import NamedTuple

from carve_jax.errors import UserError
from carve_jax.training.reports.utilisation import peak_flops
from carve_jax.training.settings import nearest

MACHINE = 8
"""GPUs that NVLink joins in one machine."""


class Chip(NamedTuple):
    """One GPU.

    Attributes:
      kind: what JAX calls it.
      memory: bytes.
      bandwidth: of its memory, in bytes per second.
      nvlink: bytes per second that it sends to the other GPUs of its machine, while it receives as
        many.
      network: bytes per second that it sends to other machines, while it receives as many.
      compiles_as: the chip whose programs stand for its own; itself where XLA compiles for it.
    """

    kind: str
    memory: int
    bandwidth: float
    nvlink: float
    network: float
    compiles_as: str

    @property
    def flops(self) -> float:
        """Floating-point operations per second in dense bfloat16, by the datasheet."""
        found = peak_flops(self.kind)
        assert found is not None, self.kind
        return found


# The kernels' tiles are those of the chip that compiles, whose shared memory these two have.
CHIPS = {
    "a100-80": Chip("NVIDIA A100-SXM4-80GB", 85_100_068_864, 2.039e12, 300e9, 25e9, "h100"),
    "h100": Chip("NVIDIA H100 80GB HBM3", 84_942_979_072, 3.35e12, 450e9, 50e9, "h100"),
    "h200": Chip("NVIDIA H200", 151_397_597_184, 4.8e12, 450e9, 50e9, "h200"),
    "b200": Chip("NVIDIA B200", 191_514_411_008, 8e12, 900e9, 50e9, "h100"),
}


def find_chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
      UserError: there is none; the nearest is named.
    """
    if name not in CHIPS:
        near = nearest(name.lower(), CHIPS)
        raise UserError(f"--chip={name}: no such chip is known; {near}")
    return CHIPS[name]


def target_config(chip: Chip) -> str:
    """What XLA is told of an H100 or H200 to compile for it."""
    return f"""
platform_name: "CUDA"
device_description_str: "{chip.kind}"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: 52428800
  device_memory_size: {chip.memory}
}}
"""
