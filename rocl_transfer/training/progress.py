"""Where a run stands, besides weights and optimiser; and what became of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Mean:
    """The mean of named numbers over steps; two plain values, so that a checkpoint can hold it."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Count one step."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means since the last :meth:`take`."""
        return {name: total / self.count for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = self.means()
        self.sums, self.count = {}, 0
        return means


@dataclass
class Progress:
    """All that a resume needs: every random draw follows from the step.

    Attributes:
        step: Done so far.
        seconds: Spent in steps.
        window: Means since the last logged line.
        epoch_mean: Means since the epoch began.
        looks: Validation results, epoch by epoch, under a guard. One marked ``last`` was only due because the run ended there.
        rollbacks: Where and why training went back to an earlier checkpoint.
        skipped: Steps that were skipped since a loss or gradient was not finite.
        skipped_in_a_row: How many of these came last, without a step between them.
        moved: Steps up to the last one that was taken, not skipped: since then the weights are the same.
        due: Whether the last step was taken, but not yet what comes after it: logging, monitoring, saving.
    """

    step: int = 0
    seconds: float = 0.0
    window: Mean = field(default_factory=Mean)
    epoch_mean: Mean = field(default_factory=Mean)
    looks: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0
    moved: int = 0
    due: bool = False

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Self:
        """From a checkpoint's ``state.json``."""
        means = {name: Mean(**state[name]) for name in ("window", "epoch_mean") if name in state}
        names = {option.name for option in dataclasses.fields(cls)}
        moved = state.get("step", 0) - state.get("skipped_in_a_row", 0)  # earlier checkpoints do not say it
        return cls(**{"moved": moved} | {name: value for name, value in state.items() if name in names} | means)

    def copy(self) -> Self:
        """As it stands now; the list of validation results is new, its entries are shared."""
        window, epoch_mean = (dataclasses.replace(mean, sums=dict(mean.sums)) for mean in (self.window, self.epoch_mean))
        return dataclasses.replace(self, window=window, epoch_mean=epoch_mean, looks=list(self.looks), rollbacks=list(self.rollbacks))

    def state(self) -> dict[str, Any]:
        """For a checkpoint's ``state.json``."""
        return dataclasses.asdict(self)

    def forget_last(self) -> None:
        """The run is resumed: forget the validation that was only due because it ended."""
        self.looks = [look for look in self.looks if "last" not in look]


@dataclass(frozen=True)
class Trained:
    """Summary of a training run, including resumed parts.

    Attributes:
        steps: In the schedule; those skipped, or repeated after going back, count once.
        epochs: Begun.
        seconds: In steps, those that were repeated included.
        processes: How many.
        device: Kind.
        precision: Accelerate's word for the autocast; tf32 without one where a GPU's float32 convolutions round to that.
        best: Validation result, and the step, at the best epoch; None without a guard.
        last: The same at the end.
        overfitting: A sentence where the end is worse than the best by more than chance.
        skipped: Steps that were skipped since a loss or gradient was not finite.
        rollbacks: Where and why training went back to an earlier checkpoint.
        lost: A better validation result than ``best``, of an epoch whose checkpoint is not there any more; None as a rule.
    """

    steps: int
    epochs: int
    seconds: float
    processes: int
    device: str
    precision: str
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    overfitting: str | None = None
    skipped: int = 0
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    lost: dict[str, Any] | None = None
