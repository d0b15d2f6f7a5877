"""Commands, run from the repository root: `python -m experiments.train --help`."""
