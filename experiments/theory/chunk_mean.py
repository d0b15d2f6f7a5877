"""How far the mean of L outputs, which the content gate reads, lies from their long-run mean.

For stationary outputs with autocorrelations ρ the mean of L deviates by σ √(τ/L), τ = 1 + 2 Σ ρ,
once L is far above τ; below, chunks are not independent of themselves and the decline is slower.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from carve_jax.data.sources.stdlib import stdlib_documents
from experiments.theory import small_models
from experiments.theory.figures import INK, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number

MIXER = "carve"
GATE_CHUNK = 64
TOLERANCE = 0.05


def variances(series: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Variance of chunk means over that of single values, [rows, lengths].

    Args:
      series: [rows, T, channels].
    """
    found = []
    for length in lengths:
        count = series.shape[1] // length
        means = series[:, : count * length].reshape(len(series), count, length, -1).mean(2)
        found.append(means.var(axis=1, ddof=1).sum(-1))
    return np.stack(found, axis=1) / series.var(axis=1, ddof=1).sum(-1)[:, None]


def slope(lengths: Sequence[int], variance: np.ndarray) -> float:
    """Slope of log deviation over log length, of the mean over rows."""
    return float(np.polyfit(np.log(lengths), 0.5 * np.log(variance.mean(0)), 1)[0])


def interval(lengths: Sequence[int], variance: np.ndarray, draws: int = 500) -> np.ndarray:
    """95% interval of the slope by drawing rows again, seed 0."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(variance), size=(draws, len(variance)))
    return np.quantile([slope(lengths, variance[rows]) for rows in chosen], [0.025, 0.975])


def text_rows(rows: int, tokens: int) -> np.ndarray:
    """Bytes of Python's language reference, cut into rows."""
    text = b"".join(document.text for document in stdlib_documents(("topics",)))
    return np.frombuffer(text[: rows * tokens], np.uint8).reshape(rows, tokens).astype(np.int32)


def all_series(rows: int, tokens: int, steps: int) -> dict[str, np.ndarray]:
    """Outputs [rows, T, channels] of the first layer, the first eighth of the row left out."""
    model, initial, trained = small_models.train(small_models.text_config(MIXER, steps), steps)
    text = text_rows(rows, tokens)
    shuffled = np.random.default_rng(0).permutation(text.ravel()).reshape(text.shape)
    noise = jax.random.normal(jax.random.key(0), (rows, tokens, 32))
    series = {"white noise, no layer": np.asarray(noise)}
    ages = {"initialised": initial, "trained": trained} if steps else {"initialised": initial}
    for name, params in ages.items():
        for kind, inputs in (("bytes in random order", shuffled), ("text", text)):
            series[f"{kind}, {name}"] = small_models.first_outputs(
                model, params, jnp.asarray(inputs)
            )
    return {
        name: x.reshape(rows, tokens, -1)[:, tokens // 8 :].astype(np.float64)
        for name, x in series.items()
    }


def measure(quick: bool) -> Finding:
    """Deviations by length, and their slopes over the lengths about the default gate chunk."""
    rows, tokens, steps = (6, 512, 0) if quick else (12, 4096, 40)
    lengths = [4, 8, 16, 32] if quick else [2**i for i in range(1, 10)]
    fitted = [length for length in lengths if 16 <= length <= 256]
    by_name = {name: variances(x, lengths) for name, x in all_series(rows, tokens, steps).items()}
    kept = [lengths.index(length) for length in fitted]
    slopes = {name: slope(fitted, v[:, kept]) for name, v in by_name.items()}
    intervals = {name: interval(fitted, v[:, kept]) for name, v in by_name.items()}
    at = min(lengths, key=lambda length: abs(length - GATE_CHUNK))
    deviation = {name: np.sqrt(v.mean(0)) for name, v in by_name.items()}
    at_chunk = {name: float(d[lengths.index(at)]) for name, d in deviation.items()}
    last = list(slopes)[-1]
    worst = max(slopes, key=lambda name: slopes[name])
    times = {name: at * value**2 for name, value in at_chunk.items()}
    checks = [
        Check(
            f"slope over L {fitted[0]} to {fitted[-1]}, {name}",
            value,
            at_least=-0.5 - 2 * TOLERANCE,
            at_most=-0.5 + TOLERANCE,
            edge="text" in name,
        )
        for name, value in slopes.items()
    ]
    return Finding(
        title="The content is a mean that settles as 1/√L",
        found=f"The mean of {at} outputs is off by {at_chunk[last]:.2f} σ "
        f"({last}) where 1/√L says {at**-0.5:.2f}; slowest: "
        f"L^({slopes[worst]:.2f}), {worst}",
        claim="The content m_c, a mean over L outputs, deviates from the long-run mean of the "
        "outputs as 1/√L: the slope of log deviation over log L is -0.5, on tokens that are "
        "independent of one another (core) and on text (edge).",
        setup=f"first layer of {MIXER}, d 64, 2 heads of K=V=32, at initialisation and after "
        f"{steps} steps on Python's language reference; {rows} rows of {tokens} bytes, those after "
        f"an eighth; slope from 16 to 256 tokens; intervals by drawing rows again; seed 0",
        checks=tuple(checks),
        numbers=(
            *(
                Number(f"slope, {name}: {end} of 95%", float(intervals[name][i]), "")
                for name in slopes
                for i, end in enumerate(("low", "high"))
            ),
            *(
                Number(f"deviation of the mean of {at}, {name}", value, "standard deviations")
                for name, value in at_chunk.items()
            ),
            *(
                Number(f"tokens that count as one, {name}", value, "tokens")
                for name, value in times.items()
            ),
        ),
        curves={"lengths": lengths, "deviation": deviation, "slopes": slopes},
    )


def draw(figure: Figure, finding: Finding) -> None:
    """Deviation by length, with the line of 1/√L."""
    (axes,) = panels(figure, 1, lines=6)
    lengths = np.array(finding.curves["lengths"])
    deviations = finding.curves["deviation"]
    for index, (name, deviation) in enumerate(deviations.items()):
        slope_ = finding.curves["slopes"][name]
        look = style(index, of=len(deviations))
        axes.plot(lengths, deviation, label=f"{name}: slope {slope_:.2f}", **look)
    axes.plot(lengths, lengths**-0.5, ":", color=INK, label="1/√L")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    legend(axes, columns=1)
    label(axes, "L, tokens", "deviation of the mean,\nin σ of an output")


EXPERIMENT = Experiment(measure, draw)
