"""The ops: pure functions with every gradient. Imports pallas_kernels; imported by the mixers."""
