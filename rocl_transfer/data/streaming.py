"""Data that fits no disk at hand: shards read over the network during training, for pre-training without labels.

What fits the disk is better off there (:func:`rocl_transfer.data.load_images`): memory-mapped, in one true permutation per epoch that does not depend
on the number of processes, resumed at no cost, and checked beforehand. Of a stream none of this can be had.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from rocl_transfer.data.batches import Batch, Sampler, derive_seed
from rocl_transfer.data.decode import Encoded, UnreadableImageError, decode
from rocl_transfer.data.hub_datasets import image_column_of, load_with_datasets
from rocl_transfer.data.images import ImageData, ImageSet
from rocl_transfer.data.inventory import files_below
from rocl_transfer.data.local import group_by_split, holds_shards, parquet_splits
from rocl_transfer.data.options import PretrainImageOptions
from rocl_transfer.data.shards import IMAGE, images_of
from rocl_transfer.data.splits import train_split
from rocl_transfer.data.value_range import ValueRange
from rocl_transfer.data.workers import from_workers
from rocl_transfer.errors import UserError, one_line

log = logging.getLogger("rocl_transfer")


@dataclass(frozen=True)
class Stream:
    """Rows of one split, in the order of their shards: :class:`~rocl_transfer.data.sources.Rows` that can be counted, not taken by number."""

    rows: Any
    column: str
    count: int
    values: ValueRange = ValueRange()

    def __len__(self) -> int:
        return self.count

    def encoded(self, index: int) -> NoReturn:
        """Refused: see the class."""
        raise UserError(f"{self.where(index)} is part of a stream, which has no order: leave out --data.streaming")

    def where(self, index: int) -> str:
        """See :class:`~rocl_transfer.data.sources.Rows`."""
        return f"image {index}"


def open_stream(options: PretrainImageOptions | str, **more: Any) -> tuple[ImageData, Stream]:
    """Open images without reading more of them than their columns; labels are not used, and nothing is held out.

    Args:
        options: Which; or the name of a Hub dataset or of a local folder of shards, with what else
            :class:`~rocl_transfer.data.PretrainImageOptions` takes by its names. Without a value range integers are 16 bits, floats [0, 1].
        more: What differs from the options.

    Raises:
        UserError: It cannot be opened, or a column, the split or the number of images is not known.
    """
    asked = PretrainImageOptions(name=options, streaming=True, **more) if isinstance(options, str) else replace(options, **more)
    name = asked.name
    splits, commit, notes = _splits(name, asked.config, asked.revision, asked.image_column)
    split = train_split(splits, asked.train_split)
    notes += [f"split {other!r} is not used" for other in splits if other != split]
    opened = splits[split]
    known = (opened.info.splits or {}).get(split)
    number = asked.images or (known.num_examples if known is not None else None)
    if not number:
        raise UserError(f"{name} does not say how many images its split {split!r} has: give their number with --data.images")
    import datasets

    if holds_shards(Path(name)):
        column, rows = IMAGE, opened
    else:
        column = image_column_of(opened.features, asked.image_column)
        # By row groups, where the shards are parquet's: with two workers and 15,000 images 1.0 GB each, by files (220 MB) up to 1.8 GB.
        rows = opened.select_columns([column]).cast_column(column, datasets.Image(decode=False)).reshard()
    values = ValueRange.given(asked.value_range)
    stream = Stream(rows, column, number, values)
    train = ImageSet(stream, np.arange(number), None, values)
    note = "the images are streamed: none was read before training, an epoch is as many as there are, and a few may come twice or not at all in one"
    assert asked.image_size is not None  # a stream needs one
    nothing = train.subset(np.arange(0))
    return ImageData(name, commit, (), asked.image_size, train, None, nothing, "none", None, (*notes, note), title=asked.title), stream


def _splits(name: str, config: str | None, revision: str | None, image_column: str | None) -> tuple[dict[str, Any], str | None, list[str]]:
    """The splits of ``name``, as rows that come one by one; of a local folder, every shard is of one of them."""
    folder = Path(name)
    if not folder.is_dir() or config is not None:
        splits, commit = load_with_datasets(name, config, revision, streaming=True)
        return splits, commit, []
    if not holds_shards(folder):
        files, notes = parquet_splits(folder)
        splits, commit = load_with_datasets(name, config, revision, streaming=True, files=files)
        return splits, commit, notes
    import datasets

    if revision is not None:
        raise UserError(f"--data.revision has no effect with the folder {name}: leave it out")
    paths = [path for path in files_below(folder) if path.suffix.lower() == ".tar"]
    features = datasets.Features({IMAGE: datasets.Image(decode=False)})
    return {
        split: datasets.IterableDataset.from_generator(images_of, features=features, gen_kwargs={"paths": names, "image_column": image_column})
        for split, names in group_by_split(folder, paths).items()
    }, None, []  # fmt: skip


@dataclass(frozen=True)
class StreamedBatches:
    """What :class:`~rocl_transfer.data.batches.Batches` are, from a stream.

    Its shards are split between processes and, within one, between the workers that decode them. They are shuffled anew each epoch, and several are
    mixed in a buffer. The order follows from the sampler's seed, the epoch and the numbers of processes and workers; an epoch that is resumed at
    ``first_step`` reads what came before once more, without decoding it, so the images are exactly
    those of an uninterrupted run. Who runs out of shards begins them again: no step waits. An image that cannot be read gives its place to
    another one of its batch, and is counted.

    Args:
        stream: From :func:`open_stream`.
        sampler: How many images a step takes, and their seeds.
        size: Side in pixels.
        device: Where batches go.
        workers: Processes that read and decode.
        buffer: Encoded images that each worker holds to draw from.
        max_unreadable: Largest share of an epoch's images that may be unreadable.
    """

    stream: Stream
    sampler: Sampler
    size: int
    device: torch.device
    workers: int = 2
    buffer: int = 1000
    max_unreadable: float = 0.05

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This process's batches of one epoch, from its step ``first_step`` on.

        Raises:
            UserError: There are too few shards for the processes, or too many unreadable images.
        """
        rows = self.stream.rows
        if rows.num_shards < self.sampler.world:
            raise UserError(f"the data has {rows.num_shards} shards for {self.sampler.world} processes: start fewer, or write it in more files")
        rows = rows.shuffle(seed=derive_seed(self.sampler.seed, epoch), buffer_size=self.buffer)
        rows = rows.shard(num_shards=self.sampler.world, index=self.sampler.rank, contiguous=False)
        workers = min(self.workers, rows.num_shards)
        whole = _Passes(rows, self.stream, self.size, self.sampler.batch_size, first_step // workers)
        # A generator of its own, or the loader would draw from the one that training draws from.
        options = {"batch_size": None, "pin_memory": self.device.type == "cuda", "generator": torch.Generator()}
        read = from_workers(whole, workers=workers, **options)
        unreadable: dict[str, None] = {}
        # Batches come from the workers in turn, and always from the first one on.
        plan = self.sampler.plan(epoch, first_step)
        for (_, share, seeds), (images, names) in zip(plan, islice(read, first_step % workers, None), strict=False):
            self._note(unreadable, names)
            yield Batch(images[:share].to(self.device, non_blocking=True), None, seeds)

    def name(self, position: int) -> str:
        """As :class:`~rocl_transfer.data.batches.Batches` calls it; batches of a stream have no positions."""
        return self.stream.where(position)

    def _note(self, unreadable: dict[str, None], names: list[str]) -> None:
        for name in names:
            if name not in unreadable:
                log.warning("data: %s cannot be read and is left out", name)
            unreadable[name] = None
        if len(unreadable) > self.max_unreadable * self.sampler.num_images / self.sampler.world:
            raise UserError(
                f"{len(unreadable):,} of the images streamed cannot be read, such as {next(iter(unreadable))}: use other data, "
                f"or raise --data.max_unreadable (now {float(self.max_unreadable):g})"
            )


class _Passes(IterableDataset[tuple[Tensor, list[str]]]):
    """One worker's batches, uint8 (N, 3, H, W), without end, its batch ``first`` first; and the names of what was unreadable in each."""

    def __init__(self, rows: Any, stream: Stream, size: int, batch: int, first: int) -> None:
        self.rows, self.column, self.values, self.size, self.batch, self.first = rows, stream.column, stream.values, size, batch, first

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        numbered = islice(self._endless(), self.first * self.batch, None)
        while True:
            yield self._decoded(list(islice(numbered, self.batch)))

    def _endless(self) -> Iterator[tuple[str, Any]]:
        worker, empty = get_worker_info(), True
        assert worker is not None
        while True:
            for number, row in enumerate(self.rows):
                yield f"image {number} of worker {worker.id}", row[self.column]
                empty = False
            if empty:
                raise UserError("a shard of the data has no image: remove it")

    def _decoded(self, rows: list[tuple[str, Any]]) -> tuple[Tensor, list[str]]:
        images, unreadable = [], []
        for where, value in rows:
            try:
                where = one_line((value or {}).get("path") or where)
                images.append(decode(_bytes(value, where), self.size, where, self.values))
            except UnreadableImageError as error:
                unreadable.append(f"{where} ({error.reason})")
        if not images:
            raise UserError(f"none of {len(rows)} images in a row can be read, such as {unreadable[0]}: use other data")
        return torch.stack([images[i % len(images)] for i in range(len(rows))]), unreadable


def _bytes(value: Any, where: str) -> Encoded:
    import fsspec  # type: ignore[import-untyped]

    if value is None or (value["bytes"] is None and value["path"] is None):
        raise UnreadableImageError(f"{where} has no image: remove the row", "there is no image in it")
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    with fsspec.open(value["path"], "rb") as file:
        return bytes(file.read())
