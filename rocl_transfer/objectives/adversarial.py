"""Supervised fine-tuning, plain or against an adversary: PGD-AT, TRADES, MART; with RoCL's self-supervised loss beside it if wanted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rocl_transfer.attacks import AttackOptions, frozen, share_of_radius
from rocl_transfer.data import Augmentation, Batch, generators, light_views
from rocl_transfer.models import Folded, PixelModel
from rocl_transfer.objectives.contrastive import gather_keys, nt_xent
from rocl_transfer.objectives.objective import Objective, ObjectiveOptions, Views, running_average
from rocl_transfer.objectives.robust_losses import accuracy, class_weights, divergence, mart, trades
from rocl_transfer.objectives.weight_perturbation import Predict, perturbed
from rocl_transfer.options import Number, require, require_untouched, was_given

BETA = {"trades": 6.0, "mart": 5.0}
TITLES = {
    "standard": "standard training, without an adversary (the control)", "at": "adversarial training (PGD-AT)", "trades": "TRADES", "mart": "MART",
}  # fmt: skip


class ContrastiveTerm(nn.Module):
    """RoCL's self-supervised loss beside a supervised one (section 3.2, "+ SS"): an adversarial image and another view of the *same* image attract.

    Args:
        projector: Features -> the space in which images are compared.
        views: Draws the other view.
        weight: Weight of this loss.
        temperature: Temperature of the softmax over similarities.
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
        options: See :class:`AdversarialTraining.Options`.
        counts: Training images of each class, (K,); needed where classes are to be balanced.
        projector: Features -> the space of the self-supervised loss; needed where that has a weight.
        robust_start: Whether the classifier resists the attack already, so that the radius need not grow unless told to.
    """

    weights: Tensor | None

    @dataclass(frozen=True, kw_only=True)
    class Options(ObjectiveOptions):
        """Supervised training, plain or against an adversary.

        Args:
            method: at (PGD adversarial training), trades, mart, or standard (no adversary: the control).
            attack: What is trained against; with standard only measured against.
            beta: Weight of the robust term of trades (default: 6) and mart (default: 5).
            label_smoothing: Label smoothing of the cross-entropy.
            class_balanced: Weigh classes by the effective number of their images.
            ss_weight: Weight of RoCL's self-supervised loss between an adversarial image and another view of it; 0 for none.
            ss_views: How that other view is drawn.
            awp_gamma: Adversarial weight perturbation as a share of each weight's norm (0.005 in its paper); 0 for none.
            ema_decay: Decay of an exponential moving average (EMA) of the weights, which is measured and exported (0.999, say); 0 for none.
            batchnorm: train, or frozen: running statistics stay as they came.
            ramp: Shares of the training with epsilon 0, and after which it is whole, linear between (default: [0, 0] where the start is robust, else
                [0.1, 0.5]).
            augmentation: How the view that is trained on is drawn.
        """

        method: Literal["standard", "at", "trades", "mart"] = "trades"
        attack: AttackOptions = AttackOptions(epsilon=Number(8 / 255), steps=10)
        beta: Number | None = None
        label_smoothing: Number = Number(0)
        class_balanced: bool = False
        ss_weight: Number = Number(0)
        ss_views: Augmentation = Augmentation()
        awp_gamma: Number = Number(0)
        ema_decay: Number = Number(0)
        batchnorm: Literal["train", "frozen"] = "train"
        ramp: tuple[Number, Number] | None = None
        augmentation: Augmentation = light_views()

        def __post_init__(self) -> None:
            require(0 <= self.label_smoothing < 1, f"--label_smoothing is {self.label_smoothing}: give a share in [0, 1)")
            require(0 <= self.ema_decay < 1, f"--ema_decay is {self.ema_decay}: give a factor in [0, 1), such as 0.999")
            for name in ("ss_weight", "awp_gamma", "beta"):
                value = getattr(self, name)
                require(value is None or 0 <= value < math.inf, f"--{name} is {value}: give 0 or more")
            if self.ramp is not None:
                in_order = 0 <= self.ramp[0] <= self.ramp[1] <= 1
                require(in_order, f"--ramp is {list(self.ramp)}: give two rising shares of the training in [0, 1], such as [0.1, 0.5]")
            if self.beta is not None:
                require(self.method in BETA, f"--beta has no effect with --method {self.method}: leave it out")
            if not self.ss_weight:
                require_untouched(self, ("ss_views",), "without --ss_weight")
            if self.method == "standard":
                require_untouched(self, ("ramp", "awp_gamma"), "with --method standard, which has no adversary")
                untaught = self.attack.kind == "pgd" and self.attack.first_steps is None
                require(untaught, "--attack.kind and --attack.first_steps have no effect with --method standard: leave them out")
            given = self.attack.norm != "l2" or was_given(self.attack.epsilon, AdversarialTraining.Options.attack.epsilon)
            require(given, "the default --attack.epsilon 8/255 is meant for linf: give a radius with l2, such as 0.5 at 32 px")

        @property
        def title(self) -> str:
            """The card's words."""
            against = f" against {self.attack.words}" if self.method != "standard" else ""
            return f"fine-tuned by {TITLES[self.method]}{against}"

    def __init__(
        self,
        classifier: PixelModel,
        options: Options,
        *,
        counts: Tensor | None = None,
        projector: nn.Module | None = None,
        robust_start: bool = True,
    ) -> None:
        super().__init__()
        self.classifier, self.method, self.augmentation = classifier, options.method, options.augmentation
        self.attack = None if options.method == "standard" else options.attack
        self.ramp = options.ramp or ((0.0, 0.0) if robust_start else (0.1, 0.5))
        self.title, self.attacked = options.title, Folded(classifier)
        self.beta = BETA.get(options.method, 0.0) if options.beta is None else options.beta
        self.label_smoothing, self.batchnorm, self.awp_gamma = options.label_smoothing, options.batchnorm, options.awp_gamma
        self.contrast = None if projector is None else ContrastiveTerm(projector, options.ss_views, options.ss_weight)
        assert (self.contrast is not None) == bool(options.ss_weight), "a projector goes with ss_weight"
        assert (counts is not None) or not options.class_balanced, "class_balanced needs counts"
        self.average = running_average(classifier, options.ema_decay)
        self.register_buffer("weights", class_weights(counts) if counts is not None and options.class_balanced else None, persistent=False)
        self.step, self.scale, self.progress = 0, 1.0, 1.0

    @property
    def exported(self) -> PixelModel:
        """The classifier, or its EMA if there is one."""
        return self.classifier if self.average is None else self.average.module

    def facts(self) -> dict[str, Any]:
        """Method, what became of BatchNorm's statistics, and how the radius grew."""
        ramp = None if self.attack is None else self.ramp
        return {**super().facts(), "method": self.method, "batchnorm": self.train().batchnorm_statistics, "ramp": ramp}

    def train(self, mode: bool = True) -> Self:
        """BatchNorm keeps its statistics where they are frozen, or where the layer itself is not trained; the EMA is never in train mode."""
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
        """The radius follows the ramp, and the steps of an attack grow where they are to."""
        self.progress = step / total
        self.step, self.scale = step, 1.0 if self.attack is None else share_of_radius(self.ramp, step / total)

    def end_step(self) -> None:
        """The EMA follows the weights, at first closely: its decay starts at 0 and rises to the one asked for."""
        if self.average is not None:
            self.average.update(self.classifier, self.step + 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one step; ``accuracy`` is that on the clean views, ``robust_accuracy`` that on the adversarial ones, if they are seen.

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
        """The images that the adversary makes of ``images``; themselves if there is none, or while its radius is 0."""
        if self.attack is None or not self.scale:
            return images
        with frozen(self.classifier):
            network = self.attacked.current(images)
            with torch.no_grad():
                clean = network(images).float() if self.method == "trades" else None

            def loss(adversarial: Tensor) -> Tensor:
                logits = network(adversarial).float()
                return F.cross_entropy(logits, labels, reduction="sum") if clean is None else divergence(clean, logits).sum()

            return self.attack.ascent(self.scale, self.progress)(images, loss, generators(seeds, "attack", images.device))

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
