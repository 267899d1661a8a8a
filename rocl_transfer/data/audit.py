"""Every image read once before training: what cannot be read is left out and listed, copies between splits are counted."""

import hashlib
import logging
from array import array
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import Dataset

from rocl_transfer.bars import Bar
from rocl_transfer.data.decode import UnreadableImageError, examine
from rocl_transfer.data.images import ImageData, ImageSet
from rocl_transfer.data.options import StorageOptions
from rocl_transfer.data.stores import Decoded, LazyStore, Resident, Store, fits_in_memory
from rocl_transfer.data.workers import from_workers
from rocl_transfer.errors import UserError

log = logging.getLogger("rocl_transfer")
_Examined = tuple[Tensor | None, int, tuple[str, ...]] | str


def store_splits(
    data: ImageData,
    splits: Sequence[Literal["train", "validation", "test"]],
    device: torch.device,
    options: StorageOptions | None = None,
    *,
    labels_needed: bool = True,
    **more: Any,
) -> tuple[ImageData, dict[str, Store]]:
    """Read every image of ``splits``; leave out what cannot be read of train and validation; count held-out images that are in train as well.

    Images are the same where they are so pixel for pixel at the working size. What is found is logged and added to the notes.

    Where torch.distributed's processes have been started, all of them must call this. Images to be streamed are then read by one process each, and
    every process learns what the others found; images to be held in memory are decoded by every process, whose device needs all of them.

    Args:
        data: From :func:`load_images`.
        splits: Which; a validation split that ``data`` does not have is passed over.
        device: Where batches are wanted.
        options: How they are read and held. Where they are not checked, an unreadable one ends the run when its turn comes.
        labels_needed: Refuse a class whose training images are all unreadable.
        more: What differs from the options.

    Returns:
        ``data`` without the images left out, so that labels fit their store, and one store per split.

    Raises:
        UserError: A test image cannot be read, too many others cannot, a class is lost, or ``check`` is False for images in memory; the same
            on every process.
    """
    held = replace(options or StorageOptions(), **more)
    wanted = {split: images for split in splits if (images := getattr(data, split)) is not None}
    size, count = data.image_size, sum(len(images) for images in wanted.values())
    resident = fits_in_memory(count, size) if held.in_memory is None else held.in_memory
    if not held.check:
        if resident:
            raise UserError("--data.check false has no effect on images held in memory: leave it out, or give --data.in_memory false")
        note = "the images were not read before training (--data.check false): copies of training images were not looked for, odd ones not counted"
        return _noted(data, [note]), {split: LazyStore(images, size, device, held.workers) for split, images in wanted.items()}
    if not resident:
        # JPEGs of 500 x 375 px took 2.2 s a thousand on two workers: 47 minutes for ImageNet, which a trial of a few steps need not wait for.
        log.info("reading %s images (%s) once before training streams them; --data.check false skips it", f"{count:,}", ", ".join(wanted))
    reader = _Reader(size, device, resident, held.workers, held.max_unreadable)
    # Test first: one unreadable image in it ends the run.
    read = {split: reader.read(split, wanted[split]) for split in sorted(wanted, key=lambda split: split != "test")}
    if labels_needed and "train" in wanted:
        _require_readable(data, read["train"])
    notes = [_left_out(split, len(wanted[split]), read[split].found.unreadable) for split in wanted if read[split].found.unreadable]
    notes += [note for split in wanted for note in (*_oddities(split, read[split]), *_contradictions(split, read[split], data.class_names, size))]
    if "train" in wanted:
        notes += [note for split in wanted if split != "train" for note in _copies(split, read[split], read["train"], data.class_names, size)]
    readable: dict[str, Any] = {split: read[split].images for split in wanted}
    unreadable = tuple(f"{split}: {entry}" for split in wanted for entry in read[split].found.unreadable)
    return _noted(replace(data, **readable, unreadable=unreadable), notes), {split: read[split].store for split in wanted}


class _Found(NamedTuple):
    """Positions of readable images and digests of their pixels; names of the others, with the reason; how many are odd in a way, and the first."""

    kept: np.ndarray
    digests: np.ndarray
    unreadable: list[str]
    odd: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class _Read:
    images: ImageSet
    store: Store
    found: _Found


@dataclass(frozen=True)
class _Reader:
    size: int
    device: torch.device
    resident: bool
    workers: int
    max_unreadable: float

    def read(self, split: str, images: ImageSet) -> _Read:
        """Read all images of one split; the readable ones are what is stored."""
        share = range(len(images)) if self.resident else _share(len(images))
        pixels = torch.empty(len(images) if self.resident else 0, 3, self.size, self.size, dtype=torch.uint8)
        kept, digests, unreadable, odd = array("q"), array("Q"), list[str](), dict[str, tuple[int, str]]()
        bar = Bar(len(share), f"reading {split}", shown=log.isEnabledFor(logging.INFO), delay=5)
        with bar, closing(self._examined(images, share)) as examined:
            for position, found in zip(share, examined, strict=False):
                bar.update()
                if isinstance(found, str):
                    unreadable.append(found)
                    if split == "test":
                        break
                    continue
                image, digest, oddities = found
                for oddity in oddities:
                    count, first = odd.get(oddity, (0, ""))
                    odd[oddity] = count + 1, first or images.where(position)
                if image is not None:
                    pixels[len(kept)] = image
                kept.append(position)
                digests.append(digest)
        mine = _Found(np.array(kept), np.array(digests), unreadable, odd)
        whole = mine if self.resident else _joined(mine)
        self._refuse(split, len(images), whole.unreadable)
        images = images.subset(whole.kept) if whole.unreadable else images
        # A slice, not a selection: a second copy of all images might not fit.
        store = Resident(pixels[: len(kept)].to(self.device)) if self.resident else LazyStore(images, self.size, self.device, self.workers)
        return _Read(images, store, whole)

    def _refuse(self, split: str, count: int, unreadable: list[str]) -> None:
        if unreadable and split == "test":
            raise UserError(f"{unreadable[0]} cannot be read, and no test image may be left out of the results: repair or remove it")
        if unreadable and (lost := len(unreadable) / count) > self.max_unreadable:
            raise UserError(
                f"{len(unreadable):,} of {count:,} images of {split} ({lost:.1%}) cannot be read, such as "
                f"{unreadable[0]}: repair or remove them, or raise --data.max_unreadable (now {float(self.max_unreadable):g})"
            )

    def _examined(self, images: ImageSet, positions: range) -> Generator[_Examined, None, None]:
        decoded = Decoded(images, self.size)
        if not self.resident:
            # A generator of its own, or the loader would draw from the one that training draws from.
            options = {"batch_size": 64, "sampler": positions, "collate_fn": list, "generator": torch.Generator()}
            yield from chain.from_iterable(from_workers(_Digests(decoded), workers=self.workers, **options))
            return
        pool = ThreadPoolExecutor(self.workers)  # Pillow decodes, and hashlib hashes, outside the interpreter's lock
        try:
            yield from pool.map(lambda position: _examine(decoded, position), positions)
        finally:
            pool.shutdown(cancel_futures=True)


def _share(count: int) -> range:
    """This process's contiguous part of ``count`` images."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if _several() else (0, 1)
    return range(count * rank // world, count * (rank + 1) // world)


def _joined(found: _Found) -> _Found:
    """What all processes found, in the order of the images."""
    if not _several():
        return found
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, found)
    kept, digests, unreadable, odds = zip(*parts, strict=True)
    together: dict[str, tuple[int, str]] = {}
    for oddity, (count, first) in chain.from_iterable(odd.items() for odd in odds):
        before = together.get(oddity, (0, first))
        together[oddity] = before[0] + count, before[1]
    return _Found(np.concatenate(kept), np.concatenate(digests), list(chain.from_iterable(unreadable)), together)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _examine(decoded: Decoded, position: int) -> _Examined:
    """The image and a digest of its pixels; or, where it cannot be read, its name and the reason.

    64 bits: that any of a million images to train on and a hundred thousand held out agree by accident has a probability of 5e-9.
    """
    try:
        images = decoded.images
        image, odd = examine(images.encoded(position), decoded.size, images.where(position), images.values)
    except UnreadableImageError as error:
        return f"{decoded.images.where(position)} ({error.reason})"
    return image, int.from_bytes(hashlib.blake2b(image.numpy().data, digest_size=8).digest()), odd


class _Digests(Dataset[_Examined]):
    """What worker processes hand back: no pixels, which are decoded anew when training asks for them."""

    def __init__(self, decoded: Decoded) -> None:
        self.decoded = decoded

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, position: int) -> _Examined:
        found = _examine(self.decoded, position)
        return found if isinstance(found, str) else (None, *found[1:])


def _require_readable(data: ImageData, train: _Read) -> None:
    if data.train.labels is None or train.images.labels is None:
        return
    lost = sorted(set(data.train.labels.tolist()) - set(train.images.labels.tolist()))
    if lost:
        raise UserError(f"no training image of class {data.class_names[lost[0]]!r} can be read: repair its images or remove the class")


def _left_out(split: str, count: int, unreadable: list[str]) -> str:
    if len(unreadable) == 1:
        return f"1 of {count:,} images of {split} cannot be read and is left out: {unreadable[0]}"
    return f"{len(unreadable):,} of {count:,} images of {split} cannot be read and are left out, such as {unreadable[0]}"


def _oddities(split: str, read: _Read) -> list[str]:
    notes = []
    for oddity, (count, first) in sorted(read.found.odd.items()):
        which, such = ("is", "") if count == 1 else ("are", "such as ")
        notes.append(f"{count:,} of {len(read.images):,} images of {split} {which} {oddity}; {such}{first}")
    return notes


def _contradictions(split: str, read: _Read, class_names: Sequence[str], size: int) -> list[str]:
    """Images that are there under two labels."""
    if read.images.labels is None:
        return []
    labels, digests = read.images.labels.numpy(), read.found.digests
    order = np.lexsort((labels, digests))
    pairs = np.flatnonzero((digests[order][1:] == digests[order][:-1]) & (labels[order][1:] != labels[order][:-1]))
    if not len(pairs):
        return []
    one, other = (_labelled(read.images, at, class_names) for at in sorted((int(order[pairs[0]]), int(order[pairs[0] + 1]))))
    which = "image of {} is there under two labels" if len(pairs) == 1 else "images of {} are there under two labels"
    return [f"{len(pairs):,} {which.format(split)}, the same at {size} px pixel for pixel, such as {one} and {other}"]


def _labelled(images: ImageSet, position: int, class_names: Sequence[str]) -> str:
    assert images.labels is not None
    return f"{images.where(position)} ({class_names[int(images.labels[position])]})"


def _copies(split: str, held: _Read, train: _Read, class_names: Sequence[str], size: int) -> list[str]:
    found = np.flatnonzero(np.isin(held.found.digests, train.found.digests))
    if not len(found):
        return []
    twin = np.flatnonzero(train.found.digests == held.found.digests[found[0]])[0]
    pair = f"{held.images.where(found[0])} and {train.images.where(twin)}"
    share = f"{len(found):,} of {len(held.images):,} images of {split} ({len(found) / len(held.images):.1%})"
    which = "is also an image of train" if len(found) == 1 else "are also images of train"
    other = _labelled_otherwise(found, held, train)
    notes = [f"{share} {which}, the same at {size} px pixel for pixel, such as {pair}"]
    if len(other):
        pair = " and ".join(_labelled(read.images, at, class_names) for read, at in zip((held, train), other[0], strict=True))
        notes.append(f"{len(other):,} of them {'has' if len(other) == 1 else 'have'} another label there, such as {pair}")
    return notes


def _labelled_otherwise(found: np.ndarray, held: _Read, train: _Read) -> list[tuple[int, int]]:
    """Positions of held-out images, and of a copy in train that has another label."""
    if held.images.labels is None or train.images.labels is None:
        return []
    labels = dict[int, dict[int, int]]()
    for at in np.flatnonzero(np.isin(train.found.digests, held.found.digests[found])).tolist():
        labels.setdefault(int(train.found.digests[at]), {}).setdefault(int(train.images.labels[at]), at)
    pairs = []
    for at in found.tolist():
        mine = int(held.images.labels[at])
        if others := [twin for label, twin in labels[int(held.found.digests[at])].items() if label != mine]:
            pairs.append((at, others[0]))
    return pairs


def _noted(data: ImageData, notes: list[str]) -> ImageData:
    for note in notes:
        log.info("data: %s", note)
    return replace(data, notes=(*data.notes, *notes))
