"""GPU kernels of the gated delta rule.

    tiling.py, tiles.json   how the work is cut, by device, dtype and size
    device.py               where the kernels run; CARVE_PALLAS=interpret or compile
    blocks/                 mathematics of one tile, on arrays alone: any backend may call it
    backends.py, call.py    the rooms of sequence kernels by name, and what they are asked
    triton/                 the sequence kernels in Pallas, lowered through Triton
    mosaic/                 their forward scan in Mosaic GPU, taken where it is named alone
    decode/                 one token for many sequences, in Pallas and as a Triton kernel
    compiling/, aot.py      every shipped kernel compiled without a GPU, and what it will take
    selftest.py             the kernels against the plain recurrence, on the machine they run on;
                            reference.py that recurrence, verdicts.py what was found, on disk
    user_cache.py           the user's folder for what is kept between processes
    guard.py                the self-test before a GPU's first use; CARVE_SELFTEST=off

Words, as in the glossary of carve_jax (`carve_jax/shapes.py`):

    tile         C tokens of a head that one WY system covers (`Tiles.chunk`)
    gate chunk   L tokens under one content (CARVE); whole tiles, except that those past L are null
    span         64 tokens of a head, whole tiles: what one program computes where the work is
                 parallel over the sequence
    part         of the sequence, whole spans and gate chunks: its tiles exist at once
    scan         what carries the state over the tiles of a part in order, the inter-chunk scan of
                 the field. Launches, programs and `Tiles.solve` are recorded as "walk" and
                 "walk_back" in budgets, limits and dated results, and keep that name there
    block        of key or value channels, where a program has not all of them

Imports jax, and the numpy it brings, alone (compiling and decode/triton_step.py also triton, when
asked for); carve_jax.ops and experiments import it. Inside: blocks ← triton ← mosaic, decode ←
backends ← compiling ← aot, and backends ← selftest ← guard.
"""
