"""What the loop trains."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from rocl_transfer.data import Batch


class Objective(nn.Module, ABC):
    """Owns the networks; ``forward`` turns a batch into losses. What it trains is what ``requires_grad``.

    Everything random in it follows from the batch's seeds or from torch's global generator, which the loop seeds for each step.
    """

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised, the others are logged."""

    def begin_step(self, step: int, total: int) -> None:
        """Called before step ``step`` of ``total``, so that what changes over training depends on the step alone."""

    def end_step(self) -> None:
        """Called after the optimiser has moved the parameters."""
