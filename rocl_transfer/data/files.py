"""Single files that hold a dataset: a CSV of paths and labels, or safetensors of decoded images."""

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rocl_transfer.data.inventory import counted, image_extensions, is_hidden, same_place
from rocl_transfer.data.listing import candidates, list_files
from rocl_transfer.data.sources import ArrayRows, FileRows, RawSplit, Source
from rocl_transfer.data.tables import Table, columns_of_files, no_column_of_files, read_csv
from rocl_transfer.errors import UserError


def open_csv(path: Path, image_column: str | None = None, label_column: str | None = None) -> Source:
    """A table with one row per image; paths count from its own folder. A column ``split`` names each row's split.

    Args:
        path: The table, its cells separated by commas, semicolons, tabs, bars or spaces.
        image_column: Default: the only one whose first cells are files.
        label_column: Default: label or labels, else the only other column.

    Raises:
        UserError: A column cannot be found, or could be one of several; a row has no path; or a file has two labels.
    """
    table = read_csv(path)
    image = _image_column(table, image_column)
    split = table.named("split")
    others = candidates(table.columns, (image, split))
    label = table.column(label_column) if label_column else next((name for name in others if name.casefold() in ("label", "labels")), None)
    label = label or (others[0] if len(others) == 1 else None)
    listing = list_files(table, image, label, split)
    notes = [*listing.notes, *_unlisted(table, listing.files)]
    remedy = f"{path.name} has {_which(others)}: name one with --data.label_column" if label is None else "complete its cell, or remove the line"
    splits = {}
    for part in dict.fromkeys(listing.splits):
        chosen = [at for at, name in enumerate(listing.splits) if name == part]
        labels = None if listing.labels is None else [listing.labels[at] for at in chosen]
        lines = [table.lines[listing.rows[at]] for at in chosen]
        splits[part] = RawSplit(ListedRows([listing.files[at] for at in chosen], lines), labels, remedy)
    return Source(splits, notes=tuple(notes))


class ListedRows(FileRows):
    """Files and the lines of the table that name them.

    Args:
        paths: The files' paths.
        lines: One each.
    """

    def __init__(self, paths: Sequence[Path], lines: Sequence[int]) -> None:
        super().__init__(paths)
        self.lines = lines

    def labelled_at(self, index: int) -> str:
        """Where the label of an image is written."""
        return f"line {self.lines[index]} ({self.where(index)})"


def _image_column(table: Table, wanted: str | None) -> str:
    if wanted is not None:
        return table.column(wanted)
    holding = columns_of_files(table)
    if not holding:
        raise UserError(no_column_of_files(table))
    if len(holding) > 1:
        raise UserError(
            f"{table.path} has more than one column of files ({', '.join(holding)}): name the column of image paths with --data.image_column"
        )
    return holding[0]


def _which(others: Sequence[str]) -> str:
    return f"more than one column that could be meant ({', '.join(others)})" if others else "no column beside the paths"


def _unlisted(table: Table, files: Sequence[Path]) -> list[str]:
    """What is said of image files beside those listed, in the same folders."""
    listed = {same_place(file) for file in files}
    folders = {os.path.dirname(place) for place in listed}  # noqa: PTH120 - a Path each took most of the time of 100,000 rows
    beside = []
    for folder in sorted(folder for folder in folders if Path(folder).is_dir()):
        with os.scandir(folder) as entries:
            unlisted = [Path(entry.path) for entry in entries if same_place(entry.path) not in listed]
        beside += sorted(path for path in unlisted if path.suffix.lower() in image_extensions() and not is_hidden(path) and path.is_file())
    if not beside:
        return []
    name = table.path.name
    return [
        counted(beside, "image file", f"beside those listed has no row in {name}", f"beside those listed have no row in {name}", table.path.parent)
    ]


def open_safetensors(path: Path) -> Source:
    """``images``, uint8 (N, 3, H, W) or (N, 1, H, W), and if wanted ``labels``, integers (N,).

    Raises:
        UserError: It is damaged, or holds something else.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): write it anew") from error
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or images.dim() != 4 or images.shape[1] not in (1, 3) or str(images.dtype) != "torch.uint8":
        held = ", ".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items())
        raise UserError(f"{path} must hold 'images', uint8 (N, 3, H, W), and 'labels', integers (N,); it holds {held or 'nothing'}")
    if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point()):
        raise UserError(f"{path}: 'labels' is {tuple(labels.shape)} {labels.dtype}, but must be {len(images)} integers, one per image")
    pixels = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    return Source({"train": RawSplit(ArrayRows(pixels), None if labels is None else labels.tolist())})
