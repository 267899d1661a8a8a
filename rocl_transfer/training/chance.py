"""What a count of right answers proves: intervals, what guessing gives, and how many images a verdict needs."""

import math
from collections.abc import Sequence

# Fewer images prove nothing. One answer for all of so many is no accident: a model right on 7 of 10 images of two classes gives it once in 250 times.
FEWEST = 8
_ONE_SIDED = 1.644854  # quantile of the normal distribution: 95 %


def wilson_interval(right: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927), which stays sensible near 0 and 1.

    Args:
        right: How many of ``n`` were right.
        n: More than 0.
        z: Quantile of the normal distribution.
    """
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)


def worth(counts: Sequence[int]) -> float:
    """How many images of equally large classes tell as much of the mean over the classes as these do.

    Three of one class beside 397 of another are worth 12: the mean's variance is that of the small class.

    Args:
        counts: Images of each class that has any.
    """
    return len(counts) ** 2 / sum(1 / count for count in counts)


def could_have_learned(share: float, n: float, classes: int) -> bool:
    """Whether ``n`` images of which a ``share`` was right leave it open (95 %, one-sided) that the model has learned something.

    To have learned something is twice what guessing gives, or a quarter of the way from there to no mistake, whichever is less.
    """
    chance = 1 / classes
    learned = min(2 * chance, chance + (1 - chance) / 4)
    return n < FEWEST or wilson_interval(share * n, n, _ONE_SIDED)[1] >= learned


def images_needed(classes: int) -> int:
    """The fewest images on which accuracy at chance proves that nothing was learned: 41 of 2 classes, 44 of 10, about 530 of 100."""
    n = 1
    while could_have_learned(1 / classes, n, classes):
        n += max(1, n // 100)
    return n
