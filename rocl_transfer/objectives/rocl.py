"""RoCL (Kim, Tack, Hwang, NeurIPS 2020): robust representations without labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rocl_transfer.attacks import frozen
from rocl_transfer.data import Batch, generators
from rocl_transfer.objectives.contrastive import nt_xent
from rocl_transfer.objectives.view_contrast import AttackedContrast, AttackedOptions
from rocl_transfer.options import Number, require


class RoCL(AttackedContrast):
    """The pre-training objective, and the module that is prepared: attack, forward passes of all views and losses are one ``forward``.

    The negatives of the main loss are the global batch of all processes; those of the attack and the regulariser are the images of one group
    (a batch brings one seed per group), so that one process with two groups computes what two processes with one group each would.

    Made as every :class:`~rocl_transfer.objectives.view_contrast.ViewContrast` is.
    """

    title = "pre-trained without labels by RoCL (adversarial self-supervised contrastive learning)"

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackedOptions):
        """RoCL: contrastive learning against an instance-wise attack.

        Args:
            regularizer_weight: Weight of the contrastive loss of the adversarial pair alone.
            shared_regularizer: Take that loss from the main loss's forward pass: 24 network passes per image instead of 30. Not quite the paper's
                function, since BatchNorm then normalises the two views with the third.
        """

        method: str = "rocl"
        regularizer_weight: Number = Number(1 / 256)
        shared_regularizer: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.regularizer_weight >= 0, f"--objective.regularizer_weight is {self.regularizer_weight}: give 0 or more")

    options: Options

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one step; ``loss`` is what is minimised.

        Args:
            batch: uint8 images; the labels are not used.
        """
        self.compile_once()
        images = batch.inputs.float() / 255
        draws = generators(batch.seeds, "views")
        first, second = self.views(images, draws), self.views(images, draws)
        adversarial = self.perturb(first, second, batch.seeds)
        # The regulariser's forward comes first: BatchNorm's running statistics depend on the order (official code).
        pair = None if self.options.shared_regularizer else self.embed(adversarial, second)
        z = self.embed(first, second, adversarial)
        regularizer, main = self._pair(z[1:].flip(0) if pair is None else pair, len(batch.seeds)), self.contrast(z)
        values = {"loss": main + self.options.regularizer_weight * regularizer, "main": main.detach(), "regularizer": regularizer.detach()}
        clean, attacked = z[:2], torch.stack([z[2], z[1]])
        return {**values, **self.agreements(clean, attacked, len(batch.seeds))}

    def perturb(self, images: Tensor, target: Tensor, seeds: Sequence[int]) -> Tensor:
        """The instance-wise attack: move ``images`` away from their other view ``target`` among the images of their group (section 3.1).

        In eval mode and with detached keys, an image's gradient comes from its own row alone. So the target is encoded once, and of the loss
        only the rows of the attacked view are computed.
        """
        groups = len(seeds)
        with frozen(self.encoder, self.projector):
            encoder = self.attacked.current(images)
            with torch.no_grad():
                keys = _grouped(self.unit(encoder(target)), groups)

            def loss(adversarial: Tensor) -> Tensor:
                anchors = _grouped(self.unit(encoder(adversarial)), groups)
                return nt_xent(anchors, torch.cat([anchors.detach(), keys], dim=-3), self.temperature)

            return self.attack(images, loss, generators(seeds, "attack", images.device))

    def _pair(self, z: Tensor, groups: int) -> Tensor:
        """Mean over groups of the 2-view loss of ``z`` (2, N, D) with the group's negatives."""
        z = torch.cat([_grouped(part, groups) for part in z], dim=-3)
        return nt_xent(z, z, self.temperature) / groups


def _grouped(z: Tensor, groups: int) -> Tensor:
    """(N, D) -> (groups, 1 view, N / groups, D)."""
    return z.view(groups, 1, len(z) // groups, z.shape[-1])
