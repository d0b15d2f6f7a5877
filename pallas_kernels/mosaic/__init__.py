"""Inter-chunk scans in Pallas's Mosaic GPU, for Hopper; the rest is the Triton room's.

    backend.py   what is asked of it, and why a call is refused; imports no Mosaic GPU
    scan.py      the launches: arrays to and from the kernels, in the shapes of `triton/scan.py` and
                 `triton/scan_backward.py`
    plain.py     the plain rule's kernel, whose inverses are known; plain_back.py that of its
                 backward pass (CARVE's backward scan is the Triton room's)
    gated.py     CARVE's kernel: the warpgroups that hold a state; gated_memory.py what it reads
                 and where that lies; solve.py the warpgroup that finds gate and inverse
    parts.py     what kernels are written with: shared memory, products, copies ahead

Mosaic GPU is imported when a scan is traced, so that JAX releases that cannot compile these kernels
still import the package.
"""
