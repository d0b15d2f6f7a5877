"""The sequence kernels in Pallas, lowered through Triton. Imports blocks, tiling and device.

ptx.py          elementwise work as single instructions, each beside its plain form
plan.py         what the kernels share: plan, operands, views
span.py         parallel over spans: decayed tiles, scores, inverse
scan.py         inter-chunk scan, first token to last; scan_backward.py, last to first
solve.py        (I + T)⁻¹ inside a scan; ptx_scan.py, the scans' elementwise work
pairs.py        parallel over spans: gradients of scores and system, of v and w
gradients.py    parallel over spans: gradients of q, k, g, b; ptx_gradients.py, its elementwise work
op.py           the kernels in order, as one differentiable operation
"""
