"""Projected gradient ascent (Madry et al. 2018): one mechanism for attacks on labels and on instances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocl_transfer.attacks.frozen import frozen
from rocl_transfer.attacks.gate import admit
from rocl_transfer.attacks.margins import margin
from rocl_transfer.attacks.search import Attack, Network, Outcome, check_counts
from rocl_transfer.attacks.threat_models import Radius, ThreatModel, check_step, threat_model
from rocl_transfer.data import derive_seed, generators
from rocl_transfer.errors import UserError


@dataclass(frozen=True)
class GradientAscent:
    """Random start in the ball, then ``steps`` of: a step uphill, clamp to [0, 1], project to the ball.

    Args:
        threat: The ball.
        step_size: Length of a step in the ball's norm; where each image has its own radius, each may have its own length.
        steps: Number of steps.
        start: The ball that the random start is drawn from (default: ``threat``).
        projects: Whether steps are projected to the ball; without, an image may end as far outside as start and steps carry it.
        falls: Whether ``step_size`` is the first step alone: of n steps the k-th after it has 1 - k / n of its length.
    """

    threat: ThreatModel
    step_size: Radius
    steps: int
    start: ThreatModel | None = None
    projects: bool = True
    falls: bool = False

    def __call__(self, images: Tensor, loss: Callable[[Tensor], Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        """Perturb ``images`` to raise ``loss``, a scalar in which an image's gradient must not depend on perturbations outside its generator's part.

        Of what is reported sample by sample a part is one sample: its gradient must not depend on any other's perturbation.

        Args:
            images: (N, C, H, W), float32 in [0, 1].
            loss: Loss of the perturbed images; call it with the networks :func:`frozen`.
            generators: Each draws the random start of an equal part of the batch, in order: one per batch, group or sample.

        Returns:
            Adversarial images, detached, float32, in [0, 1] and, where it ``projects``, in the ball.
        """
        adversarial = (self.start or self.threat).random(images, generators).clamp_(0, 1)
        for number in range(self.steps):
            length = self.step_size * (1 - number / self.steps) if self.falls else self.step_size
            adversarial.requires_grad_(True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss(adversarial), adversarial)
            with torch.no_grad():
                stepped = (adversarial + length * self.threat.direction(gradient)).clamp_(0, 1)
                # Clamp, then project: the projection moves towards an image in [0, 1], so both hold afterwards.
                adversarial = self.threat.project(stepped, images) if self.projects else stepped
        return adversarial.detach()


def against_labels(
    ascent: GradientAscent, model: nn.Module, images: Tensor, labels: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:  # fmt: skip
    """``ascent`` of the cross-entropy of ``model``, images (N, C, H, W) -> logits (N, K), on ``labels`` (N,); see :meth:`GradientAscent.__call__`."""
    with frozen(model):
        # The sum keeps one image's gradient independent of the batch size.
        return ascent(images, lambda x: F.cross_entropy(model(x).float(), labels, reduction="sum"), generators)


class PGD(Attack):
    """The untargeted attack on a classifier's cross-entropy; the last iterate is the adversarial image.

    Args:
        epsilon: Radius in [0, 1] pixel units; a tensor (N, 1, 1, 1) gives each image its own.
        norm: linf, l2 or l1.
        step_size: Length of a step (default: epsilon / 10, the RoCL paper's test attack).
        steps: Gradient steps.
        restarts: Searches that :meth:`search` makes of an image, each from its own random start.

    Raises:
        UserError: There is no such norm, the radius is not above 0 or no radius of it, steps or restarts are too few, or a step leads nowhere.
    """

    def __init__(self, epsilon: Radius, *, norm: str = "linf", step_size: Radius | None = None, steps: int = 20, restarts: int = 1) -> None:
        self.epsilon, self.steps, self.norm, self.restarts = epsilon, steps, norm, restarts
        self.step_size = epsilon / 10 if step_size is None else step_size
        self.ascent = GradientAscent(threat_model(norm, epsilon), self.step_size, steps)
        check_counts("PGD", restarts=restarts)
        check_counts("PGD", 0, steps=steps)
        if steps:
            check_step(norm, self.step_size)

    @torch.inference_mode(False)
    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:  # fmt: skip
        """Adversarial images for ``model``.

        Args:
            model: Images (N, C, H, W) in [0, 1] -> logits (N, K). Attacked in eval mode with frozen parameters and left as it came in.
            images: (N, C, H, W), floats in [0, 1]; never written into.
            labels: (N,), whole numbers.
            generators: See :meth:`GradientAscent.__call__` (default: one, seeded from torch's global generator).

        Returns:
            (N, C, H, W), float32, on the model's device.

        Raises:
            UserError: The images are no floats in [0, 1], the labels are not the model's classes, the model gives no logits (N, K), or radii or
                generators do not fit the number of images.
        """
        model, images, labels = admit(model, images, labels)
        if isinstance(self.epsilon, Tensor) and self.epsilon.ndim and self.epsilon.shape != (len(images), 1, 1, 1):
            raise UserError(f"epsilon has the shape {tuple(self.epsilon.shape)}: give one radius, or one per image as ({len(images)}, 1, 1, 1)")
        if generators is None:
            generators = [torch.Generator(images.device).manual_seed(int(torch.randint(2**31, ())))]
        if not generators or len(images) % len(generators):
            raise UserError(f"{len(generators)} generators do not share {len(images)} images: give one, or one for each equal part of the batch")
        return self.perturb(model, images, labels, generators)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The same without a look at the pixels, for which the host has to wait."""
        return against_labels(self.ascent, model, images, labels, generators)

    @property
    def name(self) -> str:
        """See :class:`Attack`."""
        return f"pgd-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def runs(self) -> int:
        """See :class:`Attack`."""
        return self.restarts

    @property
    def passes(self) -> tuple[int, int]:
        """See :class:`Attack`."""
        return 1, self.steps

    def conditions(self) -> dict[str, Any]:
        """See :class:`Attack`."""
        return {"steps": self.steps, "step_size": self.step_size, "restarts": self.restarts}

    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """See :class:`Attack`; as in the literature, the last point counts, whatever lay on the way."""
        outcome = Outcome(images)
        pairs = zip(seeds.tolist(), runs.tolist(), strict=True)
        starts = generators([derive_seed(seed, run) if run else seed for seed, run in pairs], "attack", images.device)
        adversarial = self.ascent(images, lambda x: F.cross_entropy(network(x), labels, reduction="sum"), starts)
        outcome.note(torch.arange(len(images), device=images.device), adversarial, margin(network(adversarial), labels))
        return outcome
