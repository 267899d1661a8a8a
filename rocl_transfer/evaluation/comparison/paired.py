"""Statistics of pairs: the same samples under two models."""

import math
from collections.abc import Sequence


def tango_interval(only_first: int, only_second: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of the difference between paired proportions, second - first.

    The differences that a score test does not reject (Tango, Statistics in Medicine 17, 1998, 891-908); at difference 0 that test is McNemar's.
    It has a width also where no sample is discordant.

    Args:
        only_first: Samples that only the first gets right.
        only_second: Samples that only the second gets right.
        n: All samples, 1 or more.
        z: Quantile of the normal distribution.
    """
    return -_upper_limit(only_first, only_second, n, z), _upper_limit(only_second, only_first, n, z)


def _upper_limit(more: int, less: int, n: int, z: float) -> float:
    inside, outside = (more - less) / n, 1.0
    while inside < (middle := (inside + outside) / 2) < outside:
        if _score(more, less, n, middle) > -z:
            inside = middle
        else:
            outside = middle
    return outside


def _score(more: int, less: int, n: int, delta: float) -> float:
    """Tango's statistic: (more - less) / n minus ``delta``, in standard errors."""
    if delta < 0:
        return -_score(less, more, n, -delta)
    # q: the likeliest share of ``less`` given the difference, a root of 2n q^2 + linear q - constant, without cancellation.
    linear = (2 * n - more + less) * delta - more - less
    constant = less * delta * (1 - delta)
    root = math.sqrt(linear * linear + 8 * n * constant)
    q = (root - linear) / (4 * n) if linear <= 0 else 2 * constant / (root + linear)
    variance = n * (2 * q + delta * (1 - delta))
    distance = more - less - n * delta
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test: were as many to be expected in each of the two discordant counts?"""
    n, low = only_first + only_second, min(only_first, only_second)
    if n - 2 * low <= 1:
        return 1.0  # both tails hold everything
    log_largest = math.lgamma(n + 1) - math.lgamma(low + 1) - math.lgamma(n - low + 1) - n * math.log(2)
    tail = term = 1.0  # in units of the tail's largest term, which may be below what a float holds
    for k in range(low, 0, -1):
        term *= k / (n - k + 1)
        tail += term
        if term < 1e-17 * tail:
            break
    return min(1.0, 2 * math.exp(log_largest + math.log(tail)))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70)."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
