"""The configuration of each recipe: a run folder's worth of options."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rocl_transfer.config.checks import require, require_untouched
from rocl_transfer.config.number import Number
from rocl_transfer.config.parts import AttackConfig, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RoCLConfig, ViewsConfig

# What may change when a run goes on: where, how far, how often, how fast; and what is measured afterwards.
_FREE = ("output_dir", "max_steps", "checkpoint_every", "keep_checkpoints", "log_every", "monitor_every", "resume", "log_with", "data.in_memory",
         "data.workers", "evaluation.")  # fmt: skip


def _dotted(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat.update(_dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training recipe takes.

    Args:
        output_dir: The run folder: configuration, metrics, checkpoints, exported model, results, card.
        seed: Of every random draw but the data's splits.
        epochs: Length of training; the schedule is stretched over it.
        max_steps: Stop after this many steps: truncates the schedule, never reshapes it.
        batch_size: Images a step in each process.
        checkpoint_every: Steps between checkpoints (default: one an epoch).
        keep_checkpoints: How many of the last checkpoints to keep.
        log_every: Steps between lines of metrics.jsonl.
        monitor_every: Epochs between looks at the validation split.
        resume: auto (go on where the run folder stands), a checkpoint or run folder, or none.
        log_with: One of Accelerate's trackers, such as tensorboard.
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
    log_with: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "--output_dir is empty: name a folder, such as runs/pre")
        for name in ("epochs", "max_steps", "batch_size", "checkpoint_every", "keep_checkpoints", "log_every", "monitor_every"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name} is {value}: give 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")

    def identity(self, processes: int) -> dict[str, Any]:
        """The options that must not change between the parts of one run, under their dotted names.

        The batch counts as a whole, so that a run may go on with another number of processes.
        """
        options = _dotted(dataclasses.asdict(self))
        del options["batch_size"]
        options["batch_size over all processes"] = self.batch_size * processes
        return {name: value for name, value in options.items() if not name.startswith(_FREE)}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Pre-training without labels. The defaults are RoCL's at 32 px.

    Args:
        data: Which images; their labels are used by the kNN monitor alone.
        model: Which backbone.
        views: How a view of an image is drawn.
        objective: What is learned.
        optimizer: How.
    """

    data: DataConfig
    model: ModelConfig
    views: ViewsConfig = field(default_factory=ViewsConfig)
    objective: RoCLConfig = field(default_factory=RoCLConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 1000
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.objective.group_size
        if size is not None:
            divides = 1 < size <= self.batch_size and self.batch_size % size == 0
            require(divides, f"--objective.group_size {size} must be 2 or more and divide --batch_size {self.batch_size}")
        require(self.batch_size > 1, "--batch_size is 1: a contrastive loss needs 2 or more images")

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunConfig`; a group is a group, also where it was left to be the batch of one process."""
        return {**super().identity(processes), "objective.group_size": self.objective.group_size or self.batch_size}


def probe_optimizer() -> OptimizerConfig:
    """The paper's: SGD, 0.1, lowered after 30, 50 and 100 of 150 epochs."""
    return OptimizerConfig(
        name="momentum", lr=Number(0.1), weight_decay=Number(5e-4), schedule="steps", warmup_epochs=0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(RunConfig):
    """A linear head on a frozen backbone. The defaults are RoCL's LE and r-LE.

    Args:
        data: Which images and labels.
        model: Which backbone; it stays as it is, bit for bit.
        robust: Train the head on adversarial examples made through the frozen backbone (r-LE) instead of clean images (LE).
        attack: The attack of r-LE.
        optimizer: How the head is trained.
        evaluation: How the classifier is measured.
    """

    data: DataConfig
    model: ModelConfig
    robust: bool = False
    attack: AttackConfig = field(default_factory=lambda: AttackConfig(steps=10))
    optimizer: OptimizerConfig = field(default_factory=probe_optimizer)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    epochs: int = 150
    batch_size: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.robust:
            require_untouched(self, ("attack",), "with --robust false")

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunConfig`; the images of one process share the seed of their attack."""
        return {**super().identity(processes), "batch_size": self.batch_size}


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(RunConfig):
    """RoCL beside SimCLR on the bundled digits: pre-training, LE and r-LE of each, one table. Options given here go to every part.

    Args:
        output_dir: Where the six run folders go.
        epochs: Of the two pre-trainings.
        batch_size: Of the two pre-trainings.
    """

    output_dir: str = "runs/quickstart"
    epochs: int = 28
    batch_size: int = 128
