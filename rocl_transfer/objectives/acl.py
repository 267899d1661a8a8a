"""ACL (Jiang, Chen, Chen, Wang 2020): contrast of two clean views and of two adversarial ones, each with BatchNorm of their own."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rocl_transfer.attacks import AttackOptions, frozen
from rocl_transfer.data import Batch, generators
from rocl_transfer.models import PixelModel, TwoSets, normalized_projector
from rocl_transfer.objectives.contrastive import nt_xent
from rocl_transfer.objectives.objective import Views
from rocl_transfer.objectives.view_contrast import AttackedContrast, AttackedOptions

log = logging.getLogger("rocl_transfer")


class ACL(AttackedContrast):
    """Dual-stream adversarial contrast: half the loss of the clean pair and half that of the pair that was attacked jointly.

    Adversarial images see the encoder's and the projector's own BatchNorm, which is what is exported; clean ones see a second set. Negatives of the
    losses are the global batch of all processes, negatives of the attack the images of one group.

    The gradient of the losses takes keys for constants, as everywhere here: the direction of the official one (cosine above 0.999), half its length.

    Made as every :class:`~rocl_transfer.objectives.view_contrast.ViewContrast` is.
    """

    title = "pre-trained without labels by ACL (adversarial contrastive learning, clean and adversarial pairs with BatchNorm of their own)"

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackedOptions):
        """ACL: contrast of clean pairs and of adversarial pairs.

        Args:
            attack: What moves both views of an image, against the loss of the pair.
        """

        method: str = "acl"
        attack: AttackOptions = AttackOptions(steps=5)

    options: Options

    def __init__(self, encoder: PixelModel, projector: nn.Module, views: Views, options: Options | None = None) -> None:
        super().__init__(encoder, projector, views, options)
        self.clean_set = TwoSets(encoder, projector)
        self.normalizes = any(isinstance(part, _BatchNorm) for part in encoder.modules())
        if not self.normalizes:
            log.info("%s has no BatchNorm: clean and adversarial images go one way through it", encoder.architecture)

    @classmethod
    def make_projector(cls, num_features: int) -> nn.Module:
        """With BatchNorm."""
        return normalized_projector(num_features)

    def facts(self) -> dict[str, Any]:
        """What becomes of BatchNorm."""
        return {**super().facts(), **({"batchnorm": "two sets, the adversarial one is exported"} if self.normalizes else {})}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one step; ``loss`` is what is minimised.

        Args:
            batch: uint8 images; the labels are not used.
        """
        self.compile_once()
        images = batch.inputs.float() / 255
        draws = generators(batch.seeds, "views")
        first, second = self.views(images, draws), self.views(images, draws)
        adversarial = self.embed(*self.perturb(first, second, batch.seeds))
        with self.clean_set.chosen():
            clean = self.embed(first, second)
        return {**self.weighed(self.contrast(clean), self.contrast(adversarial)), **self.agreements(clean, adversarial, len(batch.seeds))}

    def weighed(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """The loss from those of the two pairs."""
        return {"loss": (clean + adversarial) / 2, "clean": clean.detach(), "adversarial": adversarial.detach()}

    def perturb(self, first: Tensor, second: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Move both views (N, 3, H, W) of the images of each group to raise the loss of the group's pairs.

        An image's gradient has its own row of the loss and its column in all others, where the others stand perturbed: a group is attacked as one.
        """
        groups, shape = len(seeds), first.shape[1:]
        # A part of the ascent is a group: its first views, then its second ones.
        pairs = torch.stack([view.view(groups, -1, *shape) for view in (first, second)], dim=1)
        with frozen(*self.clean_set.networks):
            embed = self.attacked_embedding(first)

            def loss(images: Tensor) -> Tensor:
                z = embed(images.view(pairs.shape))
                return nt_xent(z, z, self.temperature, through_keys=True)

            moved = self.attack(pairs.flatten(0, 2), loss, generators(seeds, "attack", first.device)).view(pairs.shape)
        return moved[:, 0].flatten(0, 1), moved[:, 1].flatten(0, 1)

    def attacked_embedding(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """What the attack climbs on: pairs (groups, 2, N, 3, H, W) -> unit vectors (groups, 2, N, D)."""
        encoder = self.attacked.current(images)

        def embed(pairs: Tensor) -> Tensor:
            return self.unit(encoder(pairs.flatten(0, 2))).view(*pairs.shape[:3], -1)

        return embed
