"""How much filler makes a prompt of so many tokens."""

from collections.abc import Callable

_FIRST_STEP = 256  # more filler than the least, to learn what it costs


def fit(count: Callable[[int], int], budget: int, least: int, most: int) -> int:
    """An amount of filler that fills the budget, found in few counts.

    Args:
      count: tokens of the prompt with so much filler; rises with it, but for the single tokens
        that a longer text may save.
      budget: most tokens, at least `count(least)`.
      least: amount below which there is no prompt.
      most: the largest amount there is.

    Returns:
      An amount that makes exactly `budget` tokens, where the search meets one; else one that makes
      fewer while the next makes too many, or is the largest.
    """
    low, high = least, most + 1
    spare = budget - count(least)  # tokens that the low amount leaves free
    excess = 0  # tokens that the high amount has too many, once it is known
    guess, tries = min(low + _FIRST_STEP, most), 0
    while spare > 0 and high - low > 1:
        over = count(guess) - budget
        before = low, spare
        if over <= 0:
            low, spare = guess, -over
        else:
            high, excess = guess, over
        tries += 1
        if excess:
            # Along the line between the two ends, which may be far from straight: else by halves.
            share = spare / (spare + excess) if tries % 3 else 0.5
            guess = low + int(share * (high - low))
        else:
            cost = max(before[1] - spare, 1) / (low - before[0])
            guess = low + int(spare / cost)
        guess = min(max(guess, low + 1), high - 1)
    return low
