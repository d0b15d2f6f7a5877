"""GPU kernels of the gated delta rule (Pallas, lowered through Triton).

Imports jax alone; carve_jax.ops alone imports it. No kernel has landed yet.
"""
