"""Which split is which; images chosen in proportion to their classes: held out of a training split, or evaluated out of a large one."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rocl_transfer.data.sources import FileRows, RawSplit, Source
from rocl_transfer.errors import UserError, did_you_mean

_VALIDATION = ("validation", "valid", "val", "dev")


def stratified_cut(labels: np.ndarray | None, count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``fraction`` of ``count`` images, rounded up, each class in proportion; a class keeps at least one image.

    Args:
        labels: (count,) integers, or None for a cut without strata.
        count: Number of images.
        fraction: Share held out, in [0, 1).
        seed: For the cut alone.

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


def choose_splits(
    source: Source, train: str | None, test: str | None, train_needed: bool
) -> tuple[Source, tuple[str, str | None, str | None]]:  # fmt: skip
    """The names of the splits to train on, to validate and to test on; ``source`` has an empty one to train on where it has none and needs none.

    Args:
        source: With its splits.
        train: Name of the split to train on, if it was given.
        test: Name of the split to test on, if it was given.
        train_needed: Whether there must be one to train on.

    Raises:
        UserError: There is no such split, or the one to train on is the one to test on.
    """
    spelled = {split.casefold(): split for split in source.splits}
    train, test = (wanted if wanted is None or wanted in source.splits else spelled.get(wanted.casefold(), wanted) for wanted in (train, test))
    if not train_needed and train is None and test is None and not set(spelled) - {"test", *_VALIDATION}:
        source = replace(source, splits={"train": RawSplit(FileRows([]), []), **source.splits})
        spelled["train"] = "train"
    train = _train_split(source, train or spelled.get("train"))
    validation = next((spelled[s] for s in _VALIDATION if s in spelled and spelled[s] not in (train, test)), None)
    test = test or (spelled["test"] if "test" in spelled and train != spelled["test"] else None)
    if test == train:
        raise UserError(f"split {train!r} is to be trained and tested on: name another one with --data.test_split or --data.train_split")
    if test is not None and test not in source.splits:
        raise UserError(f"there is no split {test!r}{did_you_mean(test, source.splits)}: the splits are {', '.join(source.splits)}")
    return source, (train, validation, test)


def _train_split(source: Source, wanted: str | None) -> str:
    if wanted is not None and wanted not in source.splits:
        raise UserError(f"there is no split {wanted!r}{did_you_mean(wanted, source.splits)}: the splits are {', '.join(source.splits)}")
    if wanted is None and "train" not in source.splits:
        if len(source.splits) > 1:
            raise UserError(f"there is no split 'train': name one of {', '.join(source.splits)} with --data.train_split")
        return next(iter(source.splits))
    return wanted or "train"
