"""A user's data, whatever it is, as train, validation and test splits of images with labels 0 .. K-1."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rocl_transfer.data.decode import Encoded, UnreadableImageError, open_image
from rocl_transfer.data.labels import encode_labels, missing_names, near_names, order_note, rare_note, unlabelled
from rocl_transfer.data.opening import open_source
from rocl_transfer.data.options import ImageOptions
from rocl_transfer.data.quiet import listening
from rocl_transfer.data.sources import Rows, Source, join
from rocl_transfer.data.splits import choose_splits, stratified_cut
from rocl_transfer.data.value_range import Seen, ValueRange, choose_range
from rocl_transfer.errors import UserError, one_line

TEST_FRACTION = 0.2


@dataclass(frozen=True)
class ImageSet:
    """One split: image ``indices[i]`` of ``rows`` with ``labels[i]``, which is None if there are no labels.

    ``values`` are black and white of images of more than 8 bits.
    """

    rows: Rows
    indices: np.ndarray
    labels: Tensor | None
    values: ValueRange = field(default=ValueRange(), repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, chosen: np.ndarray) -> "ImageSet":
        """The images at positions ``chosen``."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(chosen)]
        return replace(self, indices=self.indices[chosen], labels=labels)

    def encoded(self, position: int) -> Encoded:
        """Bytes, path or pixels of the image at ``position``."""
        return self.rows.encoded(int(self.indices[position]))

    def where(self, position: int) -> str:
        """How an error names the image at ``position``."""
        return self.rows.where(int(self.indices[position]))


def labels_of(images: ImageSet | None) -> Tensor:
    """The labels (N,) of a split that was opened with ``labels_needed``."""
    assert images is not None
    assert images.labels is not None
    return images.labels


@dataclass(frozen=True)
class ImageData:
    """Everything a recipe needs to know of its data.

    Attributes:
        name: As the user gave it.
        revision: Commit of a Hub dataset.
        class_names: One a label; empty if there are no labels.
        image_size: Side of the decoded images in pixels.
        train: Images to train on.
        validation: Held out for monitors and for choosing; None if none was wanted.
        test: Held out for the results; empty if there are no labels and no such split.
        test_split: What the test split is, in words that go beside its numbers.
        cut: Where the test split was cut from train, a hash of which images it took; None else.
        notes: What was decided automatically, one sentence each, for the log and the card.
        unreadable: Images that were left out because they cannot be read, with the reason.
        title: What records and cards call data of this machine; None: the last part of its name.
        unused: Splits that there are beside these.
    """

    name: str
    revision: str | None
    class_names: tuple[str, ...]
    image_size: int
    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    test_split: str
    cut: str | None
    notes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    title: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def known_as(self) -> str:
        """The name in records: of data that is not on the Hub the title, if one was given."""
        return self.name if self.title is None or self.revision is not None else self.title

    @property
    def short_name(self) -> str:
        """The name as a part of a model's name: without spaces and signs that a repository's name may not have."""
        last = Path(self.name).name
        spelled = self.title or (last if last not in ("", "..") else Path(self.name).resolve().name)
        return re.sub(r"[^\w.-]+", "-", spelled).strip("-") or "data"

    @property
    def value_range(self) -> dict[str, list[float]] | None:
        """Black and white of images of more than 8 bits, for records; None if no image looked at has more."""
        return self.train.values.record

    def whole(self) -> "ImageData":
        """With all images of all splits, each once, as the test split: for data that is there to be measured on.

        Raises:
            UserError: There is a test split already.
        """
        if self.cut is None and len(self.test):
            raise UserError(f"{self.name} has a test split ({self.test_split}): --split all is for data without one; leave it out")
        parts = [part for part in (self.train, self.validation, self.test) if part is not None and len(part)]
        rows, indices, order = join([(part.rows, part.indices) for part in parts])
        joined = ImageSet(rows, indices, torch.cat([labels_of(part) for part in parts]), self.train.values)
        words = f"all images but those of split {' and '.join(map(repr, self.unused))}" if self.unused else "all images"
        notes = (*self.notes, f"{words} are measured on, whichever of the other splits they would be in")
        return replace(self, test=joined.subset(order), test_split=words, cut=None, notes=notes)

    def facts(self, images: ImageSet, split: str) -> dict[str, Any]:
        """What a results record says of the data that ``images``, its split ``split``, were measured on."""
        return {
            "name": self.known_as,
            **({"title": self.title} if self.title else {}),
            "revision": self.revision,
            "split": split,
            "n": len(images),
            "classes": len(self.class_names),
            "notes": list(self.notes),
            **({"cut": self.cut} if self.cut else {}),
            **({"unreadable": list(self.unreadable)} if self.unreadable else {}),
            **({"value_range": self.value_range} if self.value_range else {}),
        }


def load_images(
    options: ImageOptions | str,
    *,
    labels_needed: bool = True,
    train_needed: bool = True,
    known_range: Mapping[str, Sequence[float]] | None = None,
    **more: Any,
) -> ImageData:
    """Open a user's images: find columns, splits, class names and size, and cut the splits that are missing.

    Args:
        options: Which; or a name, with what else :class:`~rocl_transfer.data.ImageOptions` takes by its names.
        labels_needed: Refuse data without labels, of one class, or with a class that has no training image.
        train_needed: Refuse data with a test or validation split alone, and let a lone split called test be trained on.
        known_range: Values of black and white that a model was trained with, if the options give none.
        more: What differs from the options.

    Raises:
        UserError: Something is missing, wrong, or could mean more than one thing.
    """
    asked = ImageOptions(name=options, **more) if isinstance(options, str) else replace(options, **more)
    given = ValueRange.given(asked.value_range or known_range)
    source = _open(asked, train_needed)
    notes = list(source.notes)
    source, names = choose_splits(source, asked.train_split, asked.test_split, train_needed)
    unused = {split: len(raw.rows) for split, raw in source.splits.items() if split not in names}
    notes += [f"split {split!r} ({count:,} images) is not used" for split, count in unused.items()]
    used = [split for split in names if split is not None]
    class_names, labels = encode_labels(source, used, labels_needed)
    gaps = [] if labels_needed else [unlabelled(split, source.splits[split], source.class_names) for split in used]
    notes += [f"the labels are not used: {gap}" for gap in gaps if gap]
    notes += [*near_names(class_names), *missing_names(class_names), *order_note(class_names)]
    notes += rare_note(class_names, labels.values(), refuse=train_needed and source.class_names is None) if labels_needed else []
    sets = {split: ImageSet(source.splits[split].rows, np.arange(len(source.splits[split].rows)), labels.get(split)) for split in used}
    values, said = choose_range(Seen.of(image for images in sets.values() for image in _sample(images)), given)
    notes += said
    sets = {split: replace(images, values=values) for split, images in sets.items()}
    train = sets[str(names[0])]
    if not labels_needed and len(class_names) < 2:
        train, class_names = replace(train, labels=None), []
    parts = _divide(train, sets, names, asked)
    notes += parts.notes
    if train_needed and (not len(parts.train) or (labels_needed and not len(parts.test))):
        left = "".join(f"; {note}" for note in notes if "left out" in note)
        found = f"{len(parts.train)} images to train on and {len(parts.test)} to test on"
        raise UserError(f"{asked.name} has {found}: give more images, or name the splits{left}")
    if labels_needed:
        _require_classes(asked.name, parts.train if train_needed else None, class_names, source.hint)
    size = asked.image_size or _natural_size(
        next(images for images in (parts.train, parts.test, parts.validation) if images is not None and len(images)), notes
    )
    return ImageData(
        asked.name, source.revision, tuple(class_names), size, parts.train, parts.validation, parts.test, parts.test_split, parts.cut, tuple(notes),
        title=asked.title, unused=tuple(unused),
    )  # fmt: skip


def _open(asked: ImageOptions, train_needed: bool) -> Source:
    try:
        return open_source(asked.name, asked.config, asked.revision, asked.image_column, asked.label_column, train_needed)
    except OSError as error:  # a folder without permission, a name that is too long
        where = one_line(str(error.filename or asked.name))
        raise UserError(f"{where} cannot be read ({error.strerror or error}): check --data.name and its permissions") from error


@dataclass(frozen=True)
class _Parts:
    """See :class:`ImageData`."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    test_split: str
    cut: str | None
    notes: list[str]


def _divide(train: ImageSet, sets: Mapping[str, ImageSet], names: Sequence[str | None], asked: ImageOptions) -> _Parts:
    """What is trained on, held out and tested on by the ``names`` of these splits; what is missing is cut from ``train``."""
    notes: list[str] = []
    validation, words, cut = sets.get(names[1] or ""), names[2] or "none", None
    if train.labels is None:
        notes.append("the images have no labels, or one class: all of them are trained on")
        test = sets[words] if names[2] is not None else train.subset(np.arange(0))
    elif names[2] is None and len(train):
        train, test = _cut(train, TEST_FRACTION, asked.split_seed)
        cut = hashlib.sha256(test.indices.tobytes()).hexdigest()
        words = f"{TEST_FRACTION:.0%} of {names[0]}, stratified, split seed {asked.split_seed}"
        notes.append(f"there is no test split: {len(test)} images are held out as one ({words})")
    else:
        test = train if names[2] is None else sets[words]
    if validation is None and asked.validation_fraction > 0 and train.labels is not None and len(train):
        train, held = _cut(train, asked.validation_fraction, asked.split_seed + 1)
        validation = held if len(held) else None
        notes.append(
            f"there is no validation split: {len(held)} images of {names[0]} are held out as one (stratified, split seed {asked.split_seed})"
        )
    return _Parts(train, validation, test, words, cut, notes)


def _cut(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    kept, held = stratified_cut(None if images.labels is None else images.labels.numpy(), len(images), fraction, seed)
    return images.subset(kept), images.subset(held)


def _require_classes(name: str, train: ImageSet | None, class_names: list[str], hint: str) -> None:
    if odd := [label for label in class_names if one_line(label) != label]:
        raise UserError(f"class '{one_line(odd[0])}' has a line break or another character in its name that no table can show: rename it")
    if len(class_names) < 2:
        tail = f"; {hint}" if hint else ""
        raise UserError(f"{name} has only one class ({', '.join(class_names)}): a classifier needs images of two or more{tail}")
    if train is None or train.labels is None:
        return
    counts = torch.bincount(train.labels, minlength=len(class_names))
    if missing := [class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]:
        near = [note for note in near_names(class_names) if repr(missing[0]) in note]
        raise UserError(f"class {missing[0]!r} has no image to train on: {near[0] if near else 'add images or remove the class'}")


def _places(images: ImageSet) -> list[int]:
    """Up to 256 positions, evenly spaced."""
    return [int(place) for place in np.linspace(0, len(images) - 1, min(256, len(images)))]


def _sample(images: ImageSet) -> Iterator[Image.Image]:
    """Up to 256 images, opened; those that cannot be are passed over, and told of when all are read."""
    for position in _places(images):
        with listening(), suppress(UnreadableImageError), open_image(images.encoded(position), images.where(position)) as image:
            yield image


def _natural_size(images: ImageSet, notes: list[str]) -> int:
    shorter, unreadable = [], []
    for position in _places(images):
        try:
            with listening(), open_image(images.encoded(position), images.where(position)) as image:
                shorter.append(min(image.size))
        except UnreadableImageError as error:
            unreadable.append(f"{images.where(position)} ({error.reason})")
    if not shorter:
        raise UserError(f"none of {len(unreadable)} training images tried can be read, such as {unreadable[0]}: repair or replace them")
    size = min(int(np.median(shorter)), 224)
    if min(shorter) != max(shorter) or size != shorter[0]:
        notes.append(
            f"image sizes differ or are large (shorter sides {min(shorter)} to {max(shorter)} px): {size} px are used; --data.image_size sets it"
        )
    return size
