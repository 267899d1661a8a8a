"""timm's optimisers as the papers use them, and learning rates that are a pure function of the epoch."""

import math
from dataclasses import dataclass
from typing import Any

import timm.optim
from torch import nn
from torch.optim import Optimizer


def create_optimizer(
    objective: nn.Module, name: str, lr: float, weight_decay: float, momentum: float = 0.9, layers: nn.Module | None = None, layer_decay: float = 1.0
) -> Optimizer:  # fmt: skip
    """Timm's optimiser ``name`` on every trained parameter alike.

    ``filter_bias_and_bn`` is off: timm would take biases and norms out of the weight decay, and its LARS adapts no parameter without one, while
    RoCL's adapts all. Where the decay is 0 for everything, LARS is told to adapt all the same.

    Args:
        objective: The module whose parameters with ``requires_grad`` are trained.
        name: timm's name; ``momentum`` is SGD with momentum (``sgd`` is Nesterov's).
        lr: First learning rate; the loop sets it anew each epoch.
        weight_decay: On every parameter.
        momentum: For the optimisers that have one.
        layers: A timm network within the objective whose layers learn the more slowly the farther they are from the head.
        layer_decay: By this factor a layer; the rest of the objective learns at the full rate.
    """
    parameters: Any = objective
    if layers is not None and layer_decay < 1:
        parameters = timm.optim.param_groups_layer_decay(layers, weight_decay, weight_decay_exclude_1d=False, layer_decay=layer_decay)
        grouped = {id(parameter) for group in parameters for parameter in group["params"]}
        if rest := [p for p in objective.parameters() if p.requires_grad and id(p) not in grouped]:
            parameters.append({"params": rest, "weight_decay": weight_decay})
    extra = {"always_adapt": True} if name == "lars" and weight_decay == 0 else {}
    optimizer: Optimizer = timm.optim.create_optimizer_v2(
        parameters, opt=name, lr=lr, weight_decay=weight_decay, momentum=momentum, filter_bias_and_bn=False, **extra
    )
    return optimizer


@dataclass(frozen=True)
class Schedule:
    """The learning rate of an epoch, constant within it (official code).

    Args:
        lr: Peak.
        epochs: What ``cosine`` and ``milestones`` are stretched over.
        shape: cosine (after the warm-up), or steps (times 0.1 at each milestone).
        warmup_epochs: Linear from ``warmup_lr`` to the peak, reached in the last of them.
        warmup_lr: Where the warm-up starts.
        milestones: Shares of ``epochs``.
    """

    lr: float
    epochs: int
    shape: str = "cosine"
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    milestones: tuple[float, ...] = ()

    def __call__(self, epoch: int) -> float:
        """Learning rate of epoch ``epoch``, from 0."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.lr - self.warmup_lr) * (epoch + 1) / self.warmup_epochs
        if self.shape == "steps":
            passed = sum(epoch >= share * self.epochs - 1e-9 for share in self.milestones)
            return float(self.lr * 0.1**passed)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / self.epochs))
