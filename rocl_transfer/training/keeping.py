"""Which checkpoints of a run are the best, are gone back to, and are kept for either."""

from collections.abc import Sequence
from dataclasses import dataclass

from rocl_transfer.training.checkpoints import Checkpoints
from rocl_transfer.training.guard import Judge, ValidationResult
from rocl_transfer.training.progress import Progress


@dataclass(frozen=True)
class Keeping:
    """Chooses among the checkpoints of a run.

    Args:
        guard: Judges validation results; None if there is none.
        checkpoints: What there is to choose from.
    """

    guard: Judge | None
    checkpoints: Checkpoints

    def best(self, progress: Progress, continuing: bool = False) -> ValidationResult | None:
        """The best result whose weights are still there; where the run is ``continuing``, of those that stay.

        They are not where a run was resumed from a checkpoint that is older than what was dropped since, or that was taken out of its folder.
        """
        looks = [look for look in progress.looks if look["step"] == progress.step or self.checkpoints.at(look["step"]).is_dir()]
        return self._best(progress, [look for look in looks if not (continuing and "last" in look)])

    def lost(self, progress: Progress) -> ValidationResult | None:
        """The best result of all, if it is better than :meth:`best`: its weights are not there any more."""
        there = self.best(progress)
        best = self._best(progress, [look for look in (there, *progress.looks) if look is not None])  # of equals the first
        return None if best == there else best

    def _best(self, progress: Progress, among: Sequence[ValidationResult]) -> ValidationResult | None:
        return None if self.guard is None else self.guard.best(progress.looks, among)

    def best_step(self, progress: Progress, continuing: bool = False) -> int | None:
        """The step of the best result."""
        best = self.best(progress, continuing)
        return None if best is None else int(best["step"])

    def way_back(self, progress: Progress) -> int | None:
        """The step of the checkpoint to go back to: the best, or the start if none was good; None if there is none.

        Without a guard that is the newest one that training got on from: after the last step that was taken its weights, finite as they may be, gave
        nothing finite any more. One that training went back to before is the last choice.
        """
        if self.guard is not None:
            chosen = self.best_step(progress) or 0
            return chosen if self.checkpoints.at(chosen).is_dir() else None
        good = [step for step in self.checkpoints.whole() if step < max(progress.moved, 1)]
        before = {back["to"] for back in progress.rollbacks}
        return max([step for step in good if step not in before] or good, default=None)

    def spared(self, progress: Progress) -> set[int]:
        """Checkpoints that stay beside the last few.

        The best, or the start while there is none, and what will be the best if the run continues. Without a guard those from before steps were
        skipped, which newer ones must not push out.
        """
        if self.guard is not None:
            return {self.best_step(progress) or 0, self.best_step(progress, continuing=True) or 0}
        steps = sorted({*self.checkpoints.steps(), progress.step})  # the one that is being written counts
        return set([step for step in steps if step <= progress.moved][-self.checkpoints.keep :])
