"""What every training run repeats, once: devices and processes, the run folder, resuming, the loop's settings."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.optim import Optimizer

from rocl_transfer.data import Batches, Sampler, StreamedBatches
from rocl_transfer.errors import UserError
from rocl_transfer.objectives import Objective
from rocl_transfer.options import default_of, dotted, require, write_options
from rocl_transfer.training.adoption import adopted
from rocl_transfer.training.checkpoints import Checkpoints
from rocl_transfer.training.guard import Judge, Recovery
from rocl_transfer.training.loop import train
from rocl_transfer.training.optimization import OptimizerOptions, Schedule
from rocl_transfer.training.progress import Trained
from rocl_transfer.training.runtime import finish, start
from rocl_transfer.training.settings import Cadence, Computing, Monitor, Span, Watch

log = logging.getLogger("rocl_transfer")

# What may change when a run is resumed: where, how far, how often, how fast; and what is measured afterwards.
_FREE = ("output_dir", "overwrite", "max_steps", "checkpoint_every", "keep_checkpoints", "log_every", "monitor_every", "monitor_images", "resume",
         "log_with", "cudnn_benchmark", "data.in_memory", "data.workers", "data.title", "evaluation.")  # fmt: skip
_SOURCES = ("model", "data", "teacher")  # options with the name of something that a run is made from


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every training recipe takes.

    Args:
        output_dir: The run folder: configuration, metrics, checkpoints, exported model, results, card.
        seed: Seed of every random draw except the data's splits.
        epochs: Length of training; the schedule is stretched over it.
        max_steps: Stop after this many steps; the schedule is cut off, not compressed.
        batch_size: Images per step in each process.
        checkpoint_every: Steps between checkpoints (default: one per epoch).
        keep_checkpoints: How many of the last checkpoints to keep.
        log_every: Steps between lines of metrics.jsonl.
        monitor_every: Epochs between validations.
        resume: auto (resume what the run folder holds), a checkpoint or run folder, or none.
        overwrite: Start over: what another run left in the run folder is removed.
        rollbacks: How often training that has died goes back to its last good checkpoint with a lower learning rate.
        gradient_accumulation_steps: Parts that each process's batch is computed in, one after another, to save memory. What depends on a whole batch
            sees one part at a time: BatchNorm, and the negatives of contrastive losses.
        log_with: One of Accelerate's trackers, such as tensorboard.
        cudnn_benchmark: On a GPU, have cuDNN time its kernels for each shape of batch and take the fastest (default: yes); measuring never does. With
            false, the same command on the same machine is likelier to round alike.
    """

    output_dir: str
    seed: int = 0
    epochs: int
    max_steps: int | None = None
    batch_size: int
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 10
    monitor_every: int = 10
    resume: str = "auto"
    overwrite: bool = False
    rollbacks: int = 2
    gradient_accumulation_steps: int = 1
    log_with: str | None = None
    cudnn_benchmark: bool | None = None

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "--output_dir is empty: name a folder, such as runs/pre")
        for name in ("epochs", "max_steps", "batch_size", "checkpoint_every", "keep_checkpoints", "log_every", "monitor_every"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name} is {value}: give 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")
        require(self.rollbacks >= 0, f"--rollbacks is {self.rollbacks}: give 0 or more")
        require(self.resume == "auto" or not self.overwrite, f"--resume {self.resume} has no effect with --overwrite true: leave one of them out")
        parts = self.gradient_accumulation_steps
        divides = parts > 0 and self.batch_size % parts == 0
        require(divides, f"--gradient_accumulation_steps is {parts}: give 1 or more, and what divides --batch_size {self.batch_size}")
        require(self.part_size > 1, f"--batch_size {self.batch_size} leaves {self.part_size} image at once: BatchNorm and contrastive losses need 2")

    @property
    def part_size(self) -> int:
        """Images that one process computes at once."""
        return self.batch_size // self.gradient_accumulation_steps

    @property
    def group(self) -> int:
        """Images whose draws share a seed; one process with two groups computes what two processes with one each would."""
        return self.part_size

    def identity(self, processes: int) -> dict[str, Any]:
        """The options that must not change between the parts of one run, under their dotted names.

        The batch counts as a whole, so that a run may be resumed with another number of processes.
        """
        options = dotted(dataclasses.asdict(self))
        if isinstance(optimizer := getattr(self, "optimizer", None), OptimizerOptions):
            options["optimizer.warmup_lr"] = optimizer.first_lr  # what it stands for: runs from before record that
        del options["batch_size"]
        options["batch_size over all processes"] = self.batch_size * processes
        return {name: value for name, value in options.items() if not name.startswith(_FREE)}


def defaults(options: Any, prefix: str = "") -> dict[str, Any]:
    """The default of each option under its dotted name: what checkpoints from before an option existed were trained with."""
    flat: dict[str, Any] = {}
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if dataclasses.is_dataclass(value):
            flat.update(defaults(value, f"{prefix}{option.name}."))
        elif (default := default_of(option)) is not dataclasses.MISSING:
            flat[prefix + option.name] = default
    return flat


class Run:
    """A training run from its options to its end, as a context: devices, processes, lock and trackers are there inside and released after it.

    Args:
        options: The recipe's whole configuration, which ``config.yaml`` and the identity of checkpoints are made of.

    Raises:
        UserError: The folder cannot be written or is in use, or the tracker is not there.
    """

    def __init__(self, options: RunOptions) -> None:
        self.options, self.folder = options, Path(options.output_dir)
        self.accelerator = start(self.folder, options.seed, options.log_with, options.identity(1))
        self.device, self.processes = self.accelerator.device, self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        without = options.cudnn_benchmark is not None and self.device.type != "cuda"
        require(not without, f"--cudnn_benchmark has no effect on this device ({self.device.type}), which has no cuDNN: leave it out")
        self.sources: dict[str, str] = {}
        self.resume = options.resume
        self.checkpoints = self._checkpoints()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            finish(self.accelerator)
            self.accelerator.wait_for_everyone()

    def _checkpoints(self, place: str = "") -> Checkpoints:
        """The run's own, or those of a training before it below ``place``."""
        options = self.options
        identity = {**options.identity(self.processes), **self.sources}
        unsaid = {**defaults(options), **self.sources}  # checkpoints from before sources were recorded cannot tell, and are resumed
        if place:
            return Checkpoints(self.folder / place, 1, identity, defaults_for_missing=unsaid)
        names = [getattr(options, part).name for part in _SOURCES if getattr(getattr(options, part, None), "name", None)]
        return Checkpoints(self.folder, options.keep_checkpoints, identity, options.overwrite, unsaid, names)

    def note(self, notes: Iterable[str]) -> None:
        """Say what was noticed of the data."""
        for note in notes:
            log.info("data: %s", note)

    def check(self, options: RunOptions | None = None, sources: Mapping[str, str] | None = None) -> bool:
        """Whether there is a checkpoint to resume from; refuses what stands in the way, before anything is written.

        Args:
            options: The configuration resolved, where something in it was left to be chosen.
            sources: What the names in the options stand for: a run is not resumed on other data, or from other weights, of the same name.

        Raises:
            UserError: See :meth:`Checkpoints.find`.
        """
        if options is not None:
            self.options, self.sources = options, dict(sources or {})
            self.checkpoints = self._checkpoints()
        return self.checkpoints.find(self.resume) is not None

    def begin(self) -> None:
        """Write ``config.yaml``; remove the run that stands there, where it is to be overwritten; copy what is to be resumed from another folder."""
        found = adopted(self.accelerator, self.checkpoints, self.resume)
        if found is not None and self.resume != "auto":
            self.resume = str(found)  # in this folder now, if it was in another
        if found is not None and not self.sources.keys() <= self.checkpoints.identity_of(found).keys():
            log.info("%s does not say which images and weights its run was made from: whether they are still the same is not known", found)
        if self.is_main:
            self.checkpoints.begin()
            write_options(self.options, self.folder / "config.yaml")
        self.accelerator.wait_for_everyone()  # before any reads what an overwritten run left

    def sampler(self, images: int, smallest: int = 2) -> Sampler:
        """Which images a step takes.

        Args:
            images: How many there are.
            smallest: Images that a group of an epoch's last batch must have; smaller groups are dropped.
        """
        return Sampler(
            images, self.options.batch_size, self.options.seed, self.options.group, self.accelerator.process_index, self.processes, smallest
        )

    def require_batch(self, images: int) -> None:
        """Refuse to train on fewer images than a batch takes.

        Raises:
            UserError: They are fewer.
        """
        if images < (wanted := self.sampler(images).global_batch):
            raise UserError(f"{images} images are fewer than a batch of {wanted}: give a smaller --batch_size")

    def train(
        self,
        objective: Objective,
        batches: Batches | StreamedBatches,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        monitor: Monitor | None = None,
        guard: Judge | None = None,
        clip_grad: float | None = None,
    ) -> Trained:
        """Train ``objective`` in place to its end; see :func:`rocl_transfer.training.train`."""
        options = self.options
        cadence = Cadence(options.log_every, options.checkpoint_every, options.monitor_every)
        return train(
            self.accelerator, objective, optimizer, schedule, batches, self.checkpoints, span=Span(options.max_steps, self.resume),
            computing=Computing(clip_grad, options.gradient_accumulation_steps, cudnn_benchmark=options.cudnn_benchmark),
            watch=Watch(monitor, guard, Recovery(options.rollbacks), cadence),
        )  # fmt: skip

    def train_before(self, place: str, objective: Objective, batches: Batches, optimizer: Optimizer, schedule: Schedule) -> None:
        """A short training before the run's own, with checkpoints below ``place`` in the run folder; trackers hear nothing of it."""
        span = Span(resume="auto" if self.options.resume != "none" else "none")
        watch = Watch(cadence=Cadence(self.options.log_every, track=False))
        computing = Computing(cudnn_benchmark=self.options.cudnn_benchmark)
        train(self.accelerator, objective, optimizer, schedule, batches, self._checkpoints(place), span=span, computing=computing, watch=watch)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over the processes, so that what depends on them is done by all or none."""
        numbers = self.accelerator.reduce(torch.tensor(list(values.values()), device=self.device), "mean").tolist()
        return {name: round(value, 6) for name, value in zip(values, numbers, strict=True)}

    def seed_again(self) -> None:
        """Draw initial values as at the start, whatever was drawn since: what came before may have been done in another process."""
        torch.manual_seed(self.options.seed)
