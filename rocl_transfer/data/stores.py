"""Where decoded images live: all in one tensor on the device, or decoded by workers as they are needed. Both give the same batches."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rocl_transfer.data.decode import decode
from rocl_transfer.data.device import to_device
from rocl_transfer.data.images import ImageSet
from rocl_transfer.data.workers import from_workers

RESIDENT_PIXELS = 96
RESIDENT_BYTES = 8 * 2**30


class Store(Protocol):
    """Anything that batches are taken from by position."""

    def __len__(self) -> int:
        """How many."""

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """One batch on the device for each tensor of positions, in order."""


class Resident:
    """A tensor of all inputs: uint8 images (N, 3, H, W), or features (N, D).

    Args:
        inputs: On the device that batches are wanted on.
    """

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """See :class:`Store`."""
        for chosen in positions:
            yield self.inputs[to_device(chosen, self.inputs.device)]


class Decoded(Dataset[Tensor]):
    """Images by position, decoded when they are asked for."""

    def __init__(self, images: ImageSet, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        return decode(self.images.encoded(position), self.size, self.images.where(position), self.images.values)


class LazyStore:
    """Images decoded by worker processes, a few batches ahead.

    Args:
        images: Which.
        size: Side in pixels.
        device: Where batches go.
        workers: Processes.
    """

    def __init__(self, images: ImageSet, size: int, device: torch.device, workers: int) -> None:
        self.decoded, self.device, self.workers = Decoded(images, size), device, workers

    def __len__(self) -> int:
        return len(self.decoded)

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """See :class:`Store`."""
        options = {"batch_sampler": (chosen.tolist() for chosen in positions), "pin_memory": self.device.type == "cuda"}
        for batch in from_workers(self.decoded, workers=self.workers, **options):
            yield batch.to(self.device, non_blocking=True)


def fits_in_memory(count: int, size: int) -> bool:
    """Whether ``count`` images of ``size`` px are held in device memory unless something else is said."""
    return size <= RESIDENT_PIXELS and count * 3 * size * size <= RESIDENT_BYTES


def store_images(images: ImageSet, size: int, device: torch.device, in_memory: bool | None = None, workers: int = 2) -> Store:
    """Decode ``images`` now into device memory, or later by workers; the first unreadable one ends it (see :func:`store_splits`).

    Args:
        images: Which.
        size: Side in pixels.
        device: Where batches are wanted.
        in_memory: None decides: up to 96 px and 8 GiB.
        workers: Processes that decode streamed images, and threads that decode resident ones.

    Raises:
        UserError: An image is broken; its name is in the sentence.
    """
    decoded = Decoded(images, size)
    if not (fits_in_memory(len(images), size) if in_memory is None else in_memory):
        return LazyStore(images, size, device, workers)
    tensor = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter's lock
        for position, image in enumerate(pool.map(decoded.__getitem__, range(len(images)), chunksize=64)):
            tensor[position] = image
    return Resident(tensor.to(device))
