"""Which split is which; images chosen in proportion to their classes: held out of a training split, or evaluated out of a large one."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rocl_transfer.data.sources import FileRows, RawSplit, Source
from rocl_transfer.errors import UserError, did_you_mean

# Those that datasets takes; where data has several of a kind, the first one counts.
_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing", "eval", "evaluation")}
_CALLED = {word: split for split, words in _WORDS.items() for word in words}


def split_called(name: str) -> str | None:
    """The split (train, validation or test) that is called ``name``, whatever its capitals; None if none is."""
    return _CALLED.get(name.casefold())


def splits_in(name: str) -> set[str]:
    """The splits that words of ``name`` mean, as in ``my-train_01``, ``val2017``, ``testImages`` and ``trainset``."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return {split for word in words if (split := split_called(word.casefold().removesuffix("set")))}


def only_split(found: Collection[str], named: str) -> str | None:
    """The split that :func:`splits_in` found; None if it found none.

    Args:
        found: What it found.
        named: How the error names what is called so.

    Raises:
        UserError: It found more than one.
    """
    if len(found) > 1:
        raise UserError(f"{named} is called as more than one split ({' and '.join(sorted(found))}): rename it, so that one of these words is left")
    return next(iter(found), None)


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """Each of ``names`` as it is spelled first: capitals do not make another split."""
    first: dict[str, str] = {}
    return {name: first.setdefault(name.casefold(), name) for name in names}


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
    if not train_needed and train is None and test is None and all(split_called(split) in ("validation", "test") for split in source.splits):
        source = replace(source, splits={"train": RawSplit(FileRows([]), []), **source.splits})
    train, test = train_split(source.splits, train), None if test is None else _named(source.splits, test)
    validation = _meant(source.splits, "validation", but=(train, test))
    test = test or _meant(source.splits, "test", but=(train,))
    if test == train:
        raise UserError(f"split {train!r} is to be trained and tested on: name another one with --data.test_split or --data.train_split")
    return source, (train, validation, test)


def train_split(splits: Collection[str], wanted: str | None) -> str:
    """The one of ``splits`` to train on.

    Args:
        splits: Names of what there is.
        wanted: Name that was given, if one was.

    Raises:
        UserError: There is no such split, or it could be one of several.
    """
    if wanted is not None:
        return _named(splits, wanted)
    found = _meant(splits, "train") or (next(iter(splits)) if len(splits) == 1 else None)
    if found is None:
        raise UserError(f"there is no split 'train': name one of {', '.join(splits)} with --data.train_split")
    return found


def _named(splits: Collection[str], wanted: str) -> str:
    found = wanted if wanted in splits else {split.casefold(): split for split in splits}.get(wanted.casefold())
    if found is None:
        raise UserError(f"there is no split {wanted!r}{did_you_mean(wanted, splits)}: the splits are {', '.join(splits)}")
    return found


def _meant(splits: Collection[str], split: str, but: Collection[str | None] = ()) -> str | None:
    """The one that a word for ``split`` names, the usual word first; None if there is none."""
    return next((name for word in _WORDS[split] for name in splits if name.casefold() == word and name not in but), None)
