"""Tables of files and labels as people write them: any separator, with or without a header, with stray spaces; every row is accounted for."""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocl_transfer.data.inventory import image_extensions
from rocl_transfer.errors import UserError, did_you_mean, one_line

_SEPARATORS = (",", ";", "\t", "|", " ")
_STRIPPED = " \t\r\n\f\v\xa0\u200b\ufeff"
_SAMPLE = 100  # rows that a separator and a column of files are looked for in
Cells = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows with the line that each begins on; a missing cell is None."""

    path: Path
    columns: list[str]
    rows: list[Cells]
    lines: list[int]
    notes: list[str]

    def where(self, row: int) -> str:
        """How an error names a row."""
        return f"line {self.lines[row]} of {self.path}"

    def column(self, wanted: str) -> str:
        """``wanted`` as it is written in the header, whose capitals do not matter.

        Raises:
            UserError: There is no such column.
        """
        near = [name for name in self.columns if name.casefold() == wanted.strip().casefold()]
        if wanted in self.columns or len(near) == 1:
            return wanted if wanted in self.columns else near[0]
        raise UserError(f"{self.path} has no column {wanted!r}{did_you_mean(wanted, self.columns)}: the columns are {', '.join(self.columns)}")

    def named(self, *names: str) -> str | None:
        """The first column called one of ``names``, whatever its capitals."""
        return next((column for name in names for column in self.columns if column.casefold() == name), None)

    def file(self, row: int, column: str) -> Path | None:
        """The file that a cell names, from the table's own folder; None for an empty cell."""
        cell = self.rows[row][column]
        return None if cell is None else path_in(self.path.parent, str(cell))


def path_in(folder: Path, cell: str) -> Path:
    """The file that ``cell`` names; backslashes separate folders where nothing is called so."""
    path = folder / cell
    if "\\" in cell and not is_file(path) and is_file(slashed := folder / cell.replace("\\", "/")):
        return slashed
    return path


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text too long for a name is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a caption that is too long for a name, or has a zero byte
        return False


def read_csv(path: Path) -> Table:
    """A CSV in UTF-8 or UTF-16, its separator found by trying which gives existing files and rows of one width.

    Where the first line holds a file itself there is no header: columns are then called 1, 2, ...

    Raises:
        UserError: It cannot be read, has no rows, or a row has more cells than the header has names.
    """
    text = _text(path)
    first, said = 0, None
    if text[:5].lower().startswith("sep=") and text[4:5]:  # what Excel writes above a header
        first, said = 1, text[4]
        text = text.partition("\n")[2]
    quote = _quote(text)
    separator = said or max(_SEPARATORS, key=lambda separator: _fitness(path, text, separator, quote))
    try:
        lines, cells = _split(text, separator, quote, strict=True)
    except _BadLineError as error:
        raise UserError(f"line {error.line + first} of {path} cannot be read ({error.reason}): close its quotes, or save the table anew") from error
    rows = [(line + first, row) for line, row in zip(lines, cells, strict=True) if any(row)]
    if not rows:
        raise UserError(f"{path} has no rows below its header: list one image a row")
    notes = [] if separator == "," else [f"the columns of {path.name} are separated by {_spelled(separator)}"]
    width = max(len(row) for _, row in rows[:_SAMPLE])
    while rows[0][1][0].startswith("#") and len(rows[0][1]) < width:
        notes.append(f"line {rows[0][0]} of {path.name} is a comment and is left out")
        rows = rows[1:]
    header = rows[0][1]
    while header and not header[-1] and not any(len(row) >= len(header) and row[len(header) - 1] for _, row in rows):
        header = header[:-1]
    if any(_is_path(path.parent, cell) for cell in header):
        notes.append(f"{path.name} has no header: its first line is a row, and its columns are called 1 to {len(header)}")
        header = [str(number + 1) for number in range(len(header))]
    else:
        again = [line for line, row in rows[1:] if row == rows[0][1]]
        notes += [f"line {line} of {path.name} is the header once more and is left out" for line in again]
        rows = [(line, row) for line, row in rows[1:] if line not in again]
    return _table(path, header, rows, notes)


def _table(path: Path, header: list[str], rows: list[tuple[int, list[str]]], notes: list[str]) -> Table:
    if not rows:
        raise UserError(f"{path} has no rows below its header: list one image a row")
    if doubled := next((name for name in header if name and header.count(name) > 1), None):
        raise UserError(f"{path} has two columns called {doubled!r}: rename one")
    for line, row in rows:
        if any(row[len(header) :]):
            raise UserError(
                f"line {line} of {path} has {len(row)} cells where the first line has {len(header)}: put a cell with a separator in it into quotes"
            )
    filled = [{name: (row[at] or None) if at < len(row) else None for at, name in enumerate(header)} for _, row in rows]
    return Table(path, header, filled, [line for line, _ in rows], notes)


def read_jsonl(path: Path) -> Table:
    """A JSON object a line.

    Raises:
        UserError: A line is none.
    """
    rows, lines = [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {path} is not JSON ({error}): correct or remove it") from error
        if not isinstance(row, dict):
            raise UserError(f'line {number} of {path} is not a JSON object: write one as {{"file_name": ..., "label": ...}}')
        rows.append(row)
        lines.append(number)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, columns, [{name: _cell(row.get(name)) for name in columns} for row in rows], lines, [])


def read_parquet(path: Path) -> Table:
    """A parquet table; its lines are its rows, from 1 on.

    Raises:
        UserError: It cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({one_line(str(error).splitlines()[0])[:200]}): write it anew") from error
    columns = list(rows[0]) if rows else []
    return Table(path, columns, [{name: _cell(row[name]) for name in columns} for row in rows], list(range(1, len(rows) + 1)), [])


def _cell(value: Any) -> Any:
    stripped = value.strip(_STRIPPED) if isinstance(value, str) else value
    return None if stripped == "" else stripped


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            raise ValueError("zero bytes")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        kind = "JSON" if path.suffix == ".jsonl" else "CSV"
        raise UserError(f"{path} cannot be read as {kind} in UTF-8 ({error}): save it as such") from error


class _BadLineError(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def _quote(text: str) -> str:
    """Single quotes where a cell of most lines stands in them, else double ones."""
    lines = text.split("\n", _SAMPLE)[:_SAMPLE]
    single = sum(re.search(r"(^|[,;\t|])\s*'[^']*'\s*([,;\t|]|$)", line) is not None for line in lines)
    return "'" if 2 * single > len(lines) else '"'


def _split(text: str, separator: str, quote: str, strict: bool, most: int | None = None) -> tuple[list[int], list[list[str]]]:
    """Stripped cells of each row, and the line that the row begins on."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, quotechar=quote, skipinitialspace=True, strict=strict)
    lines, rows = list[int](), list[list[str]]()
    begun = 1
    try:
        for row in reader:
            lines.append(begun)
            rows.append([cell.strip(_STRIPPED) for cell in row])
            begun = reader.line_num + 1
            if len(rows) == most:
                break
    except csv.Error as error:
        raise _BadLineError(begun, str(error)) from error
    return lines, rows


def _fitness(path: Path, text: str, separator: str, quote: str) -> tuple[int, float, int]:
    """How well a separator fits: rows with a cell that is a file, the share of rows of the commonest width, that width."""
    try:
        _, rows = _split(text, separator, quote, strict=False, most=_SAMPLE)
    except _BadLineError:
        return (-1, 0.0, 0)
    rows = [row for row in rows if any(row)]
    if not rows:
        return (0, 0.0, 0)
    widths = [len(row) for row in rows]
    commonest = max(set(widths), key=widths.count)
    files = sum(any(_is_path(path.parent, cell) for cell in row) for row in rows)
    return (files, widths.count(commonest) / len(rows) if commonest > 1 else 0.0, commonest if separator != " " else 0)


def _is_path(folder: Path, cell: str) -> bool:
    """Whether a cell is an image's path: it ends as one and holds no separator, or there is such a file."""
    if not cell:
        return False
    ends = Path(cell).suffix.lower() in image_extensions() and not any(mark in cell for mark in ",;\t|")
    return ends or is_file(path_in(folder, cell))


def _spelled(separator: str) -> str:
    return {"\t": "tabs", " ": "spaces"}.get(separator, repr(separator))


def columns_of_files(table: Table) -> list[str]:
    """The columns of which a cell of the first rows is a file that exists."""
    some = range(min(_SAMPLE, len(table.rows)))

    def holds(column: str) -> bool:
        return any((file := table.file(row, column)) is not None and is_file(file) for row in some)

    return [column for column in table.columns if holds(column)]


def no_column_of_files(table: Table) -> str:
    """The sentence where no column holds files that exist, with the one that was meant if there is one."""
    for row, column in ((row, column) for row in range(min(_SAMPLE, len(table.rows))) for column in table.columns):
        cell = table.rows[row][column]
        if isinstance(cell, str) and Path(cell).suffix.lower() in image_extensions():
            tried = one_line(str(table.path.parent / cell))
            return (
                f"{table.path} has no column of files: {column!r} names {one_line(cell)} in line {table.lines[row]}, but there is no file {tried}: "
                f"correct the paths, which count from the table's own folder"
            )
    for column, extension in ((column, extension) for column in table.columns for extension in (".jpg", ".png", ".jpeg", ".JPG")):
        cell = table.rows[0][column]
        if isinstance(cell, str) and is_file(table.path.parent / f"{cell}{extension}"):
            return (
                f"{table.path} has no column of files: {column!r} names {(name := one_line(cell))}, and there is {name}{extension}: write extensions"
            )
    listed = ", ".join(table.columns)
    return f"{table.path} has no column of files that exist among {listed}: name the column of image paths with --data.image_column"
