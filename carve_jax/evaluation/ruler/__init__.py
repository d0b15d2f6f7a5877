"""RULER's long-context probes (Hsieh et al. 2024, arXiv 2404.06654), made here from a seed.

Text alone, no model: `run` has the part that asks one.
"""

from carve_jax.evaluation.ruler.haystack import Haystack
from carve_jax.evaluation.ruler.probes import PROBES, RULER, Example, Probe, example, examples
from carve_jax.evaluation.ruler.score import score

__all__ = ["PROBES", "RULER", "Example", "Haystack", "Probe", "example", "examples", "score"]
