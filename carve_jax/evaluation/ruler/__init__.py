"""RULER's probes (`carve_jax.data.ruler`) put to a model, and the scores of its replies."""
