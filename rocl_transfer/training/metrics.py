"""What a run says of itself between steps: validation, running means, and ``metrics.jsonl`` without gap or double over a resume."""

import json
import logging
import resource
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rocl_transfer.training.progress import Progress
from rocl_transfer.training.runtime import tuned_kernels
from rocl_transfer.training.settings import Watch

log = logging.getLogger("rocl_transfer")


class MetricsLogger:
    """Writes ``metrics.jsonl``, tells the trackers, and validates.

    The last step logs and monitors in any case. Where that was not due, its lines are marked ``last``: a resumed run forgets them, and writes
    what the uninterrupted run would.

    Args:
        accelerator: From :func:`rocl_transfer.training.start`.
        prepared: What trains: put back in train mode after validation.
        watch: Which monitor validates, and how often; results are kept if there is a guard.
        per_epoch: Steps of an epoch.
        last: The step at which the run ends.
        folder: Where ``metrics.jsonl`` stands.
    """

    def __init__(self, accelerator: Accelerator, prepared: nn.Module, watch: Watch, per_epoch: int, last: int, folder: Path) -> None:
        self.accelerator, self.prepared, self.monitor, self.keeps_results = accelerator, prepared, watch.monitor, watch.guard is not None
        self.cadence, self.per_epoch, self.last = watch.cadence, per_epoch, last
        self.metrics = MetricsFile(folder / "metrics.jsonl", accelerator.is_main_process)
        self.images, self.seconds = 0, 0.0  # since the last line

    def is_read(self, step: int) -> bool:
        """Whether something happens after ``step`` steps that needs the numbers of all of them."""
        return step == self.last or any(step % every == 0 for every in (self.cadence.log, self.per_epoch, self.cadence.checkpoint or self.per_epoch))

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps."""
        return step % (self.cadence.checkpoint or self.per_epoch) == 0 or step == self.last

    def timed(self, images: int, seconds: float) -> None:
        """Count a step of so many ``images`` over all processes."""
        self.images, self.seconds = self.images + images, self.seconds + seconds

    def after_step(self, progress: Progress, epoch: int, rate: float) -> bool:
        """Write what is due; whether the model was validated."""
        number = epoch + 1
        ends_epoch, ends = progress.step % self.per_epoch == 0, progress.step == self.last
        logs, validates = progress.step % self.cadence.log == 0, ends_epoch and number % self.cadence.monitor == 0
        if logs:
            self.write(progress, epoch, {**progress.window.take(), **self._pace(rate)})
        seen = self._validate(progress, number, {} if validates else {"last": True}) if validates or ends else {}
        if ends_epoch:
            means = {f"epoch_{name}": value for name, value in progress.epoch_mean.take().items()}
            self.write(progress, epoch, {**means, **(seen if validates else {})})
        if ends and not logs:
            self.write(progress, epoch, {**progress.window.means(), **self._pace(rate), "last": True})
        if ends and not validates and seen:
            self.write(progress, epoch, {**seen, "last": True})
        return bool(seen)

    def write(self, progress: Progress, epoch: int, values: dict[str, float]) -> None:
        """One line."""
        line = {"step": progress.step, "epoch": epoch, **values}
        self.metrics.write(line)
        if self.cadence.track:
            self.accelerator.log(line, step=progress.step)

    def _pace(self, rate: float) -> dict[str, float]:
        line = {"lr": rate, "memory_bytes": peak_memory(self.accelerator.device)}
        if self.seconds:  # nothing was timed yet if a run was resumed at a step that was already taken
            line["images_per_second"] = self.images / self.seconds
        self.images, self.seconds = 0, 0.0
        return line

    def _validate(self, progress: Progress, number: int, mark: dict[str, bool]) -> dict[str, float]:
        """What the monitor sees, the same on every process."""
        if self.monitor is None:
            return {}
        with tuned_kernels(False):
            found = self.monitor()
        numbers = self.accelerator.reduce(torch.tensor(list(found.values()), device=self.accelerator.device), "mean").tolist()
        seen = {name: round(value, 6) for name, value in zip(found, numbers, strict=True)}
        self.prepared.train()
        log.info("epoch %d: %s", number, ", ".join(f"{name} {value:.4f}" for name, value in seen.items()))
        if self.keeps_results:
            progress.looks.append({"step": progress.step, "epoch": number, **seen, **mark})
        return seen


class MetricsFile:
    """Appends one JSON object a line.

    Args:
        path: The file.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Forget what a killed run wrote after the checkpoint of ``step``, and what a shorter one wrote because it ended there."""
        if self.writes and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            whole = [(line, json.loads(line)) for line in lines if line.endswith("}")]
            kept = [line for line, values in whole if values["step"] <= step and "last" not in values]
            aside = self.path.with_name(f".{self.path.name}.writing")  # a kill here must not cost the lines that stay
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            aside.replace(self.path)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def last_epoch(path: Path) -> dict[str, float]:
    """The means over the last whole epoch in a ``metrics.jsonl``, by the names of what an objective logs; empty if there is none, or no file."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    means = [{name.removeprefix("epoch_"): value for name, value in line.items() if name.startswith("epoch_")} for line in lines]
    return next((values for values in reversed(means) if values), {})


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes of what computes on ``device``: the GPU's, or this process's where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
