"""Damages every kind of file that the project reads, and says what came of it.

Of each example is demanded the right result (or a repair that is said), or one sentence and exit
code 2: never another exception, never a wait without end, never another value without a word, and
nothing that a file says is run, unpickled, or opened outside of its folder.

CI tries the same few examples of each kind every time (`test_fuzz.py`). To try others, and many:

    python -m tests.fuzz [--seconds=900 | --examples=2000] [--only=KIND,…] [--seed=N]

It prints the same table of counts, and for each fault the smallest example found, as it would stand
in the `examples` of its kind: add it there with the reader's repair.

A new kind of file is a `Kind` in `tests/fuzz/kinds/`; `test_reads.py` fails for code that reads
files and is in no kind.
"""
