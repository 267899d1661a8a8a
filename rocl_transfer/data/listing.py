"""Which files a table lists under which labels: each file once, and no label against another."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocl_transfer.data.inventory import same_place
from rocl_transfer.data.tables import Table, is_file
from rocl_transfer.errors import UserError, one_line


@dataclass(frozen=True)
class Listing:
    """Which files a table lists, with their labels; each file of a split once."""

    files: list[Path]
    labels: list[Any] | None
    splits: list[str]
    rows: list[int]
    notes: list[str]


def list_files(table: Table, image: str, label: str | None, split: str | None) -> Listing:
    """One entry a file and split; a row that repeats another is said.

    Raises:
        UserError: A row has no path, or a file has two labels.
    """
    listing = Listing([], None if label is None else [], [], [], list(table.notes))
    first, seen, doubled = dict[str, int](), set[tuple[str, str]](), list[int]()
    for number, row in enumerate(table.rows):
        file = table.file(number, image)
        if file is None:
            raise UserError(f"{table.where(number)} has no path: complete or remove it")
        if any("\n" in str(row[column]) for column in (image, label) if column is not None) and not is_file(file):
            raise UserError(f"{table.where(number)} has a line break in a cell: a quote before it is not closed")
        place, part = same_place(file), str((split and row[split]) or "train")
        if first.setdefault(place, number) != number and not is_file(file):
            raise UserError(
                f"{table.where(number)} names {one_line(str(file))} (no regular file), which is not a readable image: correct or remove it"
            )
        if label is not None and first[place] != number:
            _refuse_contradiction(table, first[place], number, image, label)
        if (place, part) in seen:
            doubled.append(number)
            continue
        seen.add((place, part))
        listing.files.append(file)
        listing.splits.append(part)
        listing.rows.append(number)
        if listing.labels is not None:
            listing.labels.append(value_of(row[str(label)]))
    if len(doubled) == 1:
        listing.notes.append(f"line {table.lines[doubled[0]]} of {table.path.name} names a file that an earlier one names, and is left out")
    elif doubled:
        where = f"line {table.lines[doubled[0]]}"
        listing.notes.append(f"{len(doubled):,} lines of {table.path.name} name files that earlier ones name, and are left out, the first is {where}")
    return listing


def _refuse_contradiction(table: Table, first: int, second: int, image: str, label: str) -> None:
    one, other = (value_of(table.rows[row][label]) for row in (first, second))
    if one != other:
        raise UserError(
            f"lines {table.lines[first]} and {table.lines[second]} of {table.path} contradict each other: "
            f"{one_line(str(table.rows[second][image]))} is labelled {one!r} and {other!r}: correct or remove one"
        )


def value_of(label: Any) -> Any:
    """Numbers as numbers, so that class 10 comes after class 9 and 1.0 is class 1; 007 stays a name."""
    if isinstance(label, str) and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?", label):
        number = float(label)
        return int(number) if "." in label and number.is_integer() else number if "." in label else int(label)
    return label


def candidates(columns: Iterable[str], but: Sequence[str | None]) -> list[str]:
    """Columns that could hold labels: those with a name, but neither the files nor the splits."""
    return [name for name in columns if name and name not in but and name != "Unnamed: 0"]
