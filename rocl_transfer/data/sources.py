"""From what a user calls data to encoded images with their raw labels, split by split."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rocl_transfer.data.decode import Encoded
from rocl_transfer.data.inventory import same_place
from rocl_transfer.errors import UserError, one_line


class Rows(Protocol):
    """Encoded images by number."""

    def __len__(self) -> int:
        """How many."""

    def encoded(self, index: int) -> Encoded:
        """Bytes, path or pixels of one image."""

    def where(self, index: int) -> str:
        """How an error names the image."""


class FileRows:
    """Image files; their names are one buffer.

    1.28 million Path objects took 0.41 GB, and each worker made most of it its own over an epoch (0.43 GB more), since CPython counts references
    inside them. As a buffer they take 0.14 GB, once.

    Args:
        paths: The files' paths.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._names, self._ends = b"".join(names), np.cumsum([0, *map(len, names)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> bytes:
        """A file's path as the system spells it."""
        return self._names[self._ends[index] : self._ends[index + 1]]

    def encoded(self, index: int) -> Path:
        """See :class:`Rows`."""
        return Path(os.fsdecode(self.name(index)))

    def where(self, index: int) -> str:
        """See :class:`Rows`."""
        return one_line(str(self.encoded(index)))


@dataclass(frozen=True)
class ArrayRows:
    """Pixels in memory, (N, H, W) or (N, H, W, 3), uint8."""

    arrays: np.ndarray

    def __len__(self) -> int:
        return len(self.arrays)

    def encoded(self, index: int) -> Encoded:
        """See :class:`Rows`."""
        return np.asarray(self.arrays[index])

    def where(self, index: int) -> str:
        """See :class:`Rows`."""
        return f"image {index}"


@dataclass(frozen=True)
class JoinedRows:
    """The images of several splits, one split after another."""

    parts: Sequence[Rows]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def encoded(self, index: int) -> Encoded:
        """See :class:`Rows`."""
        rows, own = self._find(index)
        return rows.encoded(own)

    def where(self, index: int) -> str:
        """See :class:`Rows`."""
        rows, own = self._find(index)
        return rows.where(own)

    def _find(self, index: int) -> tuple[Rows, int]:
        for rows in self.parts[:-1]:
            if index < len(rows):
                return rows, index
            index -= len(rows)
        return self.parts[-1], index


def join(sets: Sequence[tuple[Rows, np.ndarray]]) -> tuple[JoinedRows, np.ndarray, np.ndarray]:
    """Several sets of images as one.

    Args:
        sets: Rows and indices (N,) of the images of each; sets that were cut from one split share their rows.

    Returns:
        All rows; the indices of all sets among them, (M,); and the positions of these that take each image once, in the order of the rows.
    """
    rows = list({id(own): own for own, _ in sets}.values())
    begin = dict(zip(map(id, rows), np.cumsum([0, *map(len, rows)]), strict=False))
    joined, indices = JoinedRows(rows), np.concatenate([chosen + begin[id(own)] for own, chosen in sets])
    order = np.argsort(indices)
    if len(rows) > 1 and all(isinstance(own, FileRows) for own in rows):  # a table may list a file in two splits
        _, first = np.unique([same_place(str(joined.encoded(int(index)))) for index in indices[order]], return_index=True)
        order = order[np.sort(first)]
    return joined, indices, order


@dataclass(frozen=True)
class RawSplit:
    """Images and labels as they were found; ``labels`` is None if there are none, and ``remedy`` says what to do about those that are missing."""

    rows: Rows
    labels: Sequence[Any] | None
    remedy: str = "put the images of each class into a folder of its own, or name the column with --data.label_column"


@dataclass(frozen=True)
class Source:
    """Everything found under one name.

    ``class_names`` is None if the labels' own values are to be the names; ``hint`` says what may be meant where there is only one class.
    """

    splits: dict[str, RawSplit]
    class_names: Sequence[str] | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()
    hint: str = ""


def open_digits() -> Source:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8, bundled with it.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the bundled digits come with scikit-learn: pip install 'rocl-transfer[digits]'") from error
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    return Source({"train": RawSplit(ArrayRows(pixels), digits.target.tolist())}, [str(name) for name in digits.target_names])
