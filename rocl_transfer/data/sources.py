"""From what a user calls data to encoded images with their raw labels, split by split."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from rocl_transfer.data.decode import Encoded
from rocl_transfer.errors import UserError, is_pickle, one_line


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
        paths: Of the files.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._names, self._ends = b"".join(names), np.cumsum([0, *map(len, names)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def encoded(self, index: int) -> Path:
        """See :class:`Rows`."""
        return Path(os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]]))

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
class RawSplit:
    """Images and labels as they were found; ``labels`` is None where there are none."""

    rows: Rows
    labels: Sequence[Any] | None


@dataclass(frozen=True)
class Source:
    """Everything found under one name. ``class_names`` is None where the labels' own values are to be the names."""

    splits: dict[str, RawSplit]
    class_names: Sequence[str] | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()


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


_SPLIT_FOLDERS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
                  "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip


def is_image_folder(folder: Path) -> bool:
    """Whether the images' own folders are all there is to go by: neither tables of images nor ``metadata`` files, nor other data without images."""
    files = files_below(folder)
    if any(path.suffix in (".parquet", ".arrow") or path.stem == "metadata" for path in files):
        return False
    extensions = Image.registered_extensions()
    return any(path.suffix.lower() in extensions for path in files) or not any(path.suffix in (".csv", ".json", ".jsonl", ".tar") for path in files)


def open_image_folder(folder: Path) -> Source:
    """Images below ``folder``: split folders (train, validation, test) if there is a train one, then one folder a class, or none for no labels.

    Raises:
        UserError: There is no image.
    """
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not _hidden(entry)]
    roots = {_SPLIT_FOLDERS[entry.name.lower()]: entry for entry in folders if entry.name.lower() in _SPLIT_FOLDERS}
    if roots and ("train" not in roots or len(roots) < len(folders)):
        found = ", ".join(entry.name for entry in folders)
        raise UserError(f"the folders of {folder} ({found}) are neither splits (train; validation and test if wanted) nor classes: rename them")
    roots = roots or {"train": folder}
    extensions = set(Image.registered_extensions())
    splits, others, empty = {}, [], []
    for split, root in roots.items():
        files = files_below(root)
        images = [path for path in files if path.suffix.lower() in extensions]
        others += [path for path in files if path.suffix.lower() not in extensions]
        parts = [path.relative_to(root).parts for path in images]
        labelled = bool(parts) and all(len(part) > 1 for part in parts)
        labels = [part[0] for part in parts] if labelled else None
        if labels is not None:
            classes = {entry.name for entry in root.iterdir() if entry.is_dir() and not _hidden(entry)}
            empty += sorted(classes - set(labels))
        splits[split] = RawSplit(FileRows(images), labels)
    if not len(splits["train"].rows):
        known = f"({', '.join(sorted(extensions)[:6])}, ...)"
        raise UserError(f"{roots['train']} has no images {known}{is_pickle(others)}: put images or parquet files into it")
    notes = [f"{len(others)} files are not images by their extension and are left out, such as {one_line(others[0].name)}"] if others else []
    notes += [f"class folder {name!r} has no image" for name in empty]
    names = sorted({label for split in splits.values() for label in split.labels or ()} | set(empty))
    return Source(splits, names or None, notes=tuple(notes))


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__MACOSX"))


def files_below(folder: Path) -> list[Path]:
    """Files below ``folder`` in sorted order, hidden ones left out; links are followed, each real folder once."""
    found, seen, ahead = [], set(), [folder]
    while ahead:
        entry = ahead.pop()
        if entry.is_dir():
            if (real := entry.resolve()) not in seen:
                seen.add(real)
                ahead += sorted((below for below in entry.iterdir() if not _hidden(below)), reverse=True)
        elif entry.is_file():
            found.append(entry)
    return found
