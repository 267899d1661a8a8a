"""Folders of images: split folders if there are any, a folder a class, or no labels. Names of files decide nothing."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rocl_transfer.data.inventory import Inventory, counted, image_extensions, is_hidden, take_inventory
from rocl_transfer.data.metadata import is_metadata, label_by_metadata
from rocl_transfer.data.sources import FileRows, RawSplit, Source
from rocl_transfer.data.splits import only_split, split_called, splits_in
from rocl_transfer.errors import UserError, is_pickle, one_line

_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z")
_STRAYS = 0.05  # largest share of images beside the class folders that is left out; one always may be


def open_image_folder(folder: Path, image_column: str | None = None, label_column: str | None = None, train_needed: bool = True) -> Source:
    """Images below ``folder``: split folders (train, validation, test) if there are any, then one folder a class, or none for no labels.

    Folders such as ``training_set`` and ``test_set`` are split folders, too, where every folder of images is called so and class folders lie below.

    Where there are ``metadata.csv``, ``.jsonl`` or ``.parquet`` with a column of labels, these are the labels.

    Args:
        folder: Where.
        image_column: Column of file names in the metadata (default: file_name).
        label_column: Column of labels in the metadata (default: label or labels).
        train_needed: Refuse a folder with a test or validation folder alone.

    Raises:
        UserError: There is no image, or the folders could mean more than one thing.
    """
    look = functools.cache(take_inventory)  # each folder is walked once, whoever asks
    roots, notes = _roots(folder, look)
    if train_needed and "train" not in roots:
        there = ", ".join(sorted(roots))
        raise UserError(f"{folder} holds no train folder beside {there}: add one to train on (evaluation needs none)")
    found = {split: _Root(split, root, look(root)) for split, root in roots.items()}
    if not any(root.inventory.images for root in found.values()):
        raise UserError(_nothing(folder, [root.inventory for root in found.values()]))
    for split, root in found.items():
        if not root.inventory.images:
            raise UserError(f"{root.folder} has no image: put images into it, or remove the folder to do without a {split} split")
    tables = [path for root in found.values() for path in root.inventory.others if is_metadata(path)]
    tables += [path for path in sorted(folder.iterdir()) if is_metadata(path) and path not in tables]
    for root in found.values():
        notes += root.inventory.notes(folder, tables)
    if tables:
        paths = {split: root.inventory.images for split, root in found.items()}
        listed = label_by_metadata(folder, tables, paths, image_column, label_column)
        notes += listed.notes
        if listed.splits is not None:
            return Source(listed.splits, notes=tuple(notes))
        if listed.images is not None:
            root = found["train"]
            found = {split: replace(root, split=split, inventory=replace(root.inventory, images=own)) for split, own in listed.images.items()}
    elif image_column or label_column:
        option = "image_column" if image_column else "label_column"
        raise UserError(f"--data.{option} has no effect with the image folder {folder}, which has no metadata.csv: leave it out")
    return _by_folders(found, notes)


def _by_folders(found: dict[str, "_Root"], notes: list[str]) -> Source:
    splits, hint, empty = {}, "", dict[Path, set[str]]()
    for split, root in found.items():
        splits[split] = root.labelled(notes)
        if splits[split].labels is not None:
            empty[root.folder] = empty.get(root.folder, root.classes) - set(splits[split].labels or ())
            hint = hint or root.wrapper()
    notes += [f"class folder {name!r} has no image" for names in empty.values() for name in sorted(names)]
    names = sorted({label for split in splits.values() for label in split.labels or () if label is not None}.union(*empty.values()))
    if len(found) == 1 and _are_splits([splits_in(name) for name in names]):
        listed = " and ".join(map(one_line, names))
        notes.append(f"{listed} are taken for classes: if they are splits, put class folders into them, or call them train and test")
    return Source(splits, names or None, notes=tuple(notes), hint=hint)


def _roots(folder: Path, look: Callable[[Path], Inventory]) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, or of all images as ``train``; and what is said of everything beside them."""
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not is_hidden(entry)]
    called, notes = _called(folder, folders, look)
    roots = dict[str, Path]()
    for entry, split in called.items():
        if split in roots:
            raise UserError(f"{roots[split].name} and {entry.name} of {folder} are both the {split} split: merge them or rename one")
        roots[split] = _unwrapped(entry)
    if not roots:
        return {"train": folder}, notes
    beside = [entry for entry in folders if entry not in called]
    named = ", ".join(sorted(root.name for root in roots.values()))
    for entry in beside:
        images = len(look(entry).images)
        if images:
            raise UserError(
                f"the folders of {folder} are neither splits (train; validation and test if wanted) nor classes: beside {named} lies "
                f"{one_line(entry.name)}, which holds {images:,} images: move or rename it"
            )
        notes.append(f"the folder {one_line(entry.name)} beside {named} has no image and is left out")
    files = [entry for entry in sorted(folder.iterdir()) if entry.is_file() and not is_hidden(entry) and not is_metadata(entry)]
    if loose := [entry for entry in files if entry.suffix.lower() in image_extensions()]:
        notes.append(counted(loose, "image", f"lies beside {named} and is left out", f"lie beside {named} and are left out", folder))
    if others := [entry for entry in files if entry not in loose]:
        notes.append(counted(others, "file", f"beside {named} is left out", f"beside {named} are left out", folder))
    return roots, notes


def _unwrapped(folder: Path) -> Path:
    """The inner one of ``training_set/training_set``, as some archives have it, if it has nothing beside it."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry)]
    return entries[0] if len(entries) == 1 and entries[0].name == folder.name and entries[0].is_dir() else folder


def _called(folder: Path, folders: Sequence[Path], look: Callable[[Path], Inventory]) -> tuple[dict[Path, str], list[str]]:
    """The folders that are splits; and what is said where only words of their names say so, which names of classes may hold as well."""
    called = {entry: split for entry in folders if (split := split_called(entry.name)) is not None}
    words = {entry: splits_in(entry.name) for entry in folders}
    # In this order one of a thousand classes is looked into, and none if no name has such a word.
    if not any("train" in found for found in words.values()) or any(look(entry).images for entry in folders if not words[entry]):
        return called, []
    alike = {entry: found for entry, found in words.items() if found and (entry in called or look(entry).images)}
    train = [entry for entry, found in alike.items() if "train" in found]
    if alike.keys() <= called.keys() or not _are_splits(alike.values()) or not all(_holds_classes(entry, look(entry).images) for entry in train):
        return called, []
    splits = {entry: str(only_split(found, f"the folder {one_line(entry.name)} of {folder}")) for entry, found in alike.items()}
    names = " and ".join(one_line(entry.name) for entry in alike)
    return splits, [f"the folders {names} are taken for the splits {' and '.join(splits.values())}, by words of their names"]


def _are_splits(words: Collection[set[str]]) -> bool:
    """Whether what :func:`splits_in` found in each of several names could be the splits of one dataset."""
    return all(words) and "train" in set().union(*words) and len(set().union(*words)) > 1


def _holds_classes(folder: Path, images: Sequence[Path]) -> bool:
    strays = sum(path.parent == folder for path in images)
    return strays < len(images) and _few(strays, images)


def _few(strays: int, images: Sequence[Path]) -> bool:
    return strays <= max(1, _STRAYS * len(images))


def _nothing(folder: Path, found: Sequence[Inventory]) -> str:
    known = f"({', '.join(sorted(image_extensions())[:6])}, ...)"
    others = [path for inventory in found for path in inventory.others]
    not_read = "; ".join(note for inventory in found for note in Inventory(not_read=inventory.not_read).notes(folder))
    packed = [path.name for path in others if path.suffix.lower() in _ARCHIVES]
    tail = f"{is_pickle(others)}{'; ' + not_read if not_read else ''}{f'; archives such as {one_line(packed[0])} are not opened' if packed else ''}"
    return f"{folder} has no images {known}{tail}: put images or parquet files into it"


@dataclass(frozen=True)
class _Root:
    """The folder of one split."""

    split: str
    folder: Path
    inventory: Inventory

    @property
    def parts(self) -> list[tuple[str, ...]]:
        return [path.relative_to(self.folder).parts for path in self.inventory.images]

    @property
    def classes(self) -> set[str]:
        return {entry.name for entry in self.folder.iterdir() if entry.is_dir() and not is_hidden(entry)}

    def labelled(self, notes: list[str]) -> RawSplit:
        """Images with their folders as labels; what was merged and left out joins ``notes``."""
        images, parts = self.inventory.images, self.parts
        strays = [path for path, part in zip(images, parts, strict=True) if len(part) == 1]
        if len(strays) == len(images):
            beside = sorted(self.folder.parent.iterdir()) if split_called(self.folder.name) else []
            tables = [path for path in (*self.inventory.others, *beside) if path.suffix.lower() in (".csv", ".tsv")]
            usual = RawSplit(FileRows(images), None)
            return replace(usual, remedy=f"{usual.remedy}; if {tables[0]} has them, give it as --data.name") if tables else usual
        self._refuse_splits_below(parts)
        if not _few(len(strays), images):
            labels: list[Any] = [part[0] if len(part) > 1 else None for part in parts]
            return RawSplit(FileRows(images), labels, "it lies in no class folder: put each image into the folder of its class")
        if strays:
            notes.append(counted(strays, "image", "lies in no class folder and is left out", "lie in no class folder and are left out", self.folder))
        deeper = [path for path, part in zip(images, parts, strict=True) if len(part) > 2]
        if deeper:
            one = "lies in a folder below a class folder and counts as that class"
            many = "lie in folders below class folders and count as that class"
            notes.append(counted(deeper, "image", one, many, self.folder))
        kept = [(path, part[0]) for path, part in zip(images, parts, strict=True) if len(part) > 1]
        return RawSplit(FileRows(path for path, _ in kept), [label for _, label in kept])

    def _refuse_splits_below(self, parts: Sequence[tuple[str, ...]]) -> None:
        found = [splits_in(name) for name in {part[1] if len(part) > 2 else "" for part in parts if len(part) > 1}]
        if all(found) and len(set().union(*found)) > 1:
            first = next(part for part in parts if len(part) > 2)
            there, above = one_line("/".join(first[:2])), one_line(f"{first[1]}/{first[0]}")
            raise UserError(f"the splits of {self.folder} lie below its classes, such as {there}: put them above, as {above}")

    def wrapper(self) -> str:
        """A hint where all images lie in one folder whose own folders look like the classes."""
        tops, seconds = {part[0] for part in self.parts if len(part) > 1}, {part[1] for part in self.parts if len(part) > 2}
        tables = [path for path in self.inventory.others if path.suffix.lower() in (".csv", ".tsv")]
        if len(tops) != 1:
            return ""
        if len(seconds) > 1:
            below = ", ".join(sorted(seconds)[:3])
            return f"if the folders in it are the classes or splits ({below}), give --data.name {self.folder / next(iter(tops))}"
        return f"if {tables[0]} lists the labels, give it as --data.name" if tables else ""
