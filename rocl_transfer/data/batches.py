"""Which images make which batch, and where every random number comes from: nothing depends on the number of processes."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rocl_transfer.data.device import to_device
from rocl_transfer.data.stores import Store
from rocl_transfer.errors import UserError


class Batch(NamedTuple):
    """One process's share of a step.

    Attributes:
        inputs: uint8 images (N, 3, H, W), or features (N, D).
        labels: (N,) int64, or None.
        seeds: One for each of the equal, contiguous groups that the N fall into.
        positions: (N,) of the images in the training set, on the CPU, if they have any.
    """

    inputs: Tensor
    labels: Tensor | None
    seeds: tuple[int, ...]
    positions: Tensor | None = None

    def split(self, parts: int) -> list["Batch"]:
        """As ``parts`` equal batches of whole groups."""
        if parts == 1:
            return [self]
        groups = len(self.seeds) // parts
        size = len(self.inputs) // parts
        cuts = [slice(number * size, (number + 1) * size) for number in range(parts)]
        return [
            Batch(
                self.inputs[cut],
                None if self.labels is None else self.labels[cut],
                self.seeds[number * groups : (number + 1) * groups],
                None if self.positions is None else self.positions[cut],
            )
            for number, cut in enumerate(cuts)
        ]


def derive_seed(*parts: int) -> int:
    """One well-mixed seed from several numbers, such as (seed, step, group)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generators(seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """A generator for each seed; different purposes draw different streams from the same seeds."""
    key = zlib.crc32(purpose.encode())
    return [torch.Generator(device).manual_seed(derive_seed(seed, key)) for seed in seeds]


@dataclass(frozen=True)
class Sampler:
    """One global permutation from (seed, epoch), of which each process takes a contiguous, group-aligned slice of each global batch.

    A global batch always falls into the same number of equal groups; so the last, partial one of an epoch does as well, and the fewer than
    that many images which do not divide wait for the next epoch's permutation.

    Args:
        num_images: N.
        batch_size: Images per step in each process.
        seed: For everything random.
        group_size: Images that share a seed and are each other's negatives in RoCL's attack; divides ``batch_size`` (default: all of it).
        rank: This process.
        world: Number of processes.
        smallest: Images that each group of a partial batch must have to be kept. BatchNorm's statistics of two images are no good.
    """

    num_images: int
    batch_size: int
    seed: int
    group_size: int | None = None
    rank: int = 0
    world: int = 1
    smallest: int = 2

    def __post_init__(self) -> None:
        if self.batch_size % (self.group_size or self.batch_size):
            raise UserError(f"--objective.group_size {self.group_size} must divide --batch_size {self.batch_size}")
        if not self.steps_per_epoch:
            raise UserError(f"{self.num_images} images are too few for a step: at least {2 * self._groups} are needed")

    @property
    def global_batch(self) -> int:
        """Images per step over all processes."""
        return self.batch_size * self.world

    @property
    def _groups(self) -> int:
        return self.global_batch // (self.group_size or self.batch_size)

    def _size(self, step: int) -> int:
        """Images of the epoch's batch ``step``: the last one is kept where it gives each group enough, or is the only one."""
        rest = min(self.num_images - step * self.global_batch, self.global_batch)
        rest -= rest % self._groups
        return rest if rest >= (self.smallest if step else 2) * self._groups else 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the partial batch included."""
        whole = self.num_images // self.global_batch
        return whole + bool(self._size(whole))

    def images(self, steps: int) -> int:
        """Images over all processes in the first ``steps`` steps of a training."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        sizes = [self._size(step) for step in range(self.steps_per_epoch)]
        return epochs * sum(sizes) + sum(sizes[:rest])

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Positions and group seeds of this process's batches, from the epoch's step ``first_step`` on."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        permutation = torch.randperm(self.num_images, generator=generator)
        for start, share, seeds in self.plan(epoch, first_step):
            yield permutation[start : start + share], seeds

    def plan(self, epoch: int, first_step: int = 0) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """The same without an order: where in the epoch this process's batches start, how many images they have, and their groups' seeds."""
        groups = self._groups // self.world
        for step in range(first_step, self.steps_per_epoch):
            share = self._size(step) // self.world
            start = step * self.global_batch + self.rank * share
            number = epoch * self.steps_per_epoch + step
            seeds = tuple(derive_seed(self.seed, number, self.rank * groups + group) for group in range(groups))
            yield start, share, seeds


@dataclass(frozen=True)
class Batches:
    """The batches of every epoch: a store of inputs, their labels, and the order they come in.

    Args:
        store: Inputs by position.
        labels: (N,), or None.
        sampler: The order.
        name: What an image is called by its position, for whoever has to look at it.
    """

    store: Store
    labels: Tensor | None
    sampler: Sampler
    name: Callable[[int], str] = "image {}".format

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This process's batches of one epoch, from its step ``first_step`` on."""
        plan = list(self.sampler.epoch(epoch, first_step))
        inputs = self.store.batches(positions for positions, _ in plan)
        for (positions, seeds), batch in zip(plan, inputs, strict=True):
            labels = None if self.labels is None else to_device(self.labels[positions], batch.device)
            yield Batch(batch, labels, seeds, positions)
