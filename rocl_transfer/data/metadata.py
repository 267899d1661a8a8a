"""``metadata.csv``, ``metadata.jsonl`` and ``metadata.parquet`` beside images: which label each has. Rows and files are held against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rocl_transfer.data.inventory import counted, same_place
from rocl_transfer.data.listing import candidates, list_files
from rocl_transfer.data.sources import FileRows, RawSplit
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


@dataclass(frozen=True)
class Listed:
    """Splits by the metadata, or None if it has no labels; and what is said of it."""

    splits: dict[str, RawSplit] | None
    notes: list[str]


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
    notes, entries, labelled, splitting = list[str](), dict[str, _Entry](), False, False
    for path in paths:
        name = one_line(str(path.relative_to(folder)))
        if not path.stat().st_size:
            notes.append(f"{name} is empty and is left out")
            continue
        table = _READERS[path.name.lower()](path)
        column = _file_column(table, image_column)
        if column is None:
            notes.append(f"{name} is left out: it has no column file_name, and no other one of existing files, among {', '.join(table.columns)}")
            continue
        label = table.column(label_column) if label_column is not None else table.named("label", "labels")
        split = table.named("split") if set(images) == {"train"} else None
        listing = list_files(table, column, label, split)
        notes += listing.notes
        labelled, splitting = labelled or label is not None, splitting or split is not None
        if label is None:
            others = ", ".join(candidates(table.columns, (column, split))) or "none"
            notes.append(f"{name} has no column label or labels (others: {others}; --data.label_column names one), so it gives no labels")
        for at, file in enumerate(listing.files):
            place, value = same_place(file), None if listing.labels is None else listing.labels[at]
            entry = _Entry(value, listing.splits[at], f"line {table.lines[listing.rows[at]]} of {name}")
            _refuse_contradiction(entries.setdefault(place, entry), entry, file)
    if not entries:
        return Listed(None, notes)
    notes += _differences(folder, entries, images, labelled)
    return Listed(_splits(folder, entries, images, splitting, notes) if labelled else None, notes)


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


def _differences(folder: Path, entries: Mapping[str, _Entry], images: Mapping[str, Sequence[Path]], labelled: bool) -> list[str]:
    places = {same_place(path) for paths in images.values() for path in paths}
    unlisted = [path for paths in images.values() for path in paths if same_place(path) not in entries]
    lost = [entry for place, entry in entries.items() if place not in places]
    notes = []
    if unlisted:
        one, many = (" and is left out", " and are left out") if labelled else ("", "")
        notes.append(counted(unlisted, "image", f"has no row in the metadata{one}", f"have no row in the metadata{many}", folder))
    if len(lost) == 1:
        notes.append(f"1 row of the metadata names a file that is not there: {lost[0].where}")
    elif lost:
        notes.append(f"{len(lost):,} rows of the metadata name files that are not there, the first is {lost[0].where}")
    return notes


def _splits(
    folder: Path, entries: Mapping[str, _Entry], images: Mapping[str, Sequence[Path]], splitting: bool, notes: list[str]
) -> dict[str, RawSplit]:  # fmt: skip
    kept = [(split, path, entries[same_place(path)]) for split, paths in images.items() for path in paths if same_place(path) in entries]
    for split in images:
        if not any(found == split for found, _, _ in kept):
            raise UserError(f"the metadata of {folder} has no row for any of the {len(images[split]):,} images of {split}: complete or remove it")
    names = {str(entry.label) for _, _, entry in kept}
    other = [path for _, path, entry in kept if path.parent.name in names and path.parent.name != str(entry.label)]
    if other:
        one, many = "is labelled differently by the metadata and by its folder", "are labelled differently by the metadata and by their folders"
        notes.append(counted(other, "image", one, many, folder))
    found: dict[str, list[tuple[Path, _Entry]]] = {}
    for split, path, entry in kept:
        found.setdefault(entry.split if splitting else split, []).append((path, entry))
    remedy = "complete its row in the metadata"
    return {split: RawSplit(FileRows(path for path, _ in rows), [entry.label for _, entry in rows], remedy) for split, rows in found.items()}
