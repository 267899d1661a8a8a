"""Labels of any kind to 0 .. K-1: whole numbers, names, booleans."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.data.sources import Source
from rocl_transfer.errors import UserError


def encode_labels(source: Source, used: list[str], needed: bool) -> tuple[list[str], dict[str, Tensor]]:
    """Names of the classes over all of ``used``, and each split's labels as numbers of them; a split without usable labels has none.

    Args:
        source: Raw labels.
        used: Splits to look at.
        needed: Refuse a split without usable labels.

    Raises:
        UserError: Labels are needed, and a split has none, or fractions.
    """
    labels: dict[str, list[Any]] = {}
    for split in used:
        found = source.splits[split].labels
        # Tables with gaps hold whole numbers as floats: 1.0 is class 1.
        values = [int(label) if isinstance(label, float) and label.is_integer() else label for label in found or ()]
        if found is None or any(_means_none(label, source.class_names) for label in values):
            problem = f"labels are needed, and images of split {split!r} have none: put the images of each class into a folder of its own"
        elif fractions := [label for label in values if isinstance(label, float)]:
            problem = f"labels of split {split!r} are fractions such as {fractions[0]:g}: a class has a name or a whole number"
        else:
            labels[split] = values
            continue
        if needed:
            raise UserError(f"{problem}, or name the column with --data.label_column")
    names, numbers = _classes({label for values in labels.values() for label in values}, source.class_names)
    return names, {split: torch.tensor([numbers[label] for label in values], dtype=torch.int64) for split, values in labels.items()}


def _classes(values: set[Any], class_names: Sequence[str] | None) -> tuple[list[str], dict[Any, int]]:
    if class_names is not None and all(isinstance(value, int) for value in values):
        return list(class_names), {value: value for value in values}
    ordered = class_names or sorted(values, key=lambda value: (isinstance(value, str), value))
    return [str(value) for value in ordered], {value: number for number, value in enumerate(ordered)}


def _means_none(label: Any, class_names: Sequence[str] | None) -> bool:
    """A missing label, or the number that stands for one where the classes are numbered."""
    if label is None or label == "" or isinstance(label, (list, dict)) or label != label:  # NaN is not itself
        return True
    return class_names is not None and isinstance(label, int) and not 0 <= label < len(class_names)
