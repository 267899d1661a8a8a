"""One step: forward, backward and, where every number is finite, the optimiser."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from rocl_transfer.data import Batch, derive_seed
from rocl_transfer.objectives import Objective


class Update:
    """Moves the parameters of an objective.

    Args:
        accelerator: Prepares both.
        objective: As one module, so that a step is one forward of it.
        optimizer: Of its parameters.
        clip_grad: Largest norm of the gradient of all parameters together.
    """

    def __init__(self, accelerator: Accelerator, objective: Objective, optimizer: Optimizer, clip_grad: float | None) -> None:
        self.accelerator, self.objective, self.clip_grad = accelerator, objective, clip_grad
        self.prepared, self.optimizer = accelerator.prepare(objective, optimizer)
        self.trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.before = [(buffer, buffer.clone()) for buffer in objective.buffers()]
        self.rate = 0.0

    def begin_epoch(self, rate: float) -> None:
        """Learn at ``rate``, layers at their own share of it."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.prepared.train()

    def __call__(self, batch: Batch, step: int, total: int, seed: tuple[int, int]) -> tuple[dict[str, float], list[str]]:
        """Take step ``step`` of ``total``.

        Args:
            batch: This process's.
            step: From 0.
            total: Of the whole schedule.
            seed: The run's, and this process's number.

        Returns:
            The losses and the gradient's norm as means over the processes, so that all of them see the same; and the names of those that are not
            finite: then parameters and buffers stay as they are.
        """
        # Dropout and stochastic depth draw from the global generator: with this they too depend on the step alone.
        torch.manual_seed(derive_seed(seed[0], step, seed[1], 1))
        self.objective.begin_step(step, total)
        for buffer, before in self.before:
            before.copy_(buffer)
        losses: dict[str, Tensor] = self.prepared(batch)
        self.accelerator.backward(losses["loss"])
        length = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        means = self.accelerator.reduce(torch.stack([value.detach().float() for value in (*losses.values(), length)]), "mean").tolist()
        values: dict[str, float] = dict(zip((*losses, "gradient_norm"), means, strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            if self.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(self.trained, self.clip_grad, length)
            self.optimizer.step()
            self.objective.end_step()
        else:
            for buffer, before in self.before:  # BatchNorm's statistics have seen what is not finite
                buffer.copy_(before)
        self.optimizer.zero_grad()
        return values, bad

    def diagnosis(self, step: int, values: dict[str, float], bad: list[str], repeated: int) -> str:
        """What was not finite, after ``repeated`` such steps, and what to change."""
        broken = [name for name, parameter in self.objective.named_parameters() if not torch.isfinite(parameter).all()]
        where = f"the weight {broken[0]} was already not finite" if broken else "all weights were still finite"
        listed = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
        times = f", for the {repeated} steps up to this one" if repeated > 1 else ""
        return (
            f"training stopped at step {step}: {' and '.join(bad)} not finite ({listed}) at learning rate {self.rate:.3g}{times}; {where}, the step "
            "was not taken: lower --optimizer.lr or lengthen --optimizer.warmup_epochs"
        )
