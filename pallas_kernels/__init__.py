"""GPU kernels of the gated delta rule.

    tiling.py, tiles.json   how the work is cut, by device, dtype and size
    device.py               where the kernels run; CARVE_PALLAS=interpret or compile
    blocks/                 mathematics of one tile, on arrays alone: any backend may call it
    backends.py, call.py    the rooms of sequence kernels by name, and what they are asked
    triton/                 the sequence kernels in Pallas, lowered through Triton
    mosaic/                 some of their scans in Mosaic GPU, taken where they are named alone
    decode/                 one token for many sequences, in Pallas and as a Triton kernel
    compiling/, aot.py      every shipped kernel compiled without a GPU, and what it will take
    selftest.py             the kernels against the plain recurrence, on the machine they run on;
                            reference.py that recurrence, verdicts.py what was found, on disk
    user_cache.py           the user's folder for what is kept between processes
    guard.py                the self-test before a GPU's first use; CARVE_SELFTEST=off

Words (tile, gate chunk, span, part, scan, block, walk) are those of `carve_jax/shapes.py`.

Imports jax, and the numpy it brings, alone (compiling and decode/triton_step.py also triton, when
asked for); carve_jax.ops and experiments import it. Inside: blocks ← triton ← mosaic, decode ←
backends ← compiling ← aot, and backends ← selftest ← guard.
"""
