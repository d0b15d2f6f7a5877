"""Documents that nearly repeat others, found by MinHash."""

from collections.abc import Sequence

from carve_jax.data.sources.documents import Document
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


def drop_near_repeats(documents: Sequence[Document]) -> list[Document]:
    """Drops documents that nearly repeat others; longest first, the others stay, in their order.

    Source: Broder, "On the resemblance and containment of documents" (1997).
    """
    from datasketch import MinHash, MinHashLSH

    found = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    hashes: dict[int, MinHash] = {}
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i].text), i)):
        one = MinHash(num_perm=PERMUTATIONS)
        one.update_batch(_rows(documents[index].text))
        if all(one.jaccard(hashes[other]) < THRESHOLD for other in found.query(one)):
            found.insert(index, one)
            hashes[index] = one
    return [document for index, document in enumerate(documents) if index in hashes]


def _rows(text: bytes) -> list[bytes]:
    """Each row of words once."""
    words = text.lower().split()
    count = max(1, len(words) - WORDS + 1)
    return sorted({b" ".join(words[start : start + WORDS]) for start in range(count)})
