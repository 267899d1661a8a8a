"""What the loop trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from rocl_transfer.data import Batch
from rocl_transfer.models import PixelModel, projector

Views = Callable[[Tensor, Sequence[torch.Generator]], Tensor]


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """The options of an objective; its own ones are fields of a subclass, whose docstring is their ``--help``.

    Args:
        method: Its name among the objectives, or ``FILE.py:Class`` or ``package.module:Class`` for one of your own.
    """

    method: str

    def images_together(self, part: int) -> int:
        """How many of the ``part`` images that a process computes at once are drawn by one seed: all, unless a method has groups of its own."""
        return part


class Objective(nn.Module, ABC):
    """Owns the networks; ``forward`` turns a batch into losses. What it trains is what ``requires_grad``.

    Everything random in it follows from the batch's seeds or from torch's global generator, which the loop seeds for each step. What a checkpoint
    must hold beside the networks (an EMA, a dual network) is a submodule or buffer as well.

    One for pre-training is made by ``Class(encoder, projector, views, options)``; see ``docs/extending.md``.

    Args:
        frozen: Networks that are used and never trained: a teacher, the backbone of a probe. They move with the objective and stay in eval mode, and
            nobody else meets them: no optimiser, checkpoint or copy, nothing that synchronises processes.
    """

    Options: type[ObjectiveOptions]
    title: str  # how the model was made, in the card's words after its architecture

    def __init__(self, *frozen: nn.Module) -> None:
        super().__init__()
        # In a tuple torch does not take them for submodules.
        self.frozen = tuple(module.eval().requires_grad_(False) for module in frozen)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for module in self.frozen:
            module._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @classmethod
    def make_projector(cls, num_features: int) -> nn.Module:
        """The head on which a pre-training compares features (N, ``num_features``): RoCL's, unless a method has its own."""
        return projector(num_features)

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised, the others are logged."""

    @property
    @abstractmethod
    def exported(self) -> PixelModel:
        """The model that is watched during training and exported after it."""

    @property
    def exported_projector(self) -> nn.Module | None:
        """The projector that belongs to it, for another pre-training to begin with."""
        return None

    def begin_step(self, step: int, total: int) -> None:
        """Called before step ``step`` of ``total``, so that what changes over training depends on the step alone."""

    def end_step(self) -> None:
        """Called after the optimiser has moved the parameters."""

    def own_rates(self) -> dict[nn.Module, float]:
        """Parts whose peak learning rate is another than the run's."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What ``config.json`` and the results record say of how the model was made."""
        return {"title": self.title}


def running_average(model: nn.Module, decay: float) -> Any:
    """Timm's EMA of a model's weights (exponential moving average), whose ``module`` is the averaged model; None if ``decay`` is 0.

    Its decay starts at 0 and rises to the one asked for, so that it follows closely at first.
    """
    if not decay:
        return None
    # timm.utils imports torchvision, which --help can do without.
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay, use_warmup=True).requires_grad_(False)
