"""Labels of any kind to 0 .. K-1: whole numbers, names, booleans."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.data.sources import RawSplit, Source
from rocl_transfer.errors import UserError

_NOTHING = {"nan", "null", "none", "na", "n/a", "#n/a", "<na>", "?"}
_NAMES = 8  # images with a label each: names or numbers of theirs, not classes


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
        raw = source.splits[split]
        # Tables with gaps hold whole numbers as floats: 1.0 is class 1.
        values = [int(label) if isinstance(label, float) and label.is_integer() else label for label in raw.labels or ()]
        if problem := _missing(split, raw, values, source.class_names):
            remedy = raw.remedy
        elif fractions := [label for label in values if isinstance(label, float)]:
            problem = f"labels of split {split!r} are fractions such as {fractions[0]:g}"
            remedy = "a class has a name or a whole number, or name the column with --data.label_column"
        else:
            labels[split] = values
            continue
        if needed:
            raise UserError(f"{problem}: {remedy}")
    names, numbers = _classes({label for values in labels.values() for label in values}, source.class_names)
    return names, {split: torch.tensor([numbers[label] for label in values], dtype=torch.int64) for split, values in labels.items()}


def unlabelled(split: str, raw: RawSplit, class_names: Sequence[str] | None) -> str:
    """How many labels of a split are missing, and the first; "" if all or none are there."""
    missing = [at for at, label in enumerate(raw.labels or ()) if _means_none(label, class_names)]
    if not missing or len(missing) == len(raw.rows):
        return ""
    first = missing[0]
    named = getattr(raw.rows, "labelled_at", raw.rows.where)(first)
    value = raw.labels[first] if raw.labels is not None else None
    said = f", labelled {value!r}" if isinstance(value, int) and not isinstance(value, bool) else ""
    which = f"of {len(raw.rows):,} images of split {split!r}"
    return f"1 {which} has none: {named}{said}" if len(missing) == 1 else f"{len(missing):,} {which} have none, the first is {named}{said}"


def match_labels(labels: Tensor, data_names: Sequence[str], model_names: Sequence[str]) -> tuple[Tensor, str | None]:
    """``labels`` of the data as the model counts its classes, and a note where that is not by name.

    Raises:
        UserError: The model has fewer classes than the data.
    """
    if not model_names or tuple(data_names) == tuple(model_names):
        return labels, None
    if set(data_names) <= set(model_names):
        position = torch.tensor([list(model_names).index(name) for name in data_names])
        note = "the data's classes are found among the model's by name"
        return position[labels], note if len(data_names) == len(model_names) else f"{note}: {len(data_names)} of its {len(model_names)}"
    if len(data_names) > len(model_names):
        raise UserError(f"the data has {len(data_names)} classes, the model {len(model_names)}: evaluate it on data of its own classes")
    return labels, f"the model's classes have other names than the data's ({model_names[0]!r}, {data_names[0]!r}): they are matched by number"


def _missing(split: str, raw: RawSplit, values: Sequence[Any], class_names: Sequence[str] | None) -> str:
    if some := unlabelled(split, raw, class_names):
        return f"labels are needed, and {some}"
    if raw.labels is None or any(_means_none(label, class_names) for label in values):
        return f"labels are needed, and images of split {split!r} have none (none of {len(raw.rows):,} has)"
    return ""


def near_names(class_names: Sequence[str]) -> list[str]:
    """What is said of class names that differ only in capitals, spaces or the way their letters are composed."""
    kinds: dict[str, list[str]] = {}
    for name in class_names:
        kinds.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [
        f"classes {' and '.join(map(repr, names))} differ only in capitals, spaces or the code of a letter, and are different classes: rename one "
        f"if they are the same"
        for names in kinds.values()
        if len(names) > 1
    ]


def missing_names(class_names: Sequence[str]) -> list[str]:
    """What is said of class names that are written where there is no label."""
    return [
        f"{name!r} is taken for a class: empty its cells if it says that there is no label" for name in class_names if name.casefold() in _NOTHING
    ]


def order_note(class_names: Sequence[str]) -> list[str]:
    """Which logit is which class, where the names are numbers that are not sorted as numbers."""
    if not all(name.isascii() and name.isdigit() for name in class_names) or list(class_names) == sorted(class_names, key=int):
        return []
    at = next(at for at, name in enumerate(class_names) if int(name) != at)
    order = "sorted as texts" if list(class_names) == sorted(class_names) else "in the order that the data gives"
    first = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    return [
        f"classes called by numbers are {order} ({first}), not by number: logit {at} is class {class_names[at]!r}, and so on in this order"
        f"{'; folders with zeros in front (00, 01, ...) have both orders the same' if order == 'sorted as texts' else ''}"
    ]


def rare_note(class_names: Sequence[str], labels: Iterable[Tensor], refuse: bool) -> list[str]:
    """Which classes have a single image, as a slip in a label makes them.

    Args:
        class_names: One a label.
        labels: Labels of each split, (N,) int64.
        refuse: Whether a table in which all classes have one is refused; folders of classes, and data to evaluate on, may be so on purpose.

    Raises:
        UserError: All have one, and this is no column of classes.
    """
    counts = sum((torch.bincount(split, minlength=len(class_names)) for split in labels), torch.zeros(len(class_names), dtype=torch.int64))
    single = [class_names[at] for at in torch.nonzero(counts == 1).flatten().tolist()]
    if refuse and len(single) == len(class_names) >= _NAMES:
        raise UserError(
            f"each of {len(single):,} images has a label of its own ({single[0]!r}, {single[1]!r}, ...): name the column of classes with "
            f"--data.label_column"
        )
    if not single:
        return []
    return [f"1 class has one image: {single[0]!r}" if len(single) == 1 else f"{len(single):,} classes have one image each, such as {single[0]!r}"]


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
