"""RULER's long-context probes (Hsieh et al. 2024, arXiv 2404.06654), made here from a seed.

Text alone, no model: `carve_jax.evaluation.ruler` puts them to one and scores its replies.
"""

from carve_jax.data.ruler.haystack import Haystack
from carve_jax.data.ruler.probes import PROBES, RULER, Example, Probe, example, examples

__all__ = ["PROBES", "RULER", "Example", "Haystack", "Probe", "example", "examples"]
