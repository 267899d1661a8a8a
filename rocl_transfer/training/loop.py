"""The one loop: pre-training, probing and fine-tuning differ in the objective, the parameters that train and the monitors."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rocl_transfer.data import Batch, Batches, derive_seed
from rocl_transfer.errors import UserError
from rocl_transfer.training.checkpoints import Checkpoints
from rocl_transfer.training.metrics import Mean, MetricsFile, peak_memory
from rocl_transfer.training.optimization import Schedule

log = logging.getLogger("rocl_transfer")
Monitor = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Cadence:
    """How often things happen beside the steps.

    Args:
        log: Steps between lines of ``metrics.jsonl``.
        checkpoint: Steps between checkpoints (default: one epoch's); the last step always has one.
        monitor: Epochs between calls of the monitor; the last step always has one.
    """

    log: int = 10
    checkpoint: int | None = None
    monitor: int = 1


@dataclass(frozen=True)
class Trained:
    """What the training cost, resumed parts included."""

    steps: int
    epochs: int
    seconds: float
    processes: int
    device: str
    precision: str


def train(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    batches: Batches,
    checkpoints: Checkpoints,
    *,
    max_steps: int | None = None,
    resume: str = "auto",
    monitor: Monitor | None = None,
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
        cadence: How often to log, to save, to monitor.

    Raises:
        UserError: A loss is not finite (that step is not taken), or the run to resume is another one.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        objective = convert_sync_batchnorm(objective)  # timm's: torch's own drops the activation inside timm's norms
    # Same numbers up to rounding; a RoCL step of resnet8_cifar at 16 px took 0.31 s instead of 0.41 s on 2 CPU cores.
    objective = objective.to(accelerator.device).to(memory_format=torch.channels_last)
    found = checkpoints.find(resume)
    state = checkpoints.load(found, objective, optimizer) if found else {}
    loop = _Loop(accelerator, objective, optimizer, schedule, batches, checkpoints, max_steps, monitor, cadence or Cadence(), state)
    if found:
        log.info("resumed from %s", found)
    return loop.run()


class _Loop:
    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        batches: Batches,
        checkpoints: Checkpoints,
        max_steps: int | None,
        monitor: Monitor | None,
        cadence: Cadence,
        state: dict[str, Any],
    ) -> None:
        self.accelerator, self.schedule, self.batches, self.checkpoints = accelerator, schedule, batches, checkpoints
        self.monitor, self.cadence = monitor, cadence
        self.prepared, self.optimizer = accelerator.prepare(objective, optimizer)
        self.per_epoch = batches.sampler.steps_per_epoch
        self.last = min(schedule.epochs * self.per_epoch, max_steps or schedule.epochs * self.per_epoch)
        # All that a resume needs besides weights and optimiser: every random draw follows from the step.
        self.step: int = state.get("step", 0)
        self.seconds: float = state.get("seconds", 0.0)
        self.window, self.epoch_mean = Mean(*state.get("window", ())), Mean(*state.get("epoch_mean", ()))
        self.metrics = MetricsFile(checkpoints.folder.parent / "metrics.jsonl", accelerator.is_main_process)
        if self.step < self.last:
            self.metrics.rewind(self.step)
            if accelerator.is_main_process:
                checkpoints.forget_after(self.step)
        self.images, self.window_seconds = 0, 0.0

    def run(self) -> Trained:
        quiet = not self.accelerator.is_main_process
        bar = tqdm(total=self.last, initial=self.step, unit="step", disable=quiet, dynamic_ncols=True)
        with bar, logging_redirect_tqdm([log]):
            while self.step < self.last:
                self.run_epoch(bar)
        with_what = (self.accelerator.num_processes, self.accelerator.device.type, self.accelerator.mixed_precision)
        return Trained(self.step, -(-self.step // self.per_epoch), self.seconds, *with_what)

    def run_epoch(self, bar: Any) -> None:
        """One epoch, or what is left of it."""
        epoch, inner = divmod(self.step, self.per_epoch)
        rate = self.schedule(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.prepared.train()
        mark = time.perf_counter()
        for batch in self.batches.epoch(epoch, inner):
            values = self.update(batch, rate)
            took = time.perf_counter() - mark
            self.seconds, self.window_seconds = self.seconds + took, self.window_seconds + took
            self.images += len(batch.inputs) * self.batches.sampler.world
            bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{rate:.3g}", refresh=False)
            bar.update()
            self.after_step(epoch, rate)
            if self.step == self.last:
                break
            mark = time.perf_counter()

    def update(self, batch: Batch, rate: float) -> dict[str, float]:
        """One step; the losses come back as means over the processes, so that all of them stop where one is not finite."""
        # Dropout and stochastic depth draw from the global generator: with this they too depend on the step alone.
        torch.manual_seed(derive_seed(self.batches.sampler.seed, self.step, self.batches.sampler.rank, 1))
        losses: dict[str, Tensor] = self.prepared(batch)
        self.accelerator.backward(losses["loss"])
        means = self.accelerator.reduce(torch.stack([value.detach().float() for value in losses.values()]), "mean").tolist()
        values: dict[str, float] = dict(zip(losses, means, strict=True))
        if bad := [name for name, value in values.items() if not abs(value) < float("inf")]:
            raise UserError(self.diagnosis(bad, values, rate))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.window.add(values)
        self.epoch_mean.add(values)
        return values

    def after_step(self, epoch: int, rate: float) -> None:
        """Log, monitor and save where they are due, in this order: a checkpoint never stands before the lines that belong to it.

        The last step logs, monitors and saves in any case. Where that was not due, its lines are marked ``last`` and come after the checkpoint:
        a run that goes on forgets them, and writes what the uninterrupted run would.
        """
        number = epoch + 1
        ends_epoch, ends = self.step % self.per_epoch == 0, self.step == self.last
        logs, looks = self.step % self.cadence.log == 0, ends_epoch and number % self.cadence.monitor == 0
        if logs:
            self.write(epoch, self.logged(rate))
        if ends_epoch:
            means = {f"epoch_{name}": value for name, value in self.epoch_mean.take().items()}
            self.write(epoch, {**means, **(self.look(number) if looks else {})})
        if self.step % (self.cadence.checkpoint or self.per_epoch) == 0 or ends:
            self.save()
        if ends and not logs:
            self.write(epoch, {**self.logged(rate), "last": True})
        if ends and not looks and self.monitor is not None:
            self.write(epoch, {**self.look(number), "last": True})

    def logged(self, rate: float) -> dict[str, float]:
        line = {"lr": rate, "images_per_second": self.images / self.window_seconds, "memory_bytes": peak_memory()}
        self.images, self.window_seconds = 0, 0.0
        return {**self.window.take(), **line}

    def look(self, number: int) -> dict[str, float]:
        if self.monitor is None:
            return {}
        seen = self.monitor()
        self.prepared.train()
        log.info("epoch %d: %s", number, ", ".join(f"{name} {value:.4f}" for name, value in seen.items()))
        return seen

    def write(self, epoch: int, values: dict[str, float]) -> None:
        line = {"step": self.step, "epoch": epoch, **values}
        self.metrics.write(line)
        self.accelerator.log(line, step=self.step)

    def save(self) -> None:
        if self.accelerator.is_main_process:
            means = {"window": [self.window.sums, self.window.count], "epoch_mean": [self.epoch_mean.sums, self.epoch_mean.count]}
            objective, optimizer = self.accelerator.unwrap_model(self.prepared), self.optimizer.optimizer
            self.checkpoints.save(self.step, objective, optimizer, {"seconds": self.seconds, **means})
        self.accelerator.wait_for_everyone()

    def diagnosis(self, bad: list[str], values: dict[str, float], rate: float) -> str:
        broken = [name for name, parameter in self.prepared.named_parameters() if not torch.isfinite(parameter).all()]
        where = f"the weight {broken[0]} was already not finite" if broken else "all weights were still finite"
        good = self.checkpoints.latest()
        since = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        listed = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
        return (
            f"training stopped at step {self.step}: {' and '.join(bad)} not finite ({listed}) at learning rate {rate:.3g}; {where}, the step was "
            f"not taken, {since}. Lower --optimizer.lr or lengthen --optimizer.warmup_epochs, in a new --output_dir"
        )
