"""How long a training will last, said before it does."""

import logging
import time

from rocl_transfer.bars import duration
from rocl_transfer.data import Batch
from rocl_transfer.training.update import Update

log = logging.getLogger("rocl_transfer")
_WORTH_SAYING, _LONG = 120.0, 1800.0  # seconds
_SLOW = 5.0  # of two images: what else would be timed costs as much again
_STEPS = 3  # by which it is said where no small ones are timed: the very first warms up


class Forecast:
    """Says once how long a training will last.

    On the CPU, where time goes by images and a first step may take minutes, it is said before that, by small steps that leave everything as it
    was. On other devices, and where several processes would have to wait for each other in each of them, by the first steps of the training.

    Args:
        update: What a step does.
        per_epoch: Steps of an epoch.
        total: Steps of the whole schedule.
    """

    def __init__(self, update: Update, per_epoch: int, total: int) -> None:
        self.update, self.per_epoch, self.total = update, per_epoch, total
        self.small = update.accelerator.device.type == "cpu" and update.accelerator.num_processes == 1
        self.begun, self.first = False, list[float]()

    def before(self, batch: Batch, left: int) -> float:
        """Seconds that were spent before the first step on ``batch`` to know how long the ``left`` steps will last."""
        if self.begun:
            return 0.0
        self.begun, began = True, time.perf_counter()
        found = self._by_small_steps(batch) if self.small else None
        if found is not None:
            self.first = [found] * _STEPS
            self._say(found, len(batch.inputs), left)
        return time.perf_counter() - began

    def after(self, images: int, seconds: float, left: int) -> None:
        """A step of ``images`` over all processes took ``seconds``."""
        if len(self.first) < _STEPS:
            self.first.append(seconds)
            if len(self.first) == _STEPS:
                self._say(min(self.first), images, left)

    def _by_small_steps(self, batch: Batch) -> float | None:
        """Seconds of a step on ``batch``: what a step costs, and what an image does; None if the batch is small itself."""
        parts, whole, few, more = self.update.accumulation, len(batch.inputs), 2, 8
        if whole < 2 * more:
            return None
        first = self._timed(batch, few)
        if first > _SLOW:
            return first * whole / few
        low, high = min(self._timed(batch, few), first), self._timed(batch, more)
        slope = max(high - low, 0.0) / (more - few)
        return max(low - slope * few, 0.0) * parts + slope * whole

    def _timed(self, batch: Batch, images: int) -> float:
        labels = None if batch.labels is None else batch.labels[:images]
        part, parts = Batch(batch.inputs[:images], labels, batch.seeds[:1]), self.update.accumulation
        began = time.perf_counter()
        try:
            self.update.accumulation = 1
            self.update.compute(part, self.total - 1, self.total, (0, 0))  # as the last step: epsilon may rise from 0
        finally:
            self.update.accumulation = parts
            self.update.undo()
        return time.perf_counter() - began

    def _say(self, seconds: float, images: int, left: int) -> None:
        whole = seconds * left
        if whole < _WORTH_SAYING:
            return
        epoch = f"an epoch of {self.per_epoch:,} {duration(seconds * self.per_epoch)}, " if left > self.per_epoch else ""
        remedy = ""
        if whole > _LONG:
            device = ", or a GPU" if self.update.accelerator.device.type == "cpu" else ""
            remedy = f": fewer --epochs, a smaller --data.image_size, a smaller network{device} make it shorter, and --max_steps 1 tries it out"
        log.info(
            "a step of %d images takes about %s here, %sall %s steps to come %s, what is measured between and after them not counted%s",
            images, duration(seconds), epoch, f"{left:,}", duration(whole), remedy,
        )  # fmt: skip
