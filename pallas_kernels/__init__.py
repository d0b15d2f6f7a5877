"""GPU kernels of the gated delta rule: Pallas, lowered through Triton.

    tiling.py, tiles.json   how the work is cut, by device, dtype and size
    wy.py                   mathematics of one tile, on arrays alone
    plan.py                 what the sequence kernels share: plan, operands, views
    score.py                parallel over tiles: decay sums, scores, inverse
    forward.py backward.py  the walks along the sequence
    gradients.py            parallel over tiles: gradients of the inputs
    op.py                   the kernels in order, as one differentiable operation
    step.py triton_step.py  one token for many sequences, in Pallas and as a Triton kernel
    device.py               where the kernels run; CARVE_PALLAS=interpret or compile
    aot.py catalogue.py     compiles every shipped kernel without a GPU

Imports jax alone (triton_step.py and aot_compile.py also triton, when asked for); carve_jax.ops and
experiments import it.
"""
