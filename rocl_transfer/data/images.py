"""A user's data, whatever it is, as train, validation and test splits of images with labels 0 .. K-1."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rocl_transfer.data.decode import Encoded, UnreadableImageError, open_image
from rocl_transfer.data.files import open_csv, open_safetensors
from rocl_transfer.data.hub import open_dataset
from rocl_transfer.data.labels import encode_labels
from rocl_transfer.data.sources import Rows, Source, is_image_folder, open_digits, open_image_folder
from rocl_transfer.data.splits import stratified_cut
from rocl_transfer.errors import UserError, did_you_mean, is_pickle, one_line, path_of

TEST_FRACTION = 0.2


@dataclass(frozen=True)
class ImageSet:
    """One split: image ``indices[i]`` of ``rows`` with ``labels[i]``, which is None where there are no labels."""

    rows: Rows
    indices: np.ndarray
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, chosen: np.ndarray) -> "ImageSet":
        """The images at positions ``chosen``."""
        return ImageSet(self.rows, self.indices[chosen], None if self.labels is None else self.labels[torch.from_numpy(chosen)])

    def encoded(self, position: int) -> Encoded:
        """Bytes, path or pixels of the image at ``position``."""
        return self.rows.encoded(int(self.indices[position]))

    def where(self, position: int) -> str:
        """How an error names the image at ``position``."""
        return self.rows.where(int(self.indices[position]))


@dataclass(frozen=True)
class ImageData:
    """Everything a recipe needs to know of its data.

    Attributes:
        name: As the user gave it.
        revision: Commit of a Hub dataset.
        class_names: One a label; empty where there are no labels.
        image_size: Side of the decoded images in pixels.
        train: Images to train on.
        validation: Held out for monitors and for choosing; None where none was wanted.
        test: Held out for the results; empty where there are no labels and no such split.
        test_split: What the test split is, in words that go beside its numbers.
        cut: Where the test split was cut from train, a hash of which images it took; None else.
        notes: What was decided by itself, a sentence each, for the log and the card.
        unreadable: Images that were left out because they cannot be read, with the reason.
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

    def whole(self) -> "ImageData":
        """With all images of a split that the others were cut from as the test split: for data that is there to be measured on.

        Raises:
            UserError: There is a test split already.
        """
        if self.cut is None:
            raise UserError(f"{self.name} has a test split ({self.test_split}): --split all is for data without one; leave it out")
        parts = [part for part in (self.train, self.validation, self.test) if part is not None and part.rows is self.train.rows]
        order = np.argsort(np.concatenate([part.indices for part in parts]))
        labels = torch.cat([part.labels for part in parts if part.labels is not None])
        images = ImageSet(self.train.rows, np.concatenate([part.indices for part in parts])[order], labels[torch.from_numpy(order)])
        notes = (*self.notes, "all images are measured on, whichever of these splits they would be in")
        return replace(self, test=images, test_split="all images", cut=None, notes=notes)

    def facts(self, images: ImageSet, split: str) -> dict[str, Any]:
        """What a results record says of the data that ``images``, its split ``split``, were measured on."""
        return {
            "name": self.name,
            "revision": self.revision,
            "split": split,
            "n": len(images),
            "classes": len(self.class_names),
            "notes": list(self.notes),
            **({"cut": self.cut} if self.cut else {}),
            **({"unreadable": list(self.unreadable)} if self.unreadable else {}),
        }


def load_images(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_size: int | None = None,
    validation_fraction: float = 0.1,
    split_seed: int = 0,
    labels_needed: bool = True,
) -> ImageData:
    """Open ``name``, find columns, splits, class names and size by itself, and cut the splits that are missing.

    Args:
        name: ``digits``, a local folder, or a Hub dataset id.
        config: Configuration of a Hub dataset.
        revision: Of a Hub dataset.
        image_column: Where more than one could be meant.
        label_column: Where more than one could be meant.
        train_split: Its name (default: train, or the only one there is).
        test_split: Its name (default: test, or 20 % of train).
        image_size: In pixels (default: the data's own; where sizes differ, their median shorter side, at most 224).
        validation_fraction: Share of train held out where there is no validation split.
        split_seed: Of the splits cut from train.
        labels_needed: Refuse data without labels, of one class, or with a class that has no training image.

    Raises:
        UserError: Something is missing, wrong, or could mean more than one thing.
    """
    try:
        source = _open(name, config, revision, image_column, label_column)
    except OSError as error:  # a folder without permission, a name that is too long
        where = one_line(str(error.filename or name))
        raise UserError(f"{where} cannot be read ({error.strerror or error}): check --data.name and its permissions") from error
    notes = list(source.notes)
    train_name = _train_split(source, train_split)
    validation_name = next((s for s in ("validation", "valid", "val", "dev") if s in source.splits and s not in (train_name, test_split)), None)
    test_name = test_split or ("test" if "test" in source.splits and train_name != "test" else None)
    if test_name == train_name:
        raise UserError(f"split {train_name!r} is to be trained and tested on: name another one with --data.test_split or --data.train_split")
    if test_name is not None and test_name not in source.splits:
        raise UserError(f"there is no split {test_name!r}{did_you_mean(test_name, source.splits)}: the splits are {', '.join(source.splits)}")

    used = [s for s in (train_name, validation_name, test_name) if s is not None]
    class_names, labels = encode_labels(source, used, labels_needed)
    sets = {split: ImageSet(source.splits[split].rows, np.arange(len(source.splits[split].rows)), labels.get(split)) for split in used}
    train, validation = sets[train_name], sets.get(validation_name or "")
    words, cut = test_name or "none", None
    if not labels_needed and len(class_names) < 2:
        train, class_names = ImageSet(train.rows, train.indices, None), []
    if train.labels is None:
        notes.append("the images have no labels, or one class: all of them are trained on")
        test = sets[test_name] if test_name is not None else train.subset(np.arange(0))
    elif test_name is None:
        train, test = _cut(train, TEST_FRACTION, split_seed)
        cut = hashlib.sha256(test.indices.tobytes()).hexdigest()
        words = f"{TEST_FRACTION:.0%} of {train_name}, stratified, split seed {split_seed}"
        notes.append(f"there is no test split: {len(test)} images are held out as one ({words})")
    else:
        test = sets[test_name]
    if validation is None and validation_fraction > 0 and train.labels is not None:
        train, held = _cut(train, validation_fraction, split_seed + 1)
        validation = held if len(held) else None
        notes.append(f"there is no validation split: {len(held)} images of {train_name} are held out as one (stratified, split seed {split_seed})")
    if not len(train) or (labels_needed and not len(test)):
        raise UserError(f"{name} has {len(train)} images to train on and {len(test)} to test on: give more images, or name the splits")
    if labels_needed:
        _require_classes(name, train, class_names)
    size = image_size or _natural_size(train, notes)
    return ImageData(name, source.revision, tuple(class_names), size, train, validation, test, words, cut, tuple(notes))


def _open(name: str, config: str | None, revision: str | None, image_column: str | None, label_column: str | None) -> Source:
    def refuse(kind: str, **options: str | None) -> None:
        if given := [option for option, value in options.items() if value is not None]:
            raise UserError(f"--data.{given[0]} has no effect with {kind} {name}: leave it out")

    path = path_of(name)
    hub, columns = {"config": config, "revision": revision}, {"image_column": image_column, "label_column": label_column}
    if name == "digits":
        refuse("the bundled", **hub, **columns)
        return open_digits()
    if path.is_dir() and is_image_folder(path):
        refuse("the image folder", **hub, **columns)
        return open_image_folder(path)
    if path.is_file() and path.suffix == ".csv":
        refuse("the CSV", **hub)
        return open_csv(path, **columns)
    if path.is_file() and path.suffix == ".safetensors":
        refuse("the file", **hub, **columns)
        return open_safetensors(path)
    if path.is_file():
        raise UserError(f"{name} is neither a CSV nor safetensors{is_pickle([path])}: give the folder of images that it is in")
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name):
        raise UserError(f"there is no folder {name}: check --data.name")
    return _open_with_datasets(str(path) if path.is_dir() else name, config, revision, image_column, label_column)


def _open_with_datasets(name: str, *options: str | None) -> Source:
    try:
        return open_dataset(name, *options)
    except UserError:
        raise
    except Exception as error:  # datasets hands its files to a dozen libraries, each with errors of its own
        reason = one_line(str(error).strip().split("\n")[0])[:200]
        raise UserError(f"{name} cannot be opened ({type(error).__name__}: {reason}): repair its files, or leave out what is no image") from error


def _train_split(source: Source, wanted: str | None) -> str:
    if wanted is not None and wanted not in source.splits:
        raise UserError(f"there is no split {wanted!r}{did_you_mean(wanted, source.splits)}: the splits are {', '.join(source.splits)}")
    if wanted is None and "train" not in source.splits:
        if len(source.splits) > 1:
            raise UserError(f"there is no split 'train': name one of {', '.join(source.splits)} with --data.train_split")
        return next(iter(source.splits))
    return wanted or "train"


def _cut(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    kept, held = stratified_cut(None if images.labels is None else images.labels.numpy(), len(images), fraction, seed)
    return images.subset(kept), images.subset(held)


def _require_classes(name: str, train: ImageSet, class_names: list[str]) -> None:
    assert train.labels is not None
    if odd := [label for label in class_names if one_line(label) != label]:
        raise UserError(f"class '{one_line(odd[0])}' has a line break or another character in its name that no table can show: rename it")
    counts = torch.bincount(train.labels, minlength=len(class_names))
    if len(class_names) < 2:
        raise UserError(f"{name} has only one class ({class_names[0]}): a classifier needs images of two or more")
    if missing := [class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]:
        raise UserError(f"class {missing[0]!r} has no image to train on: add images or remove the class")


def _natural_size(images: ImageSet, notes: list[str]) -> int:
    shorter, unreadable = [], []
    for position in np.linspace(0, len(images) - 1, min(256, len(images))).astype(int).tolist():
        try:
            shorter.append(min(open_image(images.encoded(position), images.where(position)).size))
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
