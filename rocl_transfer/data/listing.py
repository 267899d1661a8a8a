"""Which files a table lists under which labels and in which splits: each file of a split once, and no label against another."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocl_transfer.data.inventory import counted, same_place
from rocl_transfer.data.splits import one_spelling
from rocl_transfer.data.tables import Table, is_file
from rocl_transfer.errors import UserError, one_line


@dataclass(frozen=True)
class Listing:
    """Which files a table lists, with their labels, splits and rows; each file of a split once."""

    files: list[Path]
    labels: list[Any] | None
    splits: list[str]
    rows: list[int]
    notes: list[str]


def list_files(table: Table, image: str, label: str | None, split: str | None) -> Listing:
    """One entry per file and split; rows that repeat others, rows of no split and files of several splits are said.

    Args:
        table: The table.
        image: Its column of files.
        label: Its column of labels, if it has one.
        split: Its column of splits, if it has one; capitals do not make another split, and an empty cell means train.

    Raises:
        UserError: A row has no path, or a file has two labels.
    """
    listing = Listing([], None if label is None else [], [], [], list(table.notes))
    parts = ["train" if split is None or row[split] is None else str(row[split]) for row in table.rows]
    spelled = one_spelling(parts)
    first, seen, doubled, several = dict[str, int](), set[tuple[str, str]](), list[int](), dict[str, Path]()
    for number, row in enumerate(table.rows):
        file = table.file(number, image)
        if file is None:
            raise UserError(f"{table.where(number)} has no path: complete or remove it")
        if any("\n" in str(row[column]) for column in (image, label) if column is not None) and not is_file(file):
            raise UserError(f"{table.where(number)} has a line break in a cell: a quote before it is not closed")
        place, part = same_place(file), spelled[parts[number]]
        if first.setdefault(place, number) != number and not is_file(file):
            raise UserError(
                f"{table.where(number)} names {one_line(str(file))} (no regular file), which is not a readable image: correct or remove it"
            )
        if label is not None and first[place] != number:
            _refuse_contradiction(table, first[place], number, image, label)
        if (place, part) in seen:
            doubled.append(number)
            continue
        if first[place] != number:
            several[place] = file
        seen.add((place, part))
        listing.files.append(file)
        listing.splits.append(part)
        listing.rows.append(number)
        if listing.labels is not None:
            listing.labels.append(value_of(row[str(label)]))
    blank = sum(row[split] is None for row in table.rows) if split else 0
    listing.notes.extend(_said(table, blank, doubled, list(several.values())))
    return listing


def _said(table: Table, blank: int, doubled: Sequence[int], several: Sequence[Path]) -> list[str]:
    notes = []
    if len(doubled) == 1:
        notes.append(f"line {table.lines[doubled[0]]} of {table.path.name} names a file that an earlier one names, and is left out")
    elif doubled:
        where = f"line {table.lines[doubled[0]]}"
        notes.append(f"{len(doubled):,} lines of {table.path.name} name files that earlier ones name, and are left out, the first is {where}")
    if several:
        where = f"listed by {table.path.name} in more than one split"
        notes.append(counted(several, "file", f"is {where} and belongs to each", f"are {where} and belong to each", table.path.parent))
    if blank:
        notes.append(without_split(blank, table.path.name))
    return notes


def without_split(rows: int, name: str) -> str:
    """What is said of ``rows`` of the table ``name``."""
    return f"1 row of {name} names no split and counts as train" if rows == 1 else f"{rows:,} rows of {name} name no split and count as train"


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
