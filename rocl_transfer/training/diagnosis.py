"""The post-mortem of a step that was skipped: what was not finite, where that began, and on which images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.data import Batch
from rocl_transfer.training.update import Update


def sentence(update: Update, step: int, values: dict[str, float], bad: list[str], repeated: int) -> str:
    """What was not finite, after ``repeated`` such steps, and what to change."""
    broken = [name for name, parameter in update.objective.named_parameters() if not torch.isfinite(parameter).all()]
    where = f"the weight {broken[0]} was already not finite" if broken else "all weights were still finite"
    listed = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
    times = f", for the {repeated} steps up to this one" if repeated > 1 else ""
    return (
        f"training stopped at step {step}: {' and '.join(bad)} not finite ({listed}) at learning rate {update.rate:.3g}{times}; {where}, the step "
        "was not taken: lower --optimizer.lr or lengthen --optimizer.warmup_epochs"
    )


def diagnosis(update: Update, batch: Batch, step: int, total: int, seed: tuple[int, int], name: Callable[[int], str]) -> dict[str, Any]:
    """Where the numbers of a skipped step stopped being finite: its batch once more, watched, with the weights of now.

    Where numbers are read later, up to 16 steps were taken since, and nothing is known of its gradients any more (None).

    Args:
        update: Leaves the step as if it had not been.
        batch: Its batch.
        step: See :meth:`Update.compute`.
        total: See :meth:`Update.compute`.
        seed: See :meth:`Update.compute`.
        name: Names an image, by its position in the training set.
    """
    objective = update.objective
    kept = [(key, p.grad) for key, p in objective.named_parameters() if p.grad is not None]
    gradients = [key for key, gradient in kept if not torch.isfinite(gradient).all()] if kept else None
    update.undo()
    weights = [key for key, value in objective.state_dict().items() if not torch.isfinite(value).all()]
    parts = batch.split(update.accumulation)
    fault = _FirstFault(len(parts[0].inputs))
    leaves = [(key, module) for key, module in objective.named_modules() if key and not list(module.children())]
    handles = [module.register_forward_hook(partial(fault.watch, key)) for key, module in leaves]
    try:
        update.begin(step, total, seed)
        for part in parts:
            objective(part)
            fault.offset += fault.size
    finally:
        for handle in handles:
            handle.remove()
        update.undo()
    positions = [] if batch.positions is None else batch.positions.tolist()
    rows = fault.rows or range(len(positions))  # of whom it cannot be said: all
    return {
        "first_part": fault.part or "the gradient: every output is finite",
        "gradients": gradients,
        "weights": weights,
        "batch": [name(position) for position in positions],
        "images": [name(positions[row]) for row in rows if row < len(positions)],
    }


@dataclass
class _FirstFault:
    """The first input or output of a module that is not finite, and the rows of the batch in it.

    Attributes:
        size: Images of a part of the batch.
        offset: Images of the parts before this one.
        part: Its name; None while every number is finite.
        rows: Which; none if it cannot be said.
    """

    size: int
    offset: int = 0
    part: str | None = None
    rows: list[int] = field(default_factory=list)

    def watch(self, key: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """As a forward hook of the module called ``key``."""
        for kind, value in [*(("input", value) for value in inputs), ("output", output)]:
            if self.part is None and isinstance(value, Tensor) and value.is_floating_point() and not (finite := torch.isfinite(value)).all():
                self.part = f"{kind} of {key}"
                # Views stand one after another, each of all images.
                rows = (~finite.flatten(1).all(1)).nonzero().flatten().tolist() if value.ndim > 1 and len(value) % self.size == 0 else []
                self.rows = sorted({self.offset + row % self.size for row in rows})
