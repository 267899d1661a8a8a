"""The one loop: pre-training, probing and fine-tuning differ in the objective, the parameters that train and the monitors."""

import logging
import re
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim import Optimizer
from tqdm.contrib.logging import logging_redirect_tqdm

from rocl_transfer.bars import Bar
from rocl_transfer.data import Batches, StreamedBatches
from rocl_transfer.errors import Interrupted, UserError
from rocl_transfer.objectives import Objective
from rocl_transfer.training.adoption import adopted
from rocl_transfer.training.checkpoints import Checkpoints
from rocl_transfer.training.estimate import Forecast
from rocl_transfer.training.guard import Collapse
from rocl_transfer.training.interruption import ignore_signals, raise_pending, uninterrupted
from rocl_transfer.training.keeping import Keeping
from rocl_transfer.training.metrics import MetricsLogger
from rocl_transfer.training.optimization import Schedule
from rocl_transfer.training.progress import Progress, Trained
from rocl_transfer.training.runtime import arithmetic, regrouped, synchronised, tuned_kernels
from rocl_transfer.training.settings import Computing, Span, Watch
from rocl_transfer.training.step_runner import StepRunner
from rocl_transfer.training.update import Update

log = logging.getLogger("rocl_transfer")
# How the collectives of gloo and NCCL say that another process is gone.
_ALONE = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|DistBackendError|remote process exited")


def train(
    accelerator: Accelerator,
    objective: Objective,
    optimizer: Optimizer,
    schedule: Schedule,
    batches: Batches | StreamedBatches,
    checkpoints: Checkpoints,
    *,
    span: Span | None = None,
    computing: Computing | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train ``objective`` in place, over ``schedule.epochs`` epochs or as many steps as ``span`` has.

    Args:
        accelerator: From :func:`rocl_transfer.training.start`.
        objective: ``forward(batch)`` gives a dictionary of scalars with the ``loss``; prepared here, as one module.
        optimizer: For the objective's parameters.
        schedule: Learning rate of an epoch.
        batches: This process's batches.
        checkpoints: Where they are; ``metrics.jsonl`` stands beside them.
        span: Which steps of the schedule are taken.
        computing: How a step is computed.
        watch: Which monitor validates, how often, and what is done if the run collapses.

    Raises:
        UserError: The run is dead and no way back helps, another process is gone, a checkpoint cannot be written, or the run to resume is another
            one. Steps whose loss or gradient is not finite are skipped; ``diagnosis.json`` beside the checkpoints says where that began.
        Interrupted: By a signal, after a checkpoint was written.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        objective = synchronised(objective)
    # Same numbers up to rounding; a RoCL step of resnet8_cifar at 16 px took 0.31 s instead of 0.41 s on 2 CPU cores.
    objective = objective.to(accelerator.device).to(memory_format=torch.channels_last)
    span, computing, watch = span or Span(), computing or Computing(), watch or Watch()
    found = adopted(accelerator, checkpoints, span.resume)
    state = checkpoints.load(found, objective, optimizer) if found else {}
    update = Update(accelerator, objective, optimizer, computing.clip_grad, computing.accumulation)
    on_a_gpu = accelerator.device.type == "cuda"
    deferred = accelerator.device.type != "cpu" if computing.deferred is None else computing.deferred
    loop = _Loop(update, schedule, batches, checkpoints, span, deferred, watch, state)
    if watch.guard is not None and watch.guard.blindness:
        log.info("%s", watch.guard.blindness)
    if found:
        log.info("resumed from %s", found)
        before = state.get("processes", accelerator.num_processes)
        if before != accelerator.num_processes:
            log.info("%s", regrouped(accelerator, before))
        loop.say_standing()
    with tuned_kernels(on_a_gpu if computing.cudnn_benchmark is None else computing.cudnn_benchmark):
        return loop.run()


class _Loop:
    def __init__(
        self, update: Update, schedule: Schedule, batches: Batches | StreamedBatches, checkpoints: Checkpoints, span: Span,
        deferred: bool, watch: Watch, state: dict[str, Any],
    ) -> None:  # fmt: skip
        self.accelerator, self.schedule, self.batches, self.checkpoints = update.accelerator, schedule, batches, checkpoints
        self.guard, self.recovery, self.update = watch.guard, watch.recovery, update
        self.per_epoch = batches.sampler.steps_per_epoch
        self.total = schedule.epochs * self.per_epoch
        self.last = min(self.total, span.max_steps or self.total)
        self.resume, self.max_steps, self.keeping = span.resume, span.max_steps, Keeping(watch.guard, checkpoints)
        folder = checkpoints.folder.parent
        self.runner = StepRunner(self.accelerator, update, batches, watch.recovery, deferred, self.total, folder)
        self.logger = MetricsLogger(self.accelerator, update.prepared, watch, self.per_epoch, self.last, folder)
        self.forecast = Forecast(update, self.per_epoch, self.total)
        self.progress = Progress.load(state)
        if self.progress.step < self.last or self.progress.due:
            self.logger.metrics.rewind(self.progress.step - self.progress.due)
            self.progress.forget_last()
            if self.accelerator.is_main_process:
                checkpoints.forget_after(self.progress.step)
        # A checkpoint that was named, with max_steps that end there, is wanted as it is: what the guard had to say is said.
        self.taken_as_it_is = span.resume not in ("auto", "none") and span.max_steps is not None and span.max_steps <= self.progress.step
        self.saved: tuple[int, bool] | None = None

    def say_standing(self) -> None:
        """What a resumed run has no more of: steps to take, or the weights of its best epoch."""
        if self.progress.step >= self.last and not self.progress.due:
            taken, asked = f"{self.progress.step} of {self.total} steps are taken already", self.max_steps
            fewer = "" if asked is None or asked == self.progress.step else f", and --max_steps is {asked}"
            judged = "; the guard is not asked again" if self.taken_as_it_is and self.guard is not None else ""
            log.info("nothing is left to train: %s%s%s", taken, fewer, judged)
        if lost := self.keeping.lost(self.progress):
            log.warning(
                "%s",
                f"the best epoch so far ({lost['epoch']}, step {lost['step']}) has no checkpoint any more: it cannot be exported or gone back to",
            )

    def run(self) -> Trained:
        images = self.batches.sampler.images
        bar = Bar(images(self.last), "training", begun=images(self.progress.step), shown=self.accelerator.is_main_process)
        with bar, logging_redirect_tqdm([log]):
            try:
                if self.progress.step == 0:
                    self.save()  # fallback checkpoint if the run collapses before its first good epoch
                with self.runner.signals_deferred():
                    self.run_to_end(bar)
            except Interrupted as interruption:
                with ignore_signals():
                    interruption.saved = f" at step {self.progress.step} of {self.last}; {self.save_on_interrupt()}"
                raise
            except RuntimeError as error:
                if self.accelerator.num_processes == 1 or not _ALONE.search(str(error)):
                    raise
                reason = " ".join(str(error).split())[:150]
                with ignore_signals():  # the launcher has seen it as well
                    raise UserError(
                        f"another process of this run is gone, at step {self.progress.step} ({reason}); {self.save_on_interrupt()}"
                    ) from error
        with_what = (self.accelerator.num_processes, self.accelerator.device.type, arithmetic(self.accelerator))
        ended = self.progress.looks[-1] if self.guard and self.progress.looks else None
        seen = self.keeping.best(self.progress), ended, self.keeping.lost(self.progress)
        best, last, lost = (None if result is None else dict(result) for result in seen)
        overfitting = self.guard.overfitting(best, last) if self.guard and best and last else None
        if overfitting is not None:
            log.warning("%s", overfitting)
        progress, begun = self.progress, -(-self.progress.step // self.per_epoch)
        return Trained(progress.step, begun, progress.seconds, *with_what, best, last, overfitting, progress.skipped, progress.rollbacks, lost)

    def run_to_end(self, bar: Bar) -> None:
        """To the last step, with as many ways back as it takes."""
        while True:
            try:
                if self.progress.due:
                    epoch = (self.progress.step - 1) // self.per_epoch
                    self.after_step(epoch, self.rate(self.progress.step - 1), save=True)  # or a way back to this checkpoint would do it once more
                self.judge()
                while self.progress.step < self.last:
                    self.run_epoch(bar)
                return
            except Collapse as collapse:
                self.roll_back(collapse)
                bar.to(self.batches.sampler.images(self.progress.step))

    def save_on_interrupt(self) -> str:
        """Save what was reached, and say so; the other processes are not waited for."""
        self.update.undo()
        self.runner.flush(self.progress)
        how = "the same command" if self.resume == "auto" else "--resume auto"
        if not self.accelerator.is_main_process:
            return f"{how} resumes from {self.checkpoints.latest() or 'the start'}"
        if self.saved != (self.progress.step, self.progress.due):
            self.checkpoints.forget_after(self.progress.step)  # interrupted on the way back
            self.write_checkpoint()
        return f"{how} resumes from {self.checkpoints.at(self.progress.step)}"

    def rate(self, step: int) -> float:
        epoch, inner = divmod(step, self.per_epoch)
        return self.schedule(epoch, inner, self.per_epoch) * self.recovery.lowering ** len(self.progress.rollbacks)

    def run_epoch(self, bar: Bar) -> None:
        """One epoch, or what is left of it."""
        epoch, inner = divmod(self.progress.step, self.per_epoch)
        self.update.prepared.train()
        mark = time.perf_counter()
        for batch in self.batches.epoch(epoch, inner):
            mark += self.forecast.before(batch, self.last - self.progress.step)
            rate = self.rate(self.progress.step)
            self.update.learn_at(rate)
            self.runner.run_step(self.progress, batch, self.logger.is_read(self.progress.step + 1))
            took = time.perf_counter() - mark
            self.progress.seconds += took
            images = len(batch.inputs) * self.batches.sampler.world
            self.logger.timed(images, took)
            self.forecast.after(images, took, self.last - self.progress.step)
            bar.update(images, loss="?" if self.runner.loss is None else f"{self.runner.loss:.4f}", lr=f"{rate:.3g}")
            self.after_step(epoch, rate)
            raise_pending()
            if self.progress.step == self.last:
                break
            mark = time.perf_counter()

    def after_step(self, epoch: int, rate: float, save: bool = False) -> None:
        """Log, monitor, save and judge where they are due, in this order: a checkpoint never stands before the lines that belong to it."""
        before = self.progress.copy()
        try:
            validated = self.logger.after_step(self.progress, epoch, rate)
            saves = save or self.logger.saves(self.progress.step) or (validated and self.keeping.best_step(self.progress) == self.progress.step)
            broken = self.broken() if saves else ""
        except BaseException:
            self.progress = before  # what was begun is done again when the run is resumed
            raise
        if broken:
            raise Collapse(
                f"training stopped at step {self.progress.step}: {broken} is not finite: lower --optimizer.lr or lengthen --optimizer.warmup_epochs"
            )
        self.progress.due = False
        if saves:
            self.save()
        self.judge()

    def broken(self) -> str:
        """A weight or buffer that is not finite, the same word on every process."""
        names = [name for name, value in self.update.objective.state_dict().items() if not torch.isfinite(value).all()]
        if self.accelerator.num_processes > 1:
            names = gather_object(names)
        return names[0] if names else ""

    def judge(self) -> None:
        """Raise :class:`Collapse` if the guard finds the run dead. Where ``max_steps`` cuts it short, it has not ended."""
        if self.guard is not None and not self.taken_as_it_is and self.progress.looks and self.progress.looks[-1]["step"] == self.progress.step:
            self.guard.judge(self.progress.looks, ended=self.progress.step == self.total)

    def roll_back(self, collapse: Collapse) -> None:
        """Continue from the best checkpoint (the start, if none was good) with a lower learning rate.

        Raises:
            UserError: That would not help, or was tried often enough.
        """
        self.update.undo()
        self.runner.forget()
        sentence = str(collapse)
        good = self.keeping.way_back(self.progress)
        if not collapse.curable or len(self.progress.rollbacks) >= self.recovery.rollbacks or good is None:
            tried = (
                f" Training went back {len(self.progress.rollbacks)} times, each time with a lower learning rate." if self.progress.rollbacks else ""
            )
            target, which = self.checkpoints.at(good or 0), "best" if self.guard else "last good"
            kept = (
                f" The {which} checkpoint is {target}: --resume {target} --max_steps {good} exports it." if good else " No checkpoint was any good."
            )
            raise UserError(f"{sentence}.{tried}{kept} Nothing is exported")
        rollbacks = [*self.progress.rollbacks, {"at": self.progress.step, "to": good, "why": sentence}]
        skipped, seconds = self.progress.skipped, self.progress.seconds
        factor = self.recovery.lowering ** len(rollbacks)
        log.warning("%s. Going back to step %d; the learning rate is %.3g of what it was from here on", sentence, good, factor)
        with uninterrupted():
            self.progress = Progress.load(self.checkpoints.load(self.checkpoints.at(good), self.update.objective, self.update.optimizer.optimizer))
            self.progress.rollbacks, self.progress.skipped, self.progress.seconds, self.progress.skipped_in_a_row = rollbacks, skipped, seconds, 0
        self.accelerator.wait_for_everyone()  # all have read before the main process writes
        self.logger.metrics.rewind(self.progress.step)
        if self.accelerator.is_main_process:
            self.checkpoints.forget_after(self.progress.step)
        self.logger.write(self.progress, self.progress.step // self.per_epoch, {"rolled_back_from": rollbacks[-1]["at"], "lr_factor": factor})
        self.save()

    def save(self) -> None:
        if self.accelerator.is_main_process:
            with uninterrupted():
                self.write_checkpoint()
        self.accelerator.wait_for_everyone()

    def write_checkpoint(self) -> None:
        state = {**self.progress.state(), "processes": self.accelerator.num_processes}
        self.checkpoints.save(
            self.progress.step, self.update.objective, self.update.optimizer.optimizer, state, spare=self.keeping.spared(self.progress)
        )
        self.saved = self.progress.step, self.progress.due
