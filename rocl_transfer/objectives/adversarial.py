"""Supervised fine-tuning, plain or against an adversary: PGD-AT, TRADES, MART; with RoCL's self-supervised loss beside it if wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rocl_transfer.attacks import Ascent, frozen, threat_model
from rocl_transfer.data import Batch, generators
from rocl_transfer.models import Folded, PixelModel
from rocl_transfer.objectives.contrastive import gather_keys, nt_xent
from rocl_transfer.objectives.objective import Objective
from rocl_transfer.objectives.robust_losses import accuracy, divergence, mart, trades
from rocl_transfer.objectives.weight_perturbation import Predict, perturbed

Views = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
BETA = {"trades": 6.0, "mart": 5.0}


@dataclass(frozen=True)
class Adversary:
    """The attack trained against, and how its radius grows.

    Args:
        norm: linf or l2.
        epsilon: Radius in [0, 1] pixel units.
        step_size: Length of a step.
        steps: Number of steps.
        ramp: Shares of the training with radius 0, and after which the radius is whole; linear between them.
    """

    norm: str
    epsilon: float
    step_size: float
    steps: int
    ramp: tuple[float, float] = (0.0, 0.0)

    def scale(self, progress: float) -> float:
        """The share of the radius in force when ``progress`` of the training is done."""
        start, full = self.ramp
        if progress >= full:
            return 1.0
        return 0.0 if progress <= start else (progress - start) / (full - start)

    def ascent(self, scale: float) -> Ascent:
        """The attack with its radius and step scaled."""
        return Ascent(threat_model(self.norm, self.epsilon * scale), self.step_size * scale, self.steps)


class Contrast(nn.Module):
    """RoCL's self-supervised loss beside a supervised one (section 3.2, "+ SS"): an adversarial image and another view of the *same* image attract.

    Args:
        projector: Features -> the space in which images are compared.
        views: Draws the other view.
        weight: Of this loss.
        temperature: Of the softmax over similarities.
    """

    def __init__(self, projector: nn.Module, views: Views, weight: float, temperature: float = 0.5) -> None:
        super().__init__()
        self.projector, self.views, self.weight, self.temperature = projector, views, weight, temperature

    def forward(self, encode: Callable[[Tensor], Tensor], adversarial: Tensor, images: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """The 2-view NT-Xent with the negatives of all processes, unweighted."""
        features = encode(torch.cat([adversarial, self.views(images, draws)]))
        z = F.normalize(self.projector(features).float(), dim=-1).unflatten(0, (2, -1))
        keys, offset = gather_keys(z)
        return nt_xent(z, keys, self.temperature, offset)


class AdversarialTraining(Objective):
    """A classifier trained on images as they are (``standard``), on adversarial images (``at``), or on both (``trades``, ``mart``).

    Attacks see the network in eval mode, losses in train mode. TRADES' adversary climbs the divergence from the clean answer and the others the
    cross-entropy; all of them start anywhere in the ball (TRADES' own code starts at the image plus a thousandth of Gaussian noise).

    Args:
        classifier: What is trained; :func:`rocl_transfer.models.select_trainable` says which part of it.
        method: standard, at, trades or mart.
        adversary: None with ``standard``.
        augmentation: Draws the view of each image that is trained on.
        beta: Weight of the robust term of ``trades`` and ``mart`` (default: the papers').
        label_smoothing: Of the cross-entropy.
        weights: One a class, (K,), for unbalanced classes.
        batchnorm: train, or frozen: running statistics as they came.
        awp_gamma: Adversarial weight perturbation, as a share of each weight's norm; 0 for none.
        ema_decay: The classifier that is measured and exported is a running average of the weights; 0 for none.
        contrast: RoCL's self-supervised loss beside the supervised one.
    """

    weights: Tensor | None

    def __init__(
        self,
        classifier: PixelModel,
        method: str,
        adversary: Adversary | None,
        augmentation: Views,
        *,
        beta: float | None = None,
        label_smoothing: float = 0.0,
        weights: Tensor | None = None,
        batchnorm: str = "train",
        awp_gamma: float = 0.0,
        ema_decay: float = 0.0,
        contrast: Contrast | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.method, self.adversary, self.augmentation = classifier, method, adversary, augmentation
        self.attacked = Folded(classifier)
        self.beta = BETA.get(method, 0.0) if beta is None else beta
        self.label_smoothing, self.batchnorm, self.awp_gamma, self.contrast = label_smoothing, batchnorm, awp_gamma, contrast
        self.average = ModelEmaV3(classifier, ema_decay, use_warmup=True).requires_grad_(False) if ema_decay else None
        self.register_buffer("weights", weights, persistent=False)
        self.step, self.scale = 0, 1.0

    @property
    def deployed(self) -> PixelModel:
        """The classifier that is measured and exported: the running average where there is one."""
        return self.classifier if self.average is None else self.average.module

    def train(self, mode: bool = True) -> Self:
        """BatchNorm keeps its statistics where they are frozen, or where the layer itself is not trained; the average is never in train mode."""
        super().train(mode)
        for module in self.classifier.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and (self.batchnorm == "frozen" or (own and not any(p.requires_grad for p in own))):
                module.eval()
        if self.average is not None:
            self.average.eval()
        return self

    @property
    def batchnorm_statistics(self) -> str | None:
        """Which of BatchNorm's running statistics follow the training images: train (all), partly, frozen (none); None without BatchNorm."""
        modes = {module.training for module in self.classifier.modules() if isinstance(module, _BatchNorm)}
        return {frozenset([True]): "train", frozenset([False]): "frozen", frozenset([True, False]): "partly"}.get(frozenset(modes))

    def begin_step(self, step: int, total: int) -> None:
        """The radius follows the ramp."""
        self.step, self.scale = step, 1.0 if self.adversary is None else self.adversary.scale(step / total)

    def end_step(self) -> None:
        """The average follows the weights, at first closely: its decay starts at 0 and rises to the one asked for."""
        if self.average is not None:
            self.average.update(self.classifier, self.step + 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one step; ``accuracy`` is that on the clean views, ``robust_accuracy`` that on the adversarial ones, where they are seen.

        Args:
            batch: uint8 images and labels.
        """
        assert batch.labels is not None
        labels, pixels = batch.labels, batch.inputs.float() / 255
        images = self.augmentation(pixels, generators(batch.seeds, "views"))
        adversarial = self.perturb(images, labels, batch.seeds)
        terms = partial(self._terms, images=images, adversarial=adversarial, labels=labels)
        predict: Predict = self.classifier
        if self.awp_gamma and self.scale:
            predict = perturbed(self.classifier, lambda function: terms(function)["loss"], self.awp_gamma)
        values = terms(predict)
        if self.contrast is None:
            return values
        similar = self.contrast(self.classifier.features, adversarial, pixels, generators(batch.seeds, "second view"))
        return {**values, "loss": values["loss"] + self.contrast.weight * similar, "contrastive": similar.detach()}

    def perturb(self, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """The images that the adversary makes of ``images``; themselves where there is none, or while its radius is 0."""
        if self.adversary is None or not self.scale:
            return images
        with frozen(self.classifier):
            network = self.attacked.current(images)
            with torch.no_grad():
                clean = network(images).float() if self.method == "trades" else None

            def loss(adversarial: Tensor) -> Tensor:
                logits = network(adversarial).float()
                return F.cross_entropy(logits, labels, reduction="sum") if clean is None else divergence(clean, logits).sum()

            return self.adversary.ascent(self.scale)(images, loss, generators(seeds, "attack", images.device))

    def _terms(self, predict: Predict, images: Tensor, adversarial: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted mean of the method's loss, and what is logged beside it."""
        logits = predict(adversarial).float()
        seen = "accuracy" if self.method == "standard" else "robust_accuracy"
        measured = {seen: accuracy(logits, labels)}
        if self.method in ("standard", "at"):
            loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        else:
            clean = predict(images).float()
            loss = (trades if self.method == "trades" else mart)(clean, logits, labels, self.beta, self.label_smoothing)
            measured["accuracy"] = accuracy(clean, labels)
        if self.weights is not None:
            loss = loss * self.weights[labels]
        return {"loss": loss.mean(), **measured}
