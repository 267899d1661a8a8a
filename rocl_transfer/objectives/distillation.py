"""Robust without labels: a network is distilled into its own robust twin, whose embedding of a perturbed image is the teacher's of the clean one.

FARE (Schlarmann et al. 2024), DeACL (Zhang et al. 2022), LORE (2025) and Sim-CLIP (Hossain, Imteaj 2024) differ in distance and target. At the start
the student is the teacher, so the gradient of their distance at the image itself is zero: every attack here starts at random in the ball.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rocl_transfer.attacks import AttackOptions, frozen, share_of_radius
from rocl_transfer.data import Batch, generators
from rocl_transfer.models import Folded, PixelModel, without_dropout
from rocl_transfer.objectives.objective import Objective, ObjectiveOptions, Views, running_average
from rocl_transfer.options import Number, require, require_untouched, was_given

Embedding = tuple[Tensor, ...]  # the pooled features (N, D) and, where they are matched too, the tokens (N, T, D)
TITLES = {
    "fare": "FARE (squared distance to the teacher's embedding of the clean image)",
    "deacl": "DeACL (cosine: clean images to the teacher, adversarial ones to the student's own clean embedding)",
    "lore": "LORE (FARE under a constraint on the embedding of clean images)",
    "simclip": "Sim-CLIP (cosine to the teacher's embedding of the clean image)",
}
SQUARED = ("fare", "lore")  # the others compare by cosine


class Embedder(nn.Module):
    """What is matched of a network, as a module that attacks can climb on.

    Args:
        model: A backbone or a classifier, whose head plays no part.
        tokens: Whether its patch tokens, or the places of its last map, are matched beside the pooled features.
    """

    def __init__(self, model: PixelModel, tokens: bool = False) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, images: Tensor) -> Embedding:
        """The pooled features (N, D) that ``load_backbone`` gives, and the tokens (N, T, D)."""
        if not self.tokens:
            return (self.model.features(images).float(),)
        maps, pooled = self.model.maps_and_features(images)
        tokens = maps.flatten(2).transpose(1, 2) if maps.dim() == 4 else maps
        return pooled.float(), tokens.float()


class _Pooled(nn.Module):
    """The pooled features as one tensor, which is what can be traced and folded."""

    def __init__(self, model: PixelModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


def squared(found: Embedding, target: Embedding) -> Tensor:
    """Squared length of the difference of each image, (N,): summed over dimensions, averaged over tokens."""
    return _total([(a - b).square().sum(-1) for a, b in zip(found, target, strict=True)])


def cosine(found: Embedding, target: Embedding) -> Tensor:
    """One minus the cosine of each image, (N,), averaged over tokens."""
    return _total([1 - F.cosine_similarity(a, b, dim=-1) for a, b in zip(found, target, strict=True)])


def _total(parts: Sequence[Tensor]) -> Tensor:
    return sum((part if part.dim() == 1 else part.mean(1) for part in parts[1:]), parts[0])


class Distillation(Objective):
    """A student that is to stand where its frozen teacher stands, whatever an adversary does to the image.

    Clean and adversarial images of a network with BatchNorm go through it in one forward in train mode: with frozen statistics it hardly learns (6 %
    against 44 % on digits). Dropout and stochastic depth are off.

    Args:
        student: Trained in place: a backbone, or a classifier whose head stays as it is.
        teacher: Frozen; by default what the student is at the start.
        views: Draws the one view of an image that both see.
        options: See :class:`Distillation.Options`.
        scale: Mean squared length of the teacher's embedding. Squared distances are divided by it, so that a learning rate, a clipped gradient and a
            logged loss mean the same for every backbone: that length differs by orders of magnitude.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ObjectiveOptions):
        """How a student follows its teacher.

        Args:
            method: fare (squared distance to the teacher), deacl (cosine, adversarial images to the student's clean ones), lore (fare under a
                constraint on clean images), or simclip (cosine to the teacher).
            attack: What is trained against.
            match: pooled (the features that a head sees), or tokens (patch tokens as well, for dense uses).
            clean_weight: With fare and simclip, the share of the loss that clean images have.
            rho: With lore, how far clean embeddings may move: the square of the share of their length.
            dual_lr: With lore, the learning rate of the network that weighs the constraint.
            ramp: Shares of the training with epsilon 0, and after which it is whole, linear between.
            ema_decay: Decay of an exponential moving average (EMA) of the weights, which is measured and exported (0.999, say); 0 for none.
        """

        method: Literal["fare", "deacl", "lore", "simclip"] = "fare"
        attack: AttackOptions = AttackOptions(epsilon=Number(4 / 255), steps=5)
        match: Literal["pooled", "tokens"] = "pooled"
        clean_weight: Number = Number(0)
        rho: Number = Number(0.1)
        dual_lr: Number = Number(5e-4)
        ramp: tuple[Number, Number] = (Number(0), Number(0))
        ema_decay: Number = Number(0)

        def __post_init__(self) -> None:
            require(0 <= self.clean_weight < 1, f"--clean_weight is {self.clean_weight}: give a share in [0, 1)")
            require(self.rho > 0, f"--rho is {self.rho}: give a number above 0")
            require(self.dual_lr > 0, f"--dual_lr is {self.dual_lr}: give a number above 0")
            require(0 <= self.ema_decay < 1, f"--ema_decay is {self.ema_decay}: give a factor in [0, 1), such as 0.999")
            in_order = 0 <= self.ramp[0] <= self.ramp[1] <= 1
            require(in_order, f"--ramp is {list(self.ramp)}: give two rising shares of the training in [0, 1], such as [0.1, 0.5]")
            if self.method not in ("fare", "simclip"):
                require_untouched(self, ("clean_weight",), f"with --method {self.method}")
            if self.method != "lore":
                require_untouched(self, ("rho", "dual_lr"), f"with --method {self.method}")
            given = self.attack.norm != "l2" or was_given(self.attack.epsilon, Distillation.Options.attack.epsilon)
            require(given, "the default --attack.epsilon 4/255 is meant for linf: give a radius with l2, such as 0.5 at 32 px")

        @property
        def title(self) -> str:
            """The card's words."""
            return f"made robust without labels by {TITLES[self.method]} against {self.attack.words}"

    def __init__(self, student: PixelModel, teacher: PixelModel, views: Views, options: Options | None = None, scale: float = 1.0) -> None:
        options = options or self.Options()
        super().__init__(teacher)
        self.student, self.views, self.options, self.scale, self.title = student, views, options, scale, options.title
        for model in (student, teacher):
            without_dropout(model)
        tokens = options.match == "tokens"
        self.embed_teacher, self.embed_student = (_unregistered(Embedder(model, tokens)) for model in (teacher, student))
        self.attacked = None if tokens else Folded(_Pooled(student))
        self.normalizes = any(isinstance(module, _BatchNorm) for module in student.modules())
        self.distance = squared if options.method in SQUARED else cosine
        self.bridge = None if student.num_features == teacher.num_features else nn.Linear(student.num_features, teacher.num_features)
        self.dual = _dual(teacher.num_features) if options.method == "lore" else None
        self.average = running_average(student, options.ema_decay)
        self.step, self.share, self.progress = 0, 1.0, 1.0

    @property
    def exported(self) -> PixelModel:
        """The student, or its EMA if there is one."""
        return self.student if self.average is None else self.average.module

    def train(self, mode: bool = True) -> Self:
        """The EMA is never in train mode; nor is BatchNorm that is not trained."""
        super().train(mode)
        for module in self.student.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and own and not any(p.requires_grad for p in own):
                module.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def own_rates(self) -> dict[nn.Module, float]:
        """The dual network learns at a rate of its own."""
        return {} if self.dual is None else {self.dual: self.options.dual_lr}

    def facts(self) -> dict[str, Any]:
        """Method, what is matched by which distance, and what becomes of BatchNorm."""
        return {
            **super().facts(),
            "method": self.options.method,
            "matched": "pooled features and tokens" if self.options.match == "tokens" else "pooled features",
            "distance": "squared L2" if self.distance is squared else "cosine",
            **({"rho": float(self.options.rho)} if self.dual is not None else {}),
            **({"batchnorm": "train, clean and adversarial images in one forward"} if self.normalizes else {}),
            **({"ramp": list(self.options.ramp)} if self.options.ramp[1] else {}),
        }

    def begin_step(self, step: int, total: int) -> None:
        """The radius follows the ramp, and the steps of an attack grow where they are to."""
        self.progress = step / total
        self.step, self.share = step, share_of_radius(self.options.ramp, step / total)

    def end_step(self) -> None:
        """The EMA follows the weights, at first closely."""
        if self.average is not None:
            self.average.update(self.student, self.step + 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one step; ``drift`` is how far clean embeddings are from the teacher's, as a share of their squared length.

        Args:
            batch: uint8 images; the labels are not used.
        """
        images = self.views(batch.inputs.float() / 255, generators(batch.seeds, "views"))
        with torch.no_grad():
            target = self.embed_teacher.module(images)
        adversarial = self.perturb(images, target, batch.seeds)
        needs_clean = self.normalizes or self.dual is not None or self.options.method == "deacl" or self.options.clean_weight > 0
        clean = None
        if needs_clean:
            both = self.embed(torch.cat([images, adversarial]))
            clean, moved = (tuple(part.chunk(2)[half] for part in both) for half in (0, 1))
        else:
            moved = self.embed(adversarial)
        return self.losses(clean, moved, target)

    def embed(self, images: Tensor) -> Embedding:
        """The student's embedding, where the teacher's is."""
        found: Embedding = self.embed_student.module(images)
        return found if self.bridge is None else (self.bridge(found[0]), *found[1:])

    def losses(self, clean: Embedding | None, adversarial: Embedding, target: Embedding) -> dict[str, Tensor]:
        """The method's loss from embeddings of clean and adversarial images and the teacher's of the clean ones.

        Args:
            clean: The student's of clean images; None if the method needs none.
            adversarial: The student's of adversarial images.
            target: The teacher's of clean images.
        """
        method, weight = self.options.method, self.options.clean_weight
        if method == "deacl":
            assert clean is not None
            near, far = cosine(clean, target).mean(), cosine(adversarial, clean).mean()
            return {"loss": near + 2 * far, "drift": near.detach(), "adversarial": far.detach()}
        unit = self.scale if self.distance is squared else 1.0
        far = self.distance(adversarial, target).mean() / unit
        if clean is None:
            return {"loss": far, "adversarial": far.detach()}
        near = self.distance(clean, target) / unit
        values = {"drift": near.detach().mean(), "adversarial": far.detach()}
        if self.dual is None:
            return {"loss": (1 - weight) * far + weight * near.mean() if weight else far, **values}
        # Its own network climbs the constraint that the student descends: the second product has the value 0 and the dual's gradient alone.
        constraint = near - self.options.rho * squared(target, tuple(torch.zeros_like(part) for part in target)) / unit
        weighs = F.softplus(self.dual(target[0] / self.scale**0.5).squeeze(1))
        held = (weighs.detach() * constraint).mean() - ((weighs - weighs.detach()) * constraint.detach()).mean()
        return {"loss": far + held, **values, "constraint": constraint.detach().mean(), "lambda": weighs.detach().mean()}

    def perturb(self, images: Tensor, target: Embedding, seeds: Sequence[int]) -> Tensor:
        """Move ``images`` so that their embedding is far from the teacher's ``target``, from a random start; themselves while the radius is 0.

        In eval mode an image's gradient comes from its own distance alone.
        """
        if not self.share:
            return images
        with frozen(self.student, *([] if self.bridge is None else [self.bridge])):
            network: Callable[[Tensor], Any] = self.embed_student.module if self.attacked is None else self.attacked.current(images)

            def loss(adversarial: Tensor) -> Tensor:
                found = network(adversarial)
                pooled: Embedding = found if isinstance(found, tuple) else (found.float(),)
                return self.distance(pooled if self.bridge is None else (self.bridge(pooled[0]), *pooled[1:]), target).sum()

            return self.options.attack.ascent(self.share, self.progress)(images, loss, generators(seeds, "attack", images.device))


@dataclass(frozen=True)
class _Held:
    module: nn.Module


def _unregistered(module: nn.Module) -> _Held:
    """``module`` without making it a part of the objective: its networks are there already, or are not to be."""
    return _Held(module)


def _dual(width: int) -> nn.Sequential:
    """LORE's network for the weight of each image's constraint: (N, D) -> (N, 1), made positive by softplus."""
    return nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 1))
