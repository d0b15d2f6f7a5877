"""From text to pieces of work to token files, for experiments.prepare_data."""
