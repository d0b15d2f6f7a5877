"""The claims of the CARVE paper (arXiv 2606.27229), a file each, and what our results say of them.

A claim's file says what the paper says, what we test at our scale, and by which criterion we judge:
written and committed before the runs that are to answer it. The verdict is computed from the
results that are committed in experiments/results, and README.md here is made of it:

  python -m experiments.report --claims > experiments/claims/README.md
"""
