"""Commands, `carve-jax NAME` or from the root `python -m experiments.NAME`, and their wings.

No command imports another.

    __main__.py      the command `carve-jax`, which runs the others from any folder
    cli.py           what all commands share: flags, configs, errors in one sentence
    help_pages/      what `--help` prints: flags, a config's fields, examples
    measuring/       fair timing, calls of the rule, its floors, memory, time by kernel
    benchmarks/      the suites of `benchmark`, the tile search included
    peers/           other projects' kernels as contenders
    planning/        what a model or a run needs and costs, compiled for GPUs that are not there
    preparation/     from text to token files
    sweeps/          the runs of `sweep`: planned, stored, taken to their end
    reporting/       what a sweep shows: statistics, figures, Markdown and HTML
    claims/          the paper's claims, a file each, judged by the committed results
    evaluating/      the tasks of `evaluate` and the record of their results
    generating/      text and saved states of `generate`
    fault_injection/ the kills of `faults` and what is compared after them
    theory/          the paper's claims as experiments, a command of its own
    rented_gpu/      nine minutes on a rented GPU, a command of its own
    launch/, notebooks/, results/   scripts for clusters, a notebook, dated records

Which wing may import which is drawn in tests/test_imports.py.
"""
