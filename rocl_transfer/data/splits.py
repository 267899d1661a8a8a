"""Images chosen in proportion to their classes: held out of a training split, or evaluated out of a large one."""

import numpy as np
import torch
from torch import Tensor


def stratified_cut(labels: np.ndarray | None, count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``fraction`` of ``count`` images, rounded up, each class in proportion; a class keeps at least one image.

    Args:
        labels: (count,) integers, or None for a cut without strata.
        count: Number of images.
        fraction: Share held out, in [0, 1).
        seed: Of the cut alone.

    Returns:
        Rising indices of the images kept, and of those held out.
    """
    rng = np.random.default_rng(seed)
    strata = np.zeros(count, dtype=np.int64) if labels is None else labels
    order = rng.permutation(count)
    classes, sizes = np.unique(strata, return_counts=True)
    exact = sizes * fraction
    quota = np.floor(exact).astype(np.int64)
    missing = int(np.ceil(count * fraction - 1e-9)) - int(quota.sum())
    # Largest remainders first; among equal ones the order of the classes.
    for c in np.argsort(-(exact - quota), kind="stable")[: max(missing, 0)]:
        quota[c] += 1
    quota = np.minimum(quota, sizes - 1)
    held = np.concatenate([order[strata[order] == label][:n] for label, n in zip(classes, quota, strict=True)])
    mask = np.zeros(count, dtype=bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def stratified_sample(labels: Tensor, count: int | None, seed: int) -> Tensor:
    """Rising positions of ``count`` samples (None, or more than there are: all), each class in proportion; the same for the same seed."""
    everything = torch.arange(len(labels))
    if count is None or count >= len(labels):
        return everything
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(labels)))
    # Every sample's place in its class, as a share of the class: the smallest places over all classes are in proportion.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place.argsort(stable=True)[:count].sort().values
