"""The suites of experiments.benchmark, each a module of its own."""
