"""The decode step: one token for many sequences. Imports jax alone; triton_step.py also triton.

step.py         the step, in Pallas; dispatches to triton_step.py on request
step_sizes.py   sizes, tiles and checks, shared with the ahead-of-time catalogue
triton_step.py  the same step as an official Triton kernel, through jax-triton
"""
