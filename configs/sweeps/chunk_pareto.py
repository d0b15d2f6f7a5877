"""What CARVE's gate chunk L costs and buys: quality against throughput and memory.

L changes what the model computes, the tile (`chunk_size`) only how fast; every L runs with two
tiles, GDN-2 beside them. Times are worth something only if nothing else runs: --jobs=1.

Command: python -m experiments.sweep --config=configs/sweeps/chunk_pareto.py --workdir=DIR --jobs=1
At scale: for every I below what --count prints,
  python -m experiments.sweep --config=configs/sweeps/chunk_pareto.py --workdir=DIR --index=I
      --base=configs/carve_100m.py --set.data.path=TOKENS
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

SPEED = {"name": "tokens_per_second", "better": "higher", "title": "training tokens per second"}
TILES = (16, 64)


def get_config() -> ConfigDict:
    """Ten variants, one task in rows of 512 tokens, three seeds."""
    text = parts.text()
    text.config.update({"sequence_length": 512, "batch_size": 4, "log_every": 50})
    text.metrics = (*text.metrics, SPEED)
    return parts.sweep(
        "chunk_pareto",
        "Which gate chunk L gives most quality for its time and memory?",
        baseline="gdn2_tile64",
        tasks={"text": text},
        axes=[
            parts.axis(
                "gate_chunk",
                {**parts.mixer("gdn2", "GDN-2"), "value": 0},
                *(
                    {
                        **parts.mixer("carve", f"L = {n}", gates={"gate_chunk": n}),
                        "label": f"L{n}",
                        "value": n,
                    }
                    for n in (16, 32, 64, 128)
                ),
            ),
            parts.axis(
                "chunk_size",
                *(parts.value(f"tile{n}", f"tile {n}", {"model.chunk_size": n}, n) for n in TILES),
            ),
        ],
        seeds=(0, 1, 2),
    )
