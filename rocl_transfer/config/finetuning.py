"""The configuration of fine-tuning, and what it chooses by itself."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from rocl_transfer.config.checks import require, require_untouched
from rocl_transfer.config.data import DataConfig
from rocl_transfer.config.number import Number
from rocl_transfer.config.parts import AttackConfig, EvaluationConfig, ModelConfig, OptimizerConfig, ViewsConfig
from rocl_transfer.config.recipes import RunConfig

# What a family of networks is trained with unless told otherwise: optimiser, peak rate, decay, and factor on the rate for each layer farther from the
# head. So far the families differ in the last alone.
# The rates are the middle of benchmarks/collapse_grid.py (see RESULTS.md), whose small networks train at five times as much too; larger ones may not.
FAMILIES: dict[str, dict[str, Any]] = {
    "batchnorm": {"name": "adamw", "lr": Number(1e-3), "weight_decay": Number(0.05), "layer_decay": Number(1)},
    "plain": {"name": "adamw", "lr": Number(1e-3), "weight_decay": Number(0.05), "layer_decay": Number(0.9)},
    "attention": {"name": "adamw", "lr": Number(1e-3), "weight_decay": Number(0.05), "layer_decay": Number(0.85)},
}


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimizerConfig:
    """Optimiser and learning rate of fine-tuning; what is left out is chosen by the network's family (BatchNorm, transformer, other).

    Args:
        name: timm's name of an optimiser; give ``lr`` with it.
        lr: Peak learning rate.
        weight_decay: On every parameter, biases and norms included.
        layer_decay: Factor on the learning rate for each layer farther from the head; 1 for none (default: none where the backbone is untrained).
        clip_grad: Largest norm of the gradient of all parameters together; 0 for no limit.
        momentum: For the optimisers that have one.
        schedule: cosine (after the warm-up), or steps (times 0.1 at each milestone).
        warmup_epochs: Epochs of linear warm-up from 0 (default: a quarter of them, 3 at most).
        milestones: Shares of all epochs after which ``steps`` lowers the rate.
    """

    name: str | None = None
    lr: Number | None = None
    weight_decay: Number | None = None
    layer_decay: Number | None = None
    clip_grad: Number = Number(1)
    momentum: Number = Number(0.9)
    schedule: Literal["cosine", "steps"] = "cosine"
    warmup_epochs: int | None = None
    milestones: tuple[Number, ...] = OptimizerConfig.milestones

    def __post_init__(self) -> None:
        require(self.name is None or self.lr is not None, f"--optimizer.lr is missing: a rate made for another optimiser is not for {self.name}")
        require(self.layer_decay is None or 0 < self.layer_decay <= 1, f"--optimizer.layer_decay is {self.layer_decay}: give a factor in (0, 1]")
        require(self.clip_grad >= 0, f"--optimizer.clip_grad is {self.clip_grad}: give a norm above 0, or 0 for no limit")
        checked = {option.name: getattr(self, option.name) for option in dataclasses.fields(OptimizerConfig) if hasattr(self, option.name)}
        OptimizerConfig(**{"name": "adamw", "warmup_epochs": 0, **{name: value for name, value in checked.items() if value is not None}})

    def resolved(self, family: str, epochs: int, trained: bool) -> "FinetuneOptimizerConfig":
        """With nothing left out. Layers learn at different rates only where there is something to be kept: the backbone is ``trained``."""
        chosen = {**FAMILIES[family], "warmup_epochs": min(3, epochs // 4), **({} if trained else {"layer_decay": Number(1)})}
        return dataclasses.replace(self, **{name: value for name, value in chosen.items() if getattr(self, name) is None})


@dataclass(frozen=True, kw_only=True)
class FinetuneEvaluationConfig:
    """How robustness is measured: PGD in the attack's norm with steps of epsilon / 10 and a random start, on the whole test split.

    Args:
        epsilons: Radii (default: half of the attack's, the attack's, and twice it).
        steps: Gradient steps of PGD.
        batch_size: Images attacked at once; the verdicts do not depend on it.
    """

    epsilons: tuple[Number, ...] | None = None
    steps: int = 20
    batch_size: int = 256

    def radii(self, attack: AttackConfig) -> tuple[float, ...]:
        """The radii in force."""
        return self.epsilons or (attack.epsilon / 2, float(attack.epsilon), attack.epsilon * 2)


def attack_32px() -> AttackConfig:
    """PGD-10 in the ball that CIFAR-10's literature shares."""
    return AttackConfig(epsilon=Number(8 / 255), steps=10)


def light_views() -> ViewsConfig:
    """Mirrored, and moved by up to an eighth of the side (4 pixels at 32): what adversarial training on small images uses."""
    return ViewsConfig(jitter_probability=Number(0), grey_probability=Number(0), crop_area=(Number(1), Number(1)), shift=Number(1 / 8))


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Adversarial fine-tuning of any backbone on any labelled images. The defaults are a preset for 8/255 at 32 px.

    Args:
        data: Which images and labels.
        model: Which backbone or classifier; a head is kept where its classes are the data's.
        method: at (PGD adversarial training), trades, mart, or standard (no adversary: the control).
        attack: What is trained against; with standard only measured against.
        beta: Weight of the robust term of trades (default: 6) and mart (default: 5).
        label_smoothing: Of the cross-entropy.
        class_balanced: Weigh classes by the effective number of their images.
        ss_weight: Weight of RoCL's self-supervised loss between an adversarial image and another view of it; 0 for none.
        ss_views: How that other view is drawn.
        awp_gamma: Adversarial weight perturbation as a share of each weight's norm (0.005 in its paper); 0 for none.
        ema_decay: Measure and export a running average of the weights (0.999, say); 0 for none.
        train: What trains beside the head: all, head, last-K (stages), norm, or lora.
        lora_rank: Rank of the additions of --train lora (default: 8).
        batchnorm: train, or frozen: running statistics stay as they came.
        head_epochs: Before everything trains, train the head alone: 20 epochs on clean features and, where the backbone proves robust, this many
            on adversarial images; 0 for neither (default: 3 for a new head on a trained backbone, else 0).
        ramp: Shares of the training with epsilon 0, and after which it is whole, linear between (default: [0, 0] where the start is robust, else
            [0.1, 0.5]).
        augmentation: How the view that is trained on is drawn.
        optimizer: How.
        evaluation: How the classifier is measured.
    """

    data: DataConfig
    model: ModelConfig
    method: Literal["standard", "at", "trades", "mart"] = "trades"
    attack: AttackConfig = field(default_factory=attack_32px)
    beta: Number | None = None
    label_smoothing: Number = Number(0)
    class_balanced: bool = False
    ss_weight: Number = Number(0)
    ss_views: ViewsConfig = field(default_factory=ViewsConfig)
    awp_gamma: Number = Number(0)
    ema_decay: Number = Number(0)
    train: str = "all"
    lora_rank: int | None = None
    batchnorm: Literal["train", "frozen"] = "train"
    head_epochs: int | None = None
    ramp: tuple[Number, Number] | None = None
    augmentation: ViewsConfig = field(default_factory=light_views)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    evaluation: FinetuneEvaluationConfig = field(default_factory=FinetuneEvaluationConfig)
    epochs: int = 30
    batch_size: int = 128
    monitor_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(re.fullmatch(r"all|head|norm|lora|last-[1-9]\d*", self.train)), f"--train is {self.train}: give all, head, last-2, norm or lora")
        require(self.lora_rank is None or self.train == "lora", f"--lora_rank has no effect with --train {self.train}: leave it out")
        require(self.lora_rank is None or self.lora_rank > 0, f"--lora_rank is {self.lora_rank}: give 1 or more")
        require(0 <= self.label_smoothing < 1, f"--label_smoothing is {self.label_smoothing}: give a share in [0, 1)")
        require(0 <= self.ema_decay < 1, f"--ema_decay is {self.ema_decay}: give a factor in [0, 1), such as 0.999")
        for name in ("ss_weight", "awp_gamma", "head_epochs", "beta"):
            value = getattr(self, name)
            require(value is None or (math.isfinite(value) and value >= 0), f"--{name} is {value}: give 0 or more")
        if self.ramp is not None:
            in_order = 0 <= self.ramp[0] <= self.ramp[1] <= 1
            require(in_order, f"--ramp is {list(self.ramp)}: give two rising shares of the training in [0, 1], such as [0.1, 0.5]")
        if self.beta is not None:
            require(self.method in ("trades", "mart"), f"--beta has no effect with --method {self.method}: leave it out")
        if not self.ss_weight:
            require_untouched(self, ("ss_views",), "without --ss_weight")
        if self.method == "standard":
            require_untouched(self, ("ramp", "awp_gamma"), "with --method standard, which has no adversary")
        given = self.attack.norm != "l2" or self.attack.epsilon != attack_32px().epsilon
        require(given, "the default --attack.epsilon 8/255 is meant for linf: give a radius with l2, such as 0.5 at 32 px")
        if self.train in ("head", "lora"):
            because = f"with --train {self.train}, which leaves BatchNorm as it came"
            require_untouched(self, ("batchnorm",), because)
        require(self.train != "head" or not self.ss_weight, "--ss_weight has no effect with --train head, which leaves the features as they are")
        require(self.part_size > 1, f"--batch_size {self.batch_size} leaves {self.part_size} image at once: BatchNorm needs 2 or more")
        EvaluationConfig(**dataclasses.asdict(self.evaluation) | {"norm": self.attack.norm, "epsilons": self.evaluation.radii(self.attack)})
        warmup = self.optimizer.warmup_epochs or 0
        require(warmup < self.epochs, f"--optimizer.warmup_epochs {warmup} is not below --epochs {self.epochs}: lower it")

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunConfig`; the images of one process share the seed of their attack."""
        return {**super().identity(processes), "batch_size": self.batch_size}
