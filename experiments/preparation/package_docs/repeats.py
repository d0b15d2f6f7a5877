"""Documents that nearly repeat others, found by MinHash."""

from collections.abc import Sequence

import tqdm

from carve_jax.errors import UserError

PERMUTATIONS = 128
WORDS = 5  # in a row, which two documents share or not
THRESHOLD = 0.5  # of such rows that two share, of those that either has: a near-repeat


def check_extra() -> None:
    """Raises UserError where the package is missing that finds near-repeats."""
    try:
        import datasketch  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--input=package_docs needs the package datasketch; install carve_jax with the extra "
            "text."
        ) from error


def near_repeats(texts: Sequence[str]) -> set[int]:
    """The numbers of the texts that nearly repeat others; of each two, the longer one is none.

    Source: Broder, "On the resemblance and containment of documents" (1997).
    """
    from datasketch import MinHash, MinHashLSH

    found = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    kept: dict[int, MinHash] = {}
    by_length = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    for index in tqdm.tqdm(by_length, unit="document", desc="near-repeats"):
        one = MinHash(num_perm=PERMUTATIONS)
        one.update_batch(_rows(texts[index]))
        if all(one.jaccard(kept[other]) < THRESHOLD for other in found.query(one)):
            found.insert(index, one)
            kept[index] = one
    return set(by_length) - kept.keys()


def _rows(text: str) -> list[bytes]:
    """Each row of words once."""
    words = text.lower().encode().split()
    count = max(1, len(words) - WORDS + 1)
    return sorted({b" ".join(words[start : start + WORDS]) for start in range(count)})
