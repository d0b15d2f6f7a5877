"""Mathematics of one tile as functions of arrays; imports jax alone, imported by every backend."""
