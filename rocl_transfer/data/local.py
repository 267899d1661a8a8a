"""What a local folder is: images, or tables and shards of images; and which file of the latter is of which split."""

import re
from collections.abc import Sequence
from pathlib import Path

from rocl_transfer.data.inventory import counted, files_below, image_extensions, kind_by_content
from rocl_transfer.data.metadata import is_metadata
from rocl_transfer.data.splits import only_split, split_called, splits_in
from rocl_transfer.errors import UserError, one_line

_TABLES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".tar")
_SHARDED = re.compile(r"(?P<name>\w[\w.]*?)-\d{5}-of-\d{5}.*")


def holds_images(folder: Path) -> tuple[bool, list[str]]:
    """Whether the image files of ``folder`` are the data, and what is said if they are not.

    They are if there are any, and unless parquet files hold more images than there are files, as in a copy of a Hub repository with a picture in its
    README. A folder of neither counts as one of images, of which there are none.
    """
    files = files_below(folder)
    tables = [path for path in files if path.suffix.lower() in _TABLES and not is_metadata(path)]
    images = [path for path in files if path.suffix.lower() in image_extensions()]
    if not images and not tables:
        return True, []
    if not images:
        return any(kind_by_content(path) for path in files if path not in tables), []
    rows = sum(_images_in(path) for path in tables if path.suffix.lower() == ".parquet")
    if rows <= len(images):
        return True, []
    one, many = "beside the parquet files is left out", "beside the parquet files are left out"
    return False, [counted(images, "image file", one, many, folder)]


def _images_in(path: Path) -> int:
    """Rows of a parquet file that has a column of images; of one that cannot be read, 0."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError, pyarrow.ArrowException):
        return 0
    with file:
        images = any(_is_image(field.type) for field in file.schema_arrow)
        return int(file.metadata.num_rows) if images else 0


def _is_image(kind: object) -> bool:
    import pyarrow

    return isinstance(kind, pyarrow.StructType) and {kind.field(at).name for at in range(kind.num_fields)} == {"bytes", "path"}


def holds_shards(folder: Path) -> bool:
    """Whether ``folder`` holds tar files, and no tables that ``datasets`` reads."""
    suffixes = {path.suffix.lower() for path in files_below(folder) if not is_metadata(path)}
    return ".tar" in suffixes and not suffixes & {".parquet", ".arrow"}


def parquet_splits(folder: Path) -> tuple[dict[str, list[str]] | None, list[str]]:
    """Which parquet files of ``folder`` are which split, so that every one of them is used; None if the folder says so itself, or has none.

    The words of their names and folders say it, as in ``my-train_01``; files without such words are all train. What is no parquet, and
    what holds no image, is left out and said.

    Raises:
        UserError: See :func:`group_by_split`.
    """
    files = files_below(folder)
    parquet = [path for path in files if path.suffix.lower() == ".parquet"]
    card = folder / "README.md"
    if not parquet or (card.is_file() and re.search(r"^configs:", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)):
        return None, []
    held = [path for path in parquet if _images_in(path)]
    held, empty = (held, [path for path in parquet if path not in held]) if held else (parquet, [])
    notes = []
    if empty:
        notes.append(counted(empty, "parquet file", "has no column of images and is left out", "have no column of images and are left out", folder))
    others = [path for path in files if path not in parquet]
    if others:
        notes.append(counted(others, "file", "is not parquet and is left out", "are not parquet and are left out", folder))
    return group_by_split(folder, held), notes


def group_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    """The files of each split; all are of train where none is called as a split is.

    Raises:
        UserError: Some files are called as splits are, and another one is not; or one is called as two are.
    """
    splits = {path: _split_of(folder, path) for path in files}
    known = [path for path, split in splits.items() if split is not None]
    odd = [path for path, split in splits.items() if split is None]
    if known and odd:
        first = one_line(str(odd[0].relative_to(folder)))
        raise UserError(
            f"{first} of {folder} is of no split, beside {one_line(str(known[0].relative_to(folder)))}: name it as the split that it belongs to, "
            f"such as {splits[known[0]]}-1{odd[0].suffix}, move it away, or rename the other"
        )
    found: dict[str, list[str]] = {}
    for path in files:
        found.setdefault(splits[path] or "train", []).append(str(path))
    return found


def _split_of(folder: Path, path: Path) -> str | None:
    """The split that words of its folders and its name mean; None if there are none. Where ``datasets`` wrote SPLIT-00000-of-00001 that is it."""
    relative = path.relative_to(folder)
    sharded, above = _SHARDED.fullmatch(path.stem), splits_in(str(relative.parent))
    if sharded and not above:
        return split_called(sharded["name"]) or sharded["name"]
    return only_split(above | splits_in(path.stem), f"{one_line(str(relative))} of {folder}")
