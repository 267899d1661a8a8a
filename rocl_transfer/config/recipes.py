"""The configuration of each recipe: a run folder's worth of options."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rocl_transfer.config.checks import require, require_sha256, require_untouched
from rocl_transfer.config.data import DataConfig, PretrainDataConfig
from rocl_transfer.config.number import Number
from rocl_transfer.config.parts import AttackConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RoCLConfig, ViewsConfig

# What may change when a run goes on: where, how far, how often, how fast; and what is measured afterwards.
_FREE = ("output_dir", "overwrite", "max_steps", "checkpoint_every", "keep_checkpoints", "log_every", "monitor_every", "resume", "log_with",
         "data.in_memory", "data.workers", "data.title", "evaluation.")  # fmt: skip

# Younger than the first run folders: what they were before they existed.
YOUNG = {
    "objective.shared_regularizer": False,
    "objective.compile": False,
    "data.streaming": False,
    "data.images": None,
    "rollbacks": 2,
    "gradient_accumulation_steps": 1,
}


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
        overwrite: Begin again: what another run left in the run folder is removed.
        rollbacks: How often training that has died goes back to its last good checkpoint with a lower learning rate.
        gradient_accumulation_steps: Parts that each process's batch is computed in, one after another, to save memory. What depends on a whole batch
            sees one part at a time: BatchNorm, and the negatives of contrastive losses.
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
    overwrite: bool = False
    rollbacks: int = 2
    gradient_accumulation_steps: int = 1
    log_with: str | None = None

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

    @property
    def part_size(self) -> int:
        """Images that one process computes at once."""
        return self.batch_size // self.gradient_accumulation_steps

    def identity(self, processes: int) -> dict[str, Any]:
        """The options that must not change between the parts of one run, under their dotted names.

        The batch counts as a whole, so that a run may go on with another number of processes.
        """
        options = _dotted(dataclasses.asdict(self))
        del options["batch_size"]
        options["batch_size over all processes"] = self.batch_size * processes
        return {name: value for name, value in options.items() if not name.startswith(_FREE)}

    def checkpoints(self, processes: int) -> dict[str, Any]:
        """What ``rocl_transfer.training.Checkpoints`` takes beside the run folder."""
        sources = [getattr(self, part).name for part in ("model", "data") if hasattr(self, part)]
        kept = {"keep": self.keep_checkpoints, "overwrite": self.overwrite, "young": YOUNG, "sources": sources}
        return {"identity": self.identity(processes), **kept}


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

    data: PretrainDataConfig
    model: ModelConfig
    views: ViewsConfig = field(default_factory=ViewsConfig)
    objective: RoCLConfig = field(default_factory=RoCLConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 1000
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        size, part = self.objective.group_size, self.part_size
        if size is not None:
            at_once = f"--batch_size {self.batch_size}" + (f" / --gradient_accumulation_steps = {part}" if part < self.batch_size else "")
            require(1 < size <= part and part % size == 0, f"--objective.group_size {size} must be 2 or more and divide {at_once}")
        require(part > 1, f"--batch_size {self.batch_size} leaves {part} image at once: a contrastive loss needs 2 or more")

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunConfig`; a group is a group, also where it was left to be the batch of one process; a stream's order is its readers'."""
        readers = {"data.workers": self.data.workers, "number of processes": processes} if self.data.streaming else {}
        return {**super().identity(processes), "objective.group_size": self.objective.group_size or self.part_size, **readers}


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
        require(self.part_size > 1, f"--batch_size {self.batch_size} leaves {self.part_size} image at once: give 2 or more")

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


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Which classifier.

    Args:
        name: A run folder that holds a classifier, ``hf-hub:USER/NAME`` or ``local-dir:FOLDER``.
        sha256: What the weights file of an exported model must have; another one is refused.
    """

    name: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        require(bool(self.name), "--model.name is empty: give a run folder or hf-hub:USER/NAME")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The classes of images, and for each image the smallest epsilon at which PGD changes the answer.

    Args:
        images: Image files, and folders, in which images are looked for at every depth.
        model: Which classifier; its image size and normalisation come with it.
        output: CSV file to write, over one that is there (default: a table on the screen).
        robustness: Look for the smallest epsilon; it is an upper bound, a stronger attack may need less. Without it only the classes are given.
        norm: Ball: linf or l2.
        steps: Gradient steps of PGD; it starts at random and steps by epsilon / 10, so fewer than 20 cannot cross the ball.
        max_epsilon: The largest epsilon tried, in [0, 1] pixel units, a number or a fraction. What it does not change is ``inf`` in the CSV.
        batch_size: Images at once; the answers do not depend on it.
        seed: Of the random start, the same for every image, so that its row does not depend on the others.
    """

    images: tuple[str, ...] = field(metadata={"positional": "image files or folders"})
    model: ClassifierConfig
    output: str | None = None
    robustness: bool = True
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 20
    max_epsilon: Number = Number(64 / 255)
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.images) > 0 and all(self.images), "an image's name is empty: name image files or folders")
        csv = self.output is None or self.output.lower().endswith(".csv")
        require(csv, f"--output is {self.output}: what is written is CSV, so name a file such as predictions.csv")
        if not self.robustness:
            require_untouched(self, ("norm", "steps", "max_epsilon", "seed"), "with --robustness false")
        require(0 < self.max_epsilon < math.inf, f"--max_epsilon is {self.max_epsilon}: give a radius above 0, such as 64/255")
        above = self.norm == "linf" and self.max_epsilon > 1
        require(not above, f"--max_epsilon is {self.max_epsilon}: pixels are in [0, 1], so write 64/255 rather than 64")
        given = self.norm != "l2" or self.max_epsilon != PredictConfig.max_epsilon
        require(given, "the default --max_epsilon is meant for linf: give a radius with l2, such as 2 at 32 px")
        require(self.steps > 0 and self.batch_size > 0, "--steps and --batch_size must be 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")
