"""Sweeps, a small file each: `python -m experiments.sweep --config=configs/sweeps/NAME.py`."""
