"""The one loop: pre-training, probing and fine-tuning differ in the objective, the parameters that train and the monitors."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch.optim import Optimizer
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rocl_transfer.data import Batch, Batches
from rocl_transfer.errors import UserError
from rocl_transfer.objectives import Objective
from rocl_transfer.training.checkpoints import Checkpoints
from rocl_transfer.training.guard import Collapse, Guard, Look
from rocl_transfer.training.metrics import MetricsFile, peak_memory
from rocl_transfer.training.optimization import Schedule
from rocl_transfer.training.progress import Progress, Trained
from rocl_transfer.training.update import Update

log = logging.getLogger("rocl_transfer")
Monitor = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Cadence:
    """How often things happen beside the steps.

    Args:
        log: Steps between lines of ``metrics.jsonl``.
        checkpoint: Steps between checkpoints (default: one epoch's); the last step always has one.
        monitor: Epochs between calls of the monitor; the last step always has one.
        track: Whether Accelerate's trackers are told. Only one training of a run may: each counts its steps from 0.
    """

    log: int = 10
    checkpoint: int | None = None
    monitor: int = 1
    track: bool = True


def train(
    accelerator: Accelerator,
    objective: Objective,
    optimizer: Optimizer,
    schedule: Schedule,
    batches: Batches,
    checkpoints: Checkpoints,
    *,
    max_steps: int | None = None,
    resume: str = "auto",
    monitor: Monitor | None = None,
    guard: Guard | None = None,
    clip_grad: float | None = None,
    cadence: Cadence | None = None,
) -> Trained:
    """Train ``objective`` in place, over ``schedule.epochs`` epochs or ``max_steps`` steps.

    Args:
        accelerator: From :func:`rocl_transfer.training.start`.
        objective: ``forward(batch)`` gives a dictionary of scalars with the ``loss``; prepared here, as one module.
        optimizer: Of the objective's parameters.
        schedule: Learning rate of an epoch.
        batches: This process's batches.
        checkpoints: Where they are; ``metrics.jsonl`` stands beside them.
        max_steps: Truncates the schedule.
        resume: ``auto``, ``none``, or a path; see :meth:`Checkpoints.find`.
        monitor: Its numbers go into the metrics; called on every process.
        guard: Judges what the monitor sees: a dead run goes back to its last good checkpoint with a lower learning rate, or ends in a sentence; the
            best checkpoint is kept. Without one a loss that is not finite ends the run.
        clip_grad: Largest norm of the gradient of all parameters together.
        cadence: How often to log, to save, to monitor.

    Raises:
        UserError: A loss or gradient is not finite (that step is not taken), the run is dead and no way back helps, or the run to resume is
            another one.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        objective = convert_sync_batchnorm(objective)  # timm's: torch's own drops the activation inside timm's norms
    # Same numbers up to rounding; a RoCL step of resnet8_cifar at 16 px took 0.31 s instead of 0.41 s on 2 CPU cores.
    objective = objective.to(accelerator.device).to(memory_format=torch.channels_last)
    found = checkpoints.find(resume)
    state = checkpoints.load(found, objective, optimizer) if found else {}
    watch = _Watch(monitor, guard, cadence or Cadence())
    update = Update(accelerator, objective, optimizer, clip_grad)
    loop = _Loop(accelerator, update, schedule, batches, checkpoints, max_steps, watch, state)
    if found:
        log.info("resumed from %s", found)
    return loop.run()


@dataclass(frozen=True)
class _Watch:
    monitor: Monitor | None
    guard: Guard | None
    cadence: Cadence


class _Loop:
    def __init__(
        self,
        accelerator: Accelerator,
        update: Update,
        schedule: Schedule,
        batches: Batches,
        checkpoints: Checkpoints,
        max_steps: int | None,
        watch: _Watch,
        state: dict[str, Any],
    ) -> None:
        self.accelerator, self.schedule, self.batches, self.checkpoints = accelerator, schedule, batches, checkpoints
        self.monitor, self.guard, self.cadence, self.update = watch.monitor, watch.guard, watch.cadence, update
        self.per_epoch = batches.sampler.steps_per_epoch
        self.total = schedule.epochs * self.per_epoch
        self.last = min(self.total, max_steps or self.total)
        self.metrics = MetricsFile(checkpoints.folder.parent / "metrics.jsonl", accelerator.is_main_process)
        self.at = Progress.load(state)
        if self.at.step < self.last:
            self.metrics.rewind(self.at.step)
            self.at.forget_last()
            if accelerator.is_main_process:
                checkpoints.forget_after(self.at.step)
        self.images, self.window_seconds = 0, 0.0

    def run(self) -> Trained:
        quiet = not self.accelerator.is_main_process
        bar = tqdm(total=self.last, initial=self.at.step, unit="step", disable=quiet, dynamic_ncols=True)
        if self.guard and self.at.step == 0:
            self.save()  # where a run goes back to that dies before its first good epoch
        with bar, logging_redirect_tqdm([log]):
            while True:
                try:
                    self.judge()
                    while self.at.step < self.last:
                        self.run_epoch(bar)
                    break
                except Collapse as collapse:
                    self.roll_back(collapse)
                    bar.reset(self.last)
                    bar.update(self.at.step)
        with_what = (self.accelerator.num_processes, self.accelerator.device.type, self.accelerator.mixed_precision)
        seen = (self.best(), self.at.looks[-1] if self.at.looks else None) if self.guard else (None, None)
        best, last = (None if look is None else dict(look) for look in seen)
        overfitting = self.guard.overfitting(best, last) if self.guard and best and last else None
        if overfitting is not None:
            log.warning("%s", overfitting)
        return Trained(
            self.at.step, -(-self.at.step // self.per_epoch), self.at.seconds, *with_what, best, last, overfitting, self.at.skipped, self.at.rollbacks
        )

    def run_epoch(self, bar: Any) -> None:
        """One epoch, or what is left of it."""
        epoch, inner = divmod(self.at.step, self.per_epoch)
        lowered = self.guard.lowering ** len(self.at.rollbacks) if self.guard else 1.0
        rate = self.schedule(epoch) * lowered
        self.update.begin_epoch(rate)
        mark = time.perf_counter()
        for batch in self.batches.epoch(epoch, inner):
            values = self.take_step(batch)
            took = time.perf_counter() - mark
            self.at.seconds, self.window_seconds = self.at.seconds + took, self.window_seconds + took
            self.images += len(batch.inputs) * self.batches.sampler.world
            bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{rate:.3g}", refresh=False)
            bar.update()
            self.after_step(epoch, rate)
            if self.at.step == self.last:
                break
            mark = time.perf_counter()

    def take_step(self, batch: Batch) -> dict[str, float]:
        """A step whose loss or gradient is not finite is not taken; a few in a row are a collapse, without a guard the first one is."""
        sampler = self.batches.sampler
        values, bad = self.update(batch, self.at.step, self.total, (sampler.seed, sampler.rank))
        self.at.skipped_in_a_row = self.at.skipped_in_a_row + 1 if bad else 0
        if bad:
            self.at.skipped += 1
            if self.guard is None or self.at.skipped_in_a_row > self.guard.skips:
                raise Collapse(self.update.diagnosis(self.at.step, values, bad, self.at.skipped_in_a_row))
            log.warning("step %d is not taken: %s not finite", self.at.step, " and ".join(bad))
        else:
            self.at.window.add(values)
            self.at.epoch_mean.add(values)
        self.at.step += 1
        return values

    def after_step(self, epoch: int, rate: float) -> None:
        """Log, monitor, save and judge where they are due, in this order: a checkpoint never stands before the lines that belong to it.

        The last step logs, monitors and saves in any case. Where that was not due, its lines are marked ``last``: a run that goes on forgets them,
        and writes what the uninterrupted run would.
        """
        number = epoch + 1
        ends_epoch, ends = self.at.step % self.per_epoch == 0, self.at.step == self.last
        logs, looks = self.at.step % self.cadence.log == 0, ends_epoch and number % self.cadence.monitor == 0
        if logs:
            self.write(epoch, self.logged(rate))
        seen = self.look(number, {} if looks else {"last": True}) if looks or ends else {}
        if ends_epoch:
            means = {f"epoch_{name}": value for name, value in self.at.epoch_mean.take().items()}
            self.write(epoch, {**means, **(seen if looks else {})})
        if self.at.step % (self.cadence.checkpoint or self.per_epoch) == 0 or ends or (seen and self.best_step() == self.at.step):
            self.save()
        if ends and not logs:
            self.write(epoch, {**self.logged(rate), "last": True})
        if ends and not looks and seen:
            self.write(epoch, {**seen, "last": True})
        self.judge()

    def logged(self, rate: float) -> dict[str, float]:
        line = {"lr": rate, "images_per_second": self.images / self.window_seconds, "memory_bytes": peak_memory()}
        self.images, self.window_seconds = 0, 0.0
        return {**self.at.window.take(), **line}

    def look(self, number: int, mark: dict[str, bool]) -> dict[str, float]:
        """What the monitor sees, the same on every process."""
        if self.monitor is None:
            return {}
        found = self.monitor()
        numbers = self.accelerator.reduce(torch.tensor(list(found.values()), device=self.accelerator.device), "mean").tolist()
        seen = {name: round(value, 6) for name, value in zip(found, numbers, strict=True)}
        self.update.prepared.train()
        log.info("epoch %d: %s", number, ", ".join(f"{name} {value:.4f}" for name, value in seen.items()))
        if self.guard is not None:
            self.at.looks.append({"step": self.at.step, "epoch": number, **seen, **mark})
        return seen

    def best(self, going_on: bool = False) -> Look | None:
        """The best look whose weights are still there: those of a run resumed from another folder, or from before it, are not."""
        assert self.guard is not None
        kept = [look for look in self.at.looks if look["step"] == self.at.step or (self.checkpoints.folder / f"step-{look['step']}").is_dir()]
        return self.guard.best(self.at.looks, [look for look in kept if not (going_on and "last" in look)])

    def best_step(self, going_on: bool = False) -> int | None:
        best = self.best(going_on) if self.guard else None
        return None if best is None else int(best["step"])

    def judge(self) -> None:
        """Raise :class:`Collapse` where the guard finds the run dead. Where ``max_steps`` cuts it short, it has not ended."""
        if self.guard is not None and self.at.looks and self.at.looks[-1]["step"] == self.at.step:
            self.guard.judge(self.at.looks, ended=self.at.step == self.total)

    def roll_back(self, collapse: Collapse) -> None:
        """Go on from the best checkpoint (the start, if none was good) with a lower learning rate.

        Raises:
            UserError: That would not help, or was tried often enough.
        """
        sentence = str(collapse)
        if self.guard is None:
            good = self.checkpoints.latest()
            raise UserError(f"{sentence}, in a new --output_dir; the last good checkpoint is {good or 'none'}")
        best = self.best_step()
        target: Path = self.checkpoints.folder / f"step-{best or 0}"
        if not collapse.curable or len(self.at.rollbacks) >= self.guard.rollbacks or not target.is_dir():
            tried = f" Training went back {len(self.at.rollbacks)} times, each time with a lower learning rate." if self.at.rollbacks else ""
            kept = f" The best checkpoint is {target}: --resume {target} --max_steps {best} exports it." if best else " No checkpoint was any good."
            raise UserError(f"{sentence}.{tried}{kept} Nothing is exported")
        rollbacks = [*self.at.rollbacks, {"at": self.at.step, "to": best or 0, "why": sentence}]
        skipped, seconds = self.at.skipped, self.at.seconds
        factor = self.guard.lowering ** len(rollbacks)
        log.warning("%s. Going back to step %d; the learning rate is %.3g of what it was from here on", sentence, best or 0, factor)
        self.at = Progress.load(self.checkpoints.load(target, self.update.objective, self.update.optimizer.optimizer))
        self.at.rollbacks, self.at.skipped, self.at.seconds = rollbacks, skipped, seconds
        self.accelerator.wait_for_everyone()  # all have read before the main process writes
        self.metrics.rewind(self.at.step)
        if self.accelerator.is_main_process:
            self.checkpoints.forget_after(self.at.step)
        self.write(self.at.step // self.per_epoch, {"rolled_back_from": rollbacks[-1]["at"], "lr_factor": factor})
        self.save()

    def write(self, epoch: int, values: dict[str, float]) -> None:
        line = {"step": self.at.step, "epoch": epoch, **values}
        self.metrics.write(line)
        if self.cadence.track:
            self.accelerator.log(line, step=self.at.step)

    def save(self) -> None:
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.at.step, self.update.objective, self.update.optimizer.optimizer, self.at.state(), spare=self.spared())
        self.accelerator.wait_for_everyone()

    def spared(self) -> set[int]:
        """Checkpoints that stay beside the last few: the best, or the start while there is none; and what will be the best if the run goes on."""
        return {self.best_step() or 0, self.best_step(going_on=True) or 0} if self.guard else set()
