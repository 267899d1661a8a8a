"""Runs optimiser steps, skips non-finite ones, and keeps statistics."""

import json
import logging
import math
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rocl_transfer.data import Batch, Batches, StreamedBatches
from rocl_transfer.errors import Interrupted
from rocl_transfer.training.diagnosis import diagnosis, sentence
from rocl_transfer.training.guard import Collapse, Recovery
from rocl_transfer.training.interruption import arrived, uninterrupted
from rocl_transfer.training.progress import Progress
from rocl_transfer.training.update import Update

log = logging.getLogger("rocl_transfer")

_UNREAD = 16  # steps whose batches are kept until their numbers are read


@dataclass(frozen=True)
class _StepResult:
    """A step and what came of it; looking at ``values`` waits for the device."""

    step: int
    batch: Batch
    names: tuple[str, ...]
    means: Tensor

    @cached_property
    def _numbers(self) -> list[float]:
        numbers: list[float] = self.means.tolist()
        return numbers

    @cached_property
    def values(self) -> dict[str, float]:
        return dict(zip(self.names, self._numbers[:-1], strict=True))

    @property
    def interrupted(self) -> bool:
        return self._numbers[-1] > 0

    @property
    def bad(self) -> list[str]:
        return [name for name, value in self.values.items() if not math.isfinite(value)]


class StepRunner:
    """Takes steps one by one; those whose loss or gradient is not finite are skipped, counted and explained.

    Args:
        accelerator: From :func:`rocl_transfer.training.start`.
        update: What a step does.
        batches: Where batches come from: seed, process, names of images.
        recovery: How many in a row may be skipped.
        deferred: Read numbers when they are needed instead of at once.
        total: Steps of the whole schedule.
        folder: Where ``diagnosis.json`` goes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        update: Update,
        batches: Batches | StreamedBatches,
        recovery: Recovery,
        deferred: bool,
        total: int,
        folder: Path,
    ) -> None:
        self.accelerator, self.update, self.recovery, self.deferred = accelerator, update, recovery, deferred
        self.name, self.total, self.folder = batches.name, total, folder
        self.drawn = batches.sampler.seed, batches.sampler.rank
        self.agrees = deferred and accelerator.num_processes > 1
        self.unread: list[_StepResult] = []
        self.loss: float | None = None  # of the last step read
        self.why = ""  # of the last one skipped

    def signals_deferred(self) -> AbstractContextManager[None]:
        """Inside, several processes on devices of their own answer a signal together, at a step whose numbers all of them read.

        One that stopped alone would wait for its device, and that for the others.
        """
        return uninterrupted() if self.agrees else nullcontext()

    def run_step(self, progress: Progress, batch: Batch, needed: bool) -> None:
        """Take the step that ``progress`` stands before, and move it on.

        Args:
            progress: Where the run stands.
            batch: This process's.
            needed: Whether the numbers of all steps up to this one are needed after it.

        Raises:
            Collapse: More steps in a row were skipped than the recovery allows.
            Interrupted: See :meth:`signals_deferred`.
        """
        names, means = self.update.compute(batch, progress.step, self.total, self.drawn)
        taken = _StepResult(progress.step, batch, names, means)
        if self.deferred:
            with uninterrupted():
                self.update.apply_where(torch.isfinite(means).all())
                self.unread.append(taken)
                progress.step, progress.due = progress.step + 1, True
            if needed or len(self.unread) == _UNREAD:
                self._read(progress)
        else:
            if taken.bad:
                self._explain(progress, taken, progress.skipped_in_a_row + 1)
            with uninterrupted():
                if not taken.bad:
                    self.update.apply()
                self._count(progress, [taken])
                progress.step, progress.due = progress.step + 1, True
        if progress.skipped_in_a_row > self.recovery.skips:
            raise Collapse(self.why)

    def flush(self, progress: Progress) -> None:
        """Count what was not read yet; it is not explained any more."""
        self._count(progress, [taken for taken in self.unread if taken.step < progress.step])

    def forget(self) -> None:
        """What was not read yet belongs to a course that is left."""
        self.unread = []

    def _read(self, progress: Progress) -> None:
        repeated = progress.skipped_in_a_row
        for taken in self.unread:
            repeated = repeated + 1 if taken.bad else 0
            if taken.bad:
                self._explain(progress, taken, repeated)
        interrupted = self.agrees and any(taken.interrupted for taken in self.unread)
        with uninterrupted():
            self._count(progress, self.unread)
        if interrupted:
            raise Interrupted(arrived() or signal.SIGTERM)

    def _count(self, progress: Progress, taken: Sequence[_StepResult]) -> None:
        self.unread = []
        for entry in taken:
            if entry.bad:
                progress.skipped, progress.skipped_in_a_row = progress.skipped + 1, progress.skipped_in_a_row + 1
                if progress.skipped_in_a_row > self.recovery.skips:
                    return
            else:
                progress.window.add(entry.values)
                progress.epoch_mean.add(entry.values)
                progress.skipped_in_a_row, progress.moved = 0, entry.step + 1
            self.loss = entry.values["loss"]

    def _explain(self, progress: Progress, taken: _StepResult, repeated: int) -> None:
        """Say which step was skipped, and write to ``diagnosis.json`` what is known of it, process by process."""
        self.why = sentence(self.update, taken.step, taken.values, taken.bad, repeated)
        found: dict[str, Any] = diagnosis(self.update, taken.batch, taken.step, self.total, self.drawn, self.name)
        processes = gather_object([found]) if self.accelerator.num_processes > 1 else [found]
        if self.accelerator.is_main_process:
            content = {"step": taken.step, "weights_of_step": progress.step, "why": self.why, "skipped": progress.skipped, "processes": processes}
            (self.folder / "diagnosis.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        log.warning("step %d is skipped: %s not finite", taken.step, " and ".join(taken.bad))
