"""``metadata.csv``, ``metadata.jsonl`` and ``metadata.parquet`` beside images: which label each has. Rows and files are held against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rocl_transfer.data.inventory import counted, same_place
from rocl_transfer.data.listing import Listing, candidates, list_files, without_split
from rocl_transfer.data.sources import FileRows, RawSplit
from rocl_transfer.data.splits import one_spelling
from rocl_transfer.data.tables import Table, columns_of_files, read_csv, read_jsonl, read_parquet
from rocl_transfer.errors import UserError, one_line

_READERS = {"metadata.csv": read_csv, "metadata.jsonl": read_jsonl, "metadata.parquet": read_parquet}


def is_metadata(path: Path) -> bool:
    """Whether its name is one that tables of images' labels have; nothing else called metadata is looked into."""
    return path.name.lower() in _READERS


class _Entry(NamedTuple):
    label: Any
    split: str
    where: str


class _Opened(NamedTuple):
    name: str
    table: Table
    files: str
    label: str | None
    split: str | None


@dataclass(frozen=True)
class Listed:
    """Splits by the metadata, or None if it has no labels; the images of each split where it has splits alone; and what is said of it."""

    splits: dict[str, RawSplit] | None
    notes: list[str]
    images: dict[str, list[Path]] | None = None


def label_by_metadata(
    folder: Path, paths: Sequence[Path], images: Mapping[str, Sequence[Path]], image_column: str | None, label_column: str | None
) -> Listed:
    """Labels of the images below ``folder`` by its metadata tables; what only one of the two knows is counted and named.

    Args:
        folder: The folder of all of it.
        paths: The tables; file names in each count from its own folder.
        images: The images found, by split.
        image_column: Column of file names (default: file_name).
        label_column: Column of labels (default: label or labels).

    Raises:
        UserError: A table cannot be read, lacks a column that was asked for, contradicts itself, or knows none of a split's images.
    """
    notes, entries = list[str](), dict[str, list[_Entry]]()
    opened = [one for path in paths if (one := _open(folder, path, image_column, label_column, set(images) != {"train"}, notes)) is not None]
    labelled, splitting = any(one.label is not None for one in opened), any(one.split is not None for one in opened)
    for one in sorted(opened, key=lambda one: one.split is None):  # of a file in two tables the row that knows its split counts
        listing = list_files(one.table, one.files, one.label, one.split)
        again = _enter(entries, one, listing)
        notes += listing.notes
        if splitting and one.split is None and len(again) < len(listing.files):
            notes.append(without_split(len(listing.files) - len(again), one.name))
        if len(again) == 1:
            notes.append(f"{again[0].where} names a file that another table lists, and is left out")
        elif again:
            notes.append(f"{len(again):,} rows of {one.name} name files that another table lists, and are left out, the first is {again[0].where}")
    if not entries:
        return Listed(None, notes)
    notes += _differences(folder, entries, images, " and {} left out" if labelled else " and {} of train" if splitting else "")
    if labelled:
        return Listed(_splits(folder, entries, images, splitting, notes), notes)
    return Listed(None, notes, _images(entries, images["train"]) if splitting else None)


def _open(
    folder: Path, path: Path, image_column: str | None, label_column: str | None, split_already: bool, notes: list[str]
) -> _Opened | None:  # fmt: skip
    name = one_line(str(path.relative_to(folder)))
    if not path.stat().st_size:
        notes.append(f"{name} is empty and is left out")
        return None
    table = _READERS[path.name.lower()](path)
    column = _file_column(table, image_column)
    if column is None:
        notes.append(f"{name} is left out: it has no column file_name, and no other one of existing files, among {', '.join(table.columns)}")
        return None
    label = table.column(label_column) if label_column is not None else table.named("label", "labels")
    split = table.named("split")
    if label is None:
        others = ", ".join(candidates(table.columns, (column, split))) or "none"
        notes.append(f"{name} has no column label or labels (others: {others}; --data.label_column names one), so it gives no labels")
    if split is not None and split_already:
        notes.append(f"the column {split} of {name} is left out: the folders are the splits")
    return _Opened(name, table, column, label, None if split_already else split)


def _enter(entries: dict[str, list[_Entry]], opened: _Opened, listing: Listing) -> list[_Entry]:
    """Add what a table lists to ``entries``, but for files that one before it lists; these come back."""
    before, again = set(entries), list[_Entry]()
    for at, file in enumerate(listing.files):
        place, value = same_place(file), None if listing.labels is None else listing.labels[at]
        entry = _Entry(value, listing.splits[at], f"line {opened.table.lines[listing.rows[at]]} of {opened.name}")
        own = entries.setdefault(place, [])
        if place in before:
            _refuse_contradiction(own[0], entry, file)
        (again if place in before else own).append(entry)
    return again


def _images(entries: Mapping[str, Sequence[_Entry]], images: Sequence[Path]) -> dict[str, list[Path]]:
    spelled = one_spelling([*(entry.split for own in entries.values() for entry in own), "train"])
    found: dict[str, list[Path]] = {}
    for path in images:
        for split in [entry.split for entry in entries.get(same_place(path), ())] or ["train"]:
            found.setdefault(spelled[split], []).append(path)
    return found


def _file_column(table: Table, wanted: str | None) -> str | None:
    if wanted is not None and not (wanted == "image" and "image" not in table.columns):  # what datasets calls the column of images
        return table.column(wanted)
    named = table.named("file_name")
    found = [] if named else columns_of_files(table)
    return named or (found[0] if len(found) == 1 else None)


def _refuse_contradiction(first: _Entry, second: _Entry, file: Path) -> None:
    if first.label != second.label:
        raise UserError(
            f"{first.where} and {second.where} contradict each other: {one_line(str(file))} is labelled {first.label!r} and {second.label!r}: "
            f"correct or remove one"
        )


def _differences(folder: Path, entries: Mapping[str, Sequence[_Entry]], images: Mapping[str, Sequence[Path]], then: str) -> list[str]:
    places = {same_place(path) for paths in images.values() for path in paths}
    unlisted = [path for paths in images.values() for path in paths if same_place(path) not in entries]
    lost = [entry for place, own in entries.items() if place not in places for entry in own]
    notes = []
    if unlisted:
        one, many = f"has no row in the metadata{then.format('is')}", f"have no row in the metadata{then.format('are')}"
        notes.append(counted(unlisted, "image", one, many, folder))
    if len(lost) == 1:
        notes.append(f"1 row of the metadata names a file that is not there: {lost[0].where}")
    elif lost:
        notes.append(f"{len(lost):,} rows of the metadata name files that are not there, the first is {lost[0].where}")
    return notes


def _splits(
    folder: Path, entries: Mapping[str, Sequence[_Entry]], images: Mapping[str, Sequence[Path]], splitting: bool, notes: list[str]
) -> dict[str, RawSplit]:  # fmt: skip
    kept = [(split, path, entry) for split, paths in images.items() for path in paths for entry in entries.get(same_place(path), ())]
    for split in images:
        if not any(found == split for found, _, _ in kept):
            raise UserError(f"the metadata of {folder} has no row for any of the {len(images[split]):,} images of {split}: complete or remove it")
    names = {str(entry.label) for _, _, entry in kept}
    other = [path for _, path, entry in kept if path.parent.name in names and path.parent.name != str(entry.label)]
    if other:
        one, many = "is labelled differently by the metadata and by its folder", "are labelled differently by the metadata and by their folders"
        notes.append(counted(list(dict.fromkeys(other)), "image", one, many, folder))
    found: dict[str, list[tuple[Path, _Entry]]] = {}
    spelled = one_spelling(entry.split for _, _, entry in kept)
    for split, path, entry in kept:
        found.setdefault(spelled[entry.split] if splitting else split, []).append((path, entry))
    remedy = "complete its row in the metadata"
    return {split: RawSplit(FileRows(path for path, _ in rows), [entry.label for _, entry in rows], remedy) for split, rows in found.items()}
