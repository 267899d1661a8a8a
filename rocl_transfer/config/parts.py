"""The parts that recipes' configurations are made of.

A part checks itself as soon as it is built, so a wrong or ineffective option ends a recipe before any data, model or device is touched.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

import timm.optim

from rocl_transfer.config.checks import require, require_sha256, require_untouched
from rocl_transfer.config.number import Number
from rocl_transfer.errors import did_you_mean

Range = tuple[Number, Number]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network.

    Args:
        name: A timm name (ours: resnet8_cifar, 18, 34, 50 and, thinner, 20, 32, 44, 56, 110), a run folder, ``hf-hub:USER/NAME`` or
            ``local-dir:FOLDER``.
        pretrained: For a timm name, start from its published weights (default: no in pre-training, yes in adaptation where it has any).
        sha256: What the weights file of an exported model must have; another one is refused.
    """

    name: str
    pretrained: bool | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.name), "--model.name is empty: give a timm name, a run folder or hf-hub:USER/NAME")
        require_sha256(self.sha256)


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How a view of an image is drawn; the defaults are RoCL's at 32 px (section 4 and official code). Views are a property of the data.

    Args:
        brightness: Range of the brightness factor.
        contrast: Range of the contrast factor.
        saturation: Range of the saturation factor.
        hue: Range of the hue shift in turns.
        jitter_probability: Share of views whose colours are jittered.
        grey_probability: Share of views turned grey.
        flip_probability: Share of views mirrored left to right.
        crop_area: Range of the random resized crop's area as a share of the image; ``[1, 1]`` for no crop.
        crop_aspect: Range of the crop's width over height.
        rotation: Range of the rotation in degrees, counter-clockwise.
        scale: Range of the zoom factor.
        shift: Largest shift as a share of the side, in each direction.
    """

    brightness: Range = (Number(0.6), Number(1.4))
    contrast: Range = (Number(0.6), Number(1.4))
    saturation: Range = (Number(0.6), Number(1.4))
    hue: Range = (Number(-0.1), Number(0.1))
    jitter_probability: Number = Number(0.8)
    grey_probability: Number = Number(0.2)
    flip_probability: Number = Number(0.5)
    crop_area: Range = (Number(0.08), Number(1))
    crop_aspect: Range = (Number(3 / 4), Number(4 / 3))
    rotation: Range = (Number(0), Number(0))
    scale: Range = (Number(1), Number(1))
    shift: Number = Number(0)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, tuple):
                require(value[0] <= value[1], f"a view's {option.name} is {list(value)}: give the smaller number first")
            if option.name.endswith("probability"):
                require(0 <= value <= 1, f"a view's {option.name} is {value}: give a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "crop_aspect", "scale"):
            require(getattr(self, name)[0] >= 0, f"a view's {name} is {list(getattr(self, name))}: give factors of 0 or more")
        for name in ("crop_aspect", "scale"):
            require(getattr(self, name)[0] > 0, f"a view's {name} is {list(getattr(self, name))}: give factors above 0")
        require(self.hue[0] >= -0.5 and self.hue[1] <= 0.5, f"a view's hue is {list(self.hue)}: give turns in [-0.5, 0.5]")
        require(self.crop_area[0] > 0 and self.crop_area[1] <= 1, f"a view's crop_area is {list(self.crop_area)}: give shares in (0, 1]")
        require(0 <= self.shift < 1, f"a view's shift is {self.shift}: give a share of the side in [0, 1)")
        if self.crop_area == (Number(1), Number(1)):
            require_untouched(self, ("crop_aspect",), "without a crop (crop_area [1, 1])", "views.")


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The attack trained against, in [0, 1] pixel units. The defaults are RoCL's.

    Args:
        norm: Ball: linf or l2.
        epsilon: Radius, a number or a fraction such as 8/255.
        step_size: Length of a step (default: RoCL's share of the radius, 0.007 / 0.0314 of it).
        steps: Number of gradient steps.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: Number = Number(0.0314)
    step_size: Number | None = None
    steps: int = 7

    def __post_init__(self) -> None:
        require(math.isfinite(self.epsilon) and self.epsilon > 0, f"an attack's epsilon is {self.epsilon}: give a radius above 0, such as 8/255")
        require(
            self.norm != "linf" or self.epsilon <= 1,
            f"an attack's epsilon is {self.epsilon}: pixels are in [0, 1], so write 8/255 rather than 8",
        )
        given = self.norm != "l2" or self.epsilon != AttackConfig.epsilon
        require(given, "the default epsilon 0.0314 is meant for linf: give a radius with l2, such as 0.5 at 32 px")
        require(self.step_size is None or self.step_size > 0, f"an attack's step_size is {self.step_size}: give a length above 0")
        require(self.steps > 0, f"an attack's steps is {self.steps}: give 1 or more")

    @property
    def step(self) -> float:
        """The step size in force; not resolved in place, so that an override of epsilon alone also moves the step."""
        return self.step_size if self.step_size is not None else round(self.epsilon * 0.007 / 0.0314, 9)


@dataclass(frozen=True, kw_only=True)
class RoCLConfig:
    """The pre-training objective.

    Args:
        method: rocl, or simclr (the same without the attack: the control).
        attack: The instance-wise attack.
        temperature: Of the softmax over similarities.
        regularizer_weight: Weight of the contrastive loss of the adversarial pair alone.
        shared_regularizer: Take that loss from the main loss's forward pass: a fifth less work, and not quite the paper's function.
        group_size: Images that are each other's negatives in the attack and the regulariser (default: the batch of one process, or what is computed
            of it at once).
        compile: Have torch.compile make kernels of the backbone, in training and in the attack; the first steps take minutes.
    """

    method: Literal["rocl", "simclr"] = "rocl"
    attack: AttackConfig = field(default_factory=AttackConfig)
    temperature: Number = Number(0.5)
    regularizer_weight: Number = Number(1 / 256)
    shared_regularizer: bool = False
    group_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"--objective.temperature is {self.temperature}: give a number above 0")
        require(self.regularizer_weight >= 0, f"--objective.regularizer_weight is {self.regularizer_weight}: give 0 or more")
        if self.method == "simclr":
            adversarial = ("attack", "regularizer_weight", "shared_regularizer")
            require_untouched(self, adversarial, "with --objective.method simclr, which has no attack", "objective.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning rate; constant within an epoch.

    Args:
        name: timm's name of an optimiser: lars, momentum (SGD), adamw, ... (timm's ``sgd`` is Nesterov's).
        lr: Peak learning rate.
        weight_decay: On every parameter, biases and norms included, as in the paper.
        momentum: For the optimisers that have one.
        schedule: cosine (after the warm-up), or steps (times 0.1 at each milestone).
        warmup_epochs: Epochs of linear warm-up from ``warmup_lr``.
        warmup_lr: Where the warm-up starts.
        milestones: Shares of all epochs after which ``steps`` lowers the rate.
    """

    name: str = "lars"
    lr: Number = Number(1.5)
    weight_decay: Number = Number(1e-6)
    momentum: Number = Number(0.9)
    schedule: Literal["cosine", "steps"] = "cosine"
    warmup_epochs: int = 10
    warmup_lr: Number = Number(0.1)
    milestones: tuple[Number, ...] = (Number(1 / 5), Number(1 / 3), Number(2 / 3))

    def __post_init__(self) -> None:
        known = timm.optim.list_optimizers()
        require(self.name in known, f"--optimizer.name {self.name} is none of timm's optimisers{did_you_mean(self.name, known)}")
        special = self.name.startswith(("adahessian", "bnb", "fused", "kron"))
        require(not special, f"--optimizer.name {self.name} needs more than plain gradients, or state that no checkpoint holds: choose another")
        if not timm.optim.get_optimizer_info(self.name).has_momentum:
            require_untouched(self, ("momentum",), f"with {self.name}", "optimizer.")
        require(math.isfinite(self.lr) and self.lr > 0, f"--optimizer.lr is {self.lr}: give a number above 0")
        require(self.weight_decay >= 0, f"--optimizer.weight_decay is {self.weight_decay}: give 0 or more")
        require(0 <= self.momentum < 1, f"--optimizer.momentum is {self.momentum}: give a number in [0, 1)")
        require(self.warmup_epochs >= 0, f"--optimizer.warmup_epochs is {self.warmup_epochs}: give 0 or more")
        require(self.warmup_lr >= 0, f"--optimizer.warmup_lr is {self.warmup_lr}: give 0 or more")
        ordered = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        require(ordered and all(0 < m < 1 for m in self.milestones), "--optimizer.milestones must be rising shares of the epochs in (0, 1)")
        if self.schedule == "cosine":
            require_untouched(self, ("milestones",), "with --optimizer.schedule cosine", "optimizer.")
        if self.warmup_epochs == 0:
            require_untouched(self, ("warmup_lr",), "without a warm-up (--optimizer.warmup_epochs 0)", "optimizer.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How robustness is measured: PGD with steps of epsilon / 10 and a random start, on the whole test split.

    Args:
        norm: Ball: linf or l2.
        epsilons: Radii; by default the paper's two, seen and larger (0.0314 and 0.0627 there); equal ones are measured once.
        steps: Gradient steps of PGD.
        batch_size: Images attacked at once; the verdicts do not depend on it.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilons: tuple[Number, ...] = (Number(8 / 255), Number(16 / 255))
    steps: int = 20
    batch_size: int = 256

    def __post_init__(self) -> None:
        require(len(self.epsilons) > 0 and all(e > 0 for e in self.epsilons), "--evaluation.epsilons must be radii above 0, such as [8/255]")
        above = self.norm == "linf" and max(self.epsilons) > 1
        require(not above, "--evaluation.epsilons has one above 1: pixels are in [0, 1], so write 8/255 rather than 8")
        given = self.norm != "l2" or self.epsilons != EvaluationConfig.epsilons
        require(given, "the default --evaluation.epsilons are meant for linf: give radii with l2, such as [0.25, 0.5] at 32 px")
        require(self.steps > 0 and self.batch_size > 0, "--evaluation.steps and --evaluation.batch_size must be 1 or more")
