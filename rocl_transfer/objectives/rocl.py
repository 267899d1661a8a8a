"""RoCL (Kim, Tack, Hwang, NeurIPS 2020): robust representations without labels; and SimCLR, the same without the adversary."""

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocl_transfer.attacks import Ascent, frozen
from rocl_transfer.data import Batch, generators
from rocl_transfer.models import Folded
from rocl_transfer.objectives.contrastive import gather_keys, nt_xent
from rocl_transfer.objectives.objective import Objective

log = logging.getLogger("rocl_transfer")
Views = Callable[[Tensor, Sequence[torch.Generator]], Tensor]


class RoCL(Objective):
    """The pre-training objective, and the module that is prepared: attack, forward passes of all views and losses are one ``forward``.

    The negatives of the main loss are the global batch of all processes; those of the attack and the regulariser are the images of one group
    (a batch brings one seed a group), so that one process with two groups computes what two processes with one group each would.

    Args:
        encoder: Images (N, 3, H, W) in [0, 1] -> features (N, D).
        projector: Features -> the space in which views are compared.
        views: Draws a view of each image, in pixel space.
        attack: The instance-wise attack; None for SimCLR.
        temperature: Of the softmax over similarities.
        regularizer_weight: Weight of the contrastive loss between the adversarial and the second view alone.
        shared_regularizer: Take that loss from the main loss's forward pass instead of one of its own: 24 network passes an image instead of 30.
            Another function, since BatchNorm then normalises the two views with the third.
        compiled: Have ``torch.compile`` make kernels of the encoder, in training and in the attack, for each number of images its own: whole and
            partial batches.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        views: Views,
        attack: Ascent | None,
        temperature: float = 0.5,
        regularizer_weight: float = 1 / 256,
        shared_regularizer: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.attacked, self._to_compile = Folded(encoder, compiled), compiled
        self.views, self.attack = views, attack
        self.temperature, self.regularizer_weight, self.shared_regularizer = temperature, regularizer_weight, shared_regularizer

    def project(self, images: Tensor) -> Tensor:
        """Where images are compared: unit vectors (N, 128), float32."""
        return self._unit(self.encoder(images))

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(self.projector(features).float(), dim=-1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one step; ``loss`` is what is minimised.

        Args:
            batch: uint8 images; the labels are not looked at.
        """
        if self._to_compile:
            self._compile()
        images = batch.inputs.float() / 255
        draws = generators(batch.seeds, "views")
        first, second = self.views(images, draws), self.views(images, draws)
        if self.attack is None:
            loss = self._main(self._embed(first, second))
            return {"loss": loss, "main": loss.detach()}

        adversarial = self.perturb(first, second, batch.seeds)
        # The regulariser's forward comes first: BatchNorm's running statistics depend on the order (official code).
        pair = None if self.shared_regularizer else self._embed(adversarial, second)
        z = self._embed(first, second, adversarial)
        regularizer, main = self._pair(z[1:].flip(0) if pair is None else pair, len(batch.seeds)), self._main(z)
        return {"loss": main + self.regularizer_weight * regularizer, "main": main.detach(), "regularizer": regularizer.detach()}

    def _compile(self) -> None:
        """Compile the encoder, now that it is known whether its BatchNorm goes over several GPUs."""
        self._to_compile = False
        if any(isinstance(part, nn.SyncBatchNorm) for part in self.encoder.modules()):
            # Its statistics are gathered by code that torch.compile cannot follow: what is left between are single layers.
            log.info("the network is compiled for the attack alone: BatchNorm over several GPUs would break it into pieces in training")
        else:
            self.encoder.compile(dynamic=False)

    def perturb(self, images: Tensor, target: Tensor, seeds: Sequence[int]) -> Tensor:
        """The instance-wise attack: move ``images`` away from their other view ``target`` among the images of their group (section 3.1).

        In eval mode and with detached keys, an image's gradient comes from its own row alone. So the target is encoded once, and of the loss
        only the rows of the attacked view are computed.
        """
        assert self.attack is not None
        groups = len(seeds)
        with frozen(self.encoder, self.projector):
            encoder = self.attacked.current(images)
            with torch.no_grad():
                keys = _grouped(self._unit(encoder(target)), groups)

            def loss(adversarial: Tensor) -> Tensor:
                anchors = _grouped(self._unit(encoder(adversarial)), groups)
                return nt_xent(anchors, torch.cat([anchors.detach(), keys], dim=-3), self.temperature)

            return self.attack(images, loss, generators(seeds, "attack", images.device))

    def _embed(self, *views: Tensor) -> Tensor:
        """(V, N, D), from one train-mode forward of all views."""
        return _stacked(self.project(torch.cat(views)), len(views))

    def _pair(self, z: Tensor, groups: int) -> Tensor:
        """Mean over groups of the 2-view loss of ``z`` (2, N, D) with the group's negatives."""
        z = torch.cat([_grouped(part, groups) for part in z], dim=-3)
        return nt_xent(z, z, self.temperature) / groups

    def _main(self, z: Tensor) -> Tensor:
        """The V-view loss of ``z`` (V, N, D) with the negatives of all processes."""
        keys, offset = gather_keys(z)
        return nt_xent(z, keys, self.temperature, offset)


def _stacked(z: Tensor, views: int) -> Tensor:
    """(V x N, D) -> (V, N, D)."""
    return z.view(views, len(z) // views, z.shape[-1])


def _grouped(z: Tensor, groups: int) -> Tensor:
    """(N, D) -> (groups, 1 view, N / groups, D)."""
    return z.view(groups, 1, len(z) // groups, z.shape[-1])
