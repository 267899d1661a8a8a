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
from rocl_transfer.training.guard import Collapse, Recovery
from rocl_transfer.training.interruption import arrived, uninterrupted
from rocl_transfer.training.progress import Progress
from rocl_transfer.training.update import Update

log = logging.getLogger("rocl_transfer")

_UNREAD = 16  # steps whose batches are kept until their numbers are read


@dataclass(frozen=True)
class _Taken:
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


class Steps:
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
        self.unread: list[_Taken] = []
        self.loss: float | None = None  # of the last step read
        self.why = ""  # of the last one skipped

    def held(self) -> AbstractContextManager[None]:
        """Inside, several processes on devices of their own answer a signal together, at a step whose numbers all of them read.

        One that stopped alone would wait for its device, and that for the others.
        """
        return uninterrupted() if self.agrees else nullcontext()

    def take(self, at: Progress, batch: Batch, needed: bool) -> None:
        """Take the step that ``at`` stands before, and move it on.

        Args:
            at: Where the run stands.
            batch: This process's.
            needed: Whether the numbers of all steps up to this one are needed after it.

        Raises:
            Collapse: More steps in a row were skipped than the recovery allows.
            Interrupted: See :meth:`held`.
        """
        names, means = self.update.compute(batch, at.step, self.total, self.drawn)
        taken = _Taken(at.step, batch, names, means)
        if self.deferred:
            with uninterrupted():
                self.update.apply_where(torch.isfinite(means).all())
                self.unread.append(taken)
                at.step, at.due = at.step + 1, True
            if needed or len(self.unread) == _UNREAD:
                self._read(at)
        else:
            if taken.bad:
                self._explain(at, taken, at.skipped_in_a_row + 1)
            with uninterrupted():
                if not taken.bad:
                    self.update.apply()
                self._count(at, [taken])
                at.step, at.due = at.step + 1, True
        if at.skipped_in_a_row > self.recovery.skips:
            raise Collapse(self.why)

    def settle(self, at: Progress) -> None:
        """Count what was not read yet; it is not explained any more."""
        self._count(at, [taken for taken in self.unread if taken.step < at.step])

    def forget(self) -> None:
        """What was not read yet belongs to a course that is left."""
        self.unread = []

    def _read(self, at: Progress) -> None:
        repeated = at.skipped_in_a_row
        for taken in self.unread:
            repeated = repeated + 1 if taken.bad else 0
            if taken.bad:
                self._explain(at, taken, repeated)
        interrupted = self.agrees and any(taken.interrupted for taken in self.unread)
        with uninterrupted():
            self._count(at, self.unread)
        if interrupted:
            raise Interrupted(arrived() or signal.SIGTERM)

    def _count(self, at: Progress, taken: Sequence[_Taken]) -> None:
        self.unread = []
        for entry in taken:
            if entry.bad:
                at.skipped, at.skipped_in_a_row = at.skipped + 1, at.skipped_in_a_row + 1
                if at.skipped_in_a_row > self.recovery.skips:
                    return
            else:
                at.window.add(entry.values)
                at.epoch_mean.add(entry.values)
                at.skipped_in_a_row = 0
            self.loss = entry.values["loss"]

    def _explain(self, at: Progress, taken: _Taken, repeated: int) -> None:
        """Say which step was skipped, and write to ``diagnosis.json`` what is known of it, process by process."""
        self.why = self.update.sentence(taken.step, taken.values, taken.bad, repeated)
        found: dict[str, Any] = self.update.diagnosis(taken.batch, taken.step, self.total, self.drawn, self.name)
        processes = gather_object([found]) if self.accelerator.num_processes > 1 else [found]
        if self.accelerator.is_main_process:
            content = {"step": taken.step, "weights_of_step": at.step, "why": self.why, "skipped": at.skipped, "processes": processes}
            (self.folder / "diagnosis.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        log.warning("step %d is skipped: %s not finite", taken.step, " and ".join(taken.bad))
