"""The runs of experiments.sweep: planned, held in one directory, and taken to their end."""
