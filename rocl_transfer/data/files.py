"""Single files that hold a dataset: a CSV of paths and labels, or safetensors of decoded images."""

import csv
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rocl_transfer.data.sources import ArrayRows, FileRows, RawSplit, Source
from rocl_transfer.errors import UserError, did_you_mean


def open_csv(path: Path, image_column: str | None = None, label_column: str | None = None) -> Source:
    """A CSV with a header, a row an image; paths count from the CSV's own folder. A column ``split`` names each row's split.

    Args:
        path: The CSV.
        image_column: Default: the one whose first value is a file.
        label_column: Default: label or labels, else the only other column.

    Raises:
        UserError: A column cannot be found, or could be one of several; or a row has no path.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8 ({error}): save it as such") from error
    if not rows:
        raise UserError(f"{path} has no rows below its header: list one image a row")
    for wanted in (image_column, label_column):
        if wanted is not None and wanted not in columns:
            raise UserError(f"{path} has no column {wanted!r}{did_you_mean(wanted, columns)}: the columns are {', '.join(columns)}")
    holding = [name for name in columns if rows[0][name] and _is_file(path.parent / rows[0][name])]
    if image_column is None and len(holding) != 1:
        found = f"more than one column of files ({', '.join(holding)})" if holding else f"no column of files beside it among {', '.join(columns)}"
        raise UserError(f"{path} has {found}: name the column of image paths with --data.image_column")
    image = image_column or holding[0]
    others = [name for name in columns if name not in (image, "split")]
    label = label_column or next((name for name in ("label", "labels") if name in others), others[0] if len(others) == 1 else None)
    for number, row in enumerate(rows, start=2):
        if not row[image]:
            raise UserError(f"line {number} of {path} has no path: complete or remove it")
    splits = {}
    for split in dict.fromkeys(row.get("split") or "train" for row in rows):
        chosen = [row for row in rows if (row.get("split") or "train") == split]
        labels = [_value(row[label]) for row in chosen] if label is not None else None
        splits[split] = RawSplit(FileRows([path.parent / row[image] for row in chosen]), labels)
    return Source(splits)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a caption is too long for a name
        return False


def _value(label: str | None) -> float | str | None:
    """Numbers as numbers, so that class 10 comes after class 9 and 1.0 is class 1; 007 stays a name."""
    if label and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?", label):
        return float(label) if "." in label else int(label)
    return label


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
        raise UserError(f"{path}: 'labels' is {tuple(labels.shape)} {labels.dtype}, but must be {len(images)} integers, one an image")
    pixels = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    return Source({"train": RawSplit(ArrayRows(pixels), None if labels is None else labels.tolist())})
