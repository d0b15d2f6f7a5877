"""Which gate does what: each of CARVE's changes to GDN-2 alone and together, and coarser gates.

CARVE changes three things in GDN-2: the erase gate sees content (`content`), the write gate is one
number per head (`write_scalar`), and both erase on the key axis alone, as GDN-2 does already; a
value-axis erase is an op of the theory and no mixer's option, so it has no variant. The
others make a gate of GDN-2 scalar, as in table 5 of arXiv 2605.22791: erase, erase and write, both
as one (KDA's gates in GDN-2's layer), or decay.

Command: python -m experiments.sweep --config=configs/sweeps/gates.py --workdir=DIR
Duration: 80 runs, 2.1 hours of training, two at a time on two busy cores (2026-11-25).
At scale: for every I below what --count prints,
  python -m experiments.sweep --config=configs/sweeps/gates.py --workdir=DIR --index=I
      --base=configs/gdn2_100m.py --set.data.path=TOKENS
"""

from ml_collections import ConfigDict

from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Eight variants of one shape, two tasks, five seeds."""

    def changed(label: str, title: str, **gates: str | bool) -> dict[str, object]:
        return {**parts.mixer("gdn2", title, gates=gates), "label": label, "value": label}

    return parts.sweep(
        "gates",
        "Which of the gates' changes from GDN-2 to CARVE helps, and which gate needs its channels?",
        baseline="gdn2",
        tasks={"text": parts.text(), "overwriting": parts.overwriting()},
        axes=[
            parts.axis(
                "gates",
                parts.mixer("gdn2", "GDN-2"),
                changed("content", "GDN-2 + content", content=True),
                changed("write_scalar", "GDN-2, scalar write", write="scalar"),
                parts.mixer("carve", "CARVE (content, scalar write)"),
                changed("erase_scalar", "GDN-2, scalar erase", erase="scalar"),
                changed(
                    "both_scalar", "GDN-2, scalar erase and write", erase="scalar", write="scalar"
                ),
                changed("tied", "GDN-2, one scalar for both", erase="scalar", write="tied"),
                changed("decay_scalar", "GDN-2, scalar decay", decay="scalar"),
            )
        ],
    )
