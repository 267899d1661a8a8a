"""Transformation-smoothed inference (RoCL, section 3): the mean answer to many views of an image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rocl_transfer.data import derive_seed

View = Callable[[Tensor, torch.Generator], Tensor]  # images (N, 3, H, W) -> one view, the same transformation for all


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How inference is smoothed.

    Attributes:
        view: Draws a view.
        words: What it does, for the record.
        draws: How many views are answered.
        seed: For the draws, and for the attacks on the smoothed model.
    """

    view: View
    words: str
    draws: int = 30
    seed: int = 0


class Smoothed(nn.Module):
    """The mean logits of a model over views of its input.

    The transformations are drawn once, from the seed: the same for every image and at every call. So its answers are a function of the image, and
    a gradient through it is the expectation over the very transformations that it answers by: the strongest EoT attack (Athalye et al. 2018).

    Args:
        model: Images (N, 3, H, W) in [0, 1] -> logits (N, K).
        view: Draws a view.
        draws: How many.
        seed: For the draws.
    """

    def __init__(self, model: nn.Module, view: View, draws: int = 30, seed: int = 0) -> None:
        super().__init__()
        self.model, self.view, self.draws, self.seed = model, view, draws, seed

    def forward(self, images: Tensor) -> Tensor:
        """Mean logits (N, K)."""
        total = torch.zeros((), device=images.device)
        for draw in range(self.draws):
            if images.requires_grad:  # a view is computed again for its gradient: a graph of all would hold so many networks' activations
                total = total + checkpoint(self._answer, images, draw, use_reentrant=False, preserve_rng_state=False)
            else:
                total = total + self._answer(images, draw)
        return total / self.draws

    def _answer(self, images: Tensor, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, draw))
        logits: Tensor = self.model(self.view(images, generator).clamp(0, 1)).float()
        return logits
