"""timm's optimisers as the papers use them, and learning rates that are a pure function of the step."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.objectives import Objective
from rocl_transfer.options import Number, require, require_untouched, was_given

_PAPER_WARMUP_LR = 0.1
# The optimisers that recipes use by default, so --help need not import timm, which takes 2.5 s.
HAS_MOMENTUM = {"lars": True, "momentum": True, "adamw": False}
_COUPLED_DECAY = 5e-4  # what SGD is given in the literature; AdamW's hundred times as much leaves it no weights


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimiser and learning rate.

    Args:
        name: timm's name of an optimiser: lars, momentum (SGD), adamw, ... (timm's ``sgd`` is Nesterov's). Give ``lr`` with another than the default.
        lr: Peak learning rate.
        weight_decay: On every parameter, biases and norms included, as in the paper.
        momentum: Momentum, for the optimisers that have one.
        schedule: cosine (after the warm-up; constant within an epoch), cosine_per_step, or steps (times 0.1 at each milestone).
        warmup_epochs: Epochs of linear warm-up from ``warmup_lr``; with cosine_per_step also a part of one. Recipes cut the
            default to a quarter of their epochs.
        warmup_lr: Where the warm-up starts (default: with lars the paper's 0.1, or ``lr`` if that is lower; with any other optimiser 0).
        milestones: Shares of all epochs after which ``steps`` lowers the rate.
    """

    name: str = "lars"
    lr: Number = Number(1.5)
    weight_decay: Number = Number(1e-6)
    momentum: Number = Number(0.9)
    schedule: Literal["cosine", "cosine_per_step", "steps"] = "cosine"
    warmup_epochs: Number = Number(10)
    warmup_lr: Number | None = None
    milestones: tuple[Number, ...] = (Number(1 / 5), Number(1 / 3), Number(2 / 3))

    def __post_init__(self) -> None:
        _check_optimizer(self)
        self.require_rate("lars", OptimizerOptions.lr)
        for name in ("weight_decay", "warmup_epochs", "warmup_lr"):
            require((getattr(self, name) or 0) >= 0, f"--optimizer.{name} is {getattr(self, name)}: give 0 or more")
        if self.warmup_epochs == 0:
            untouched = self.warmup_lr in (None, 0, _PAPER_WARMUP_LR)
            require(untouched, "--optimizer.warmup_lr has no effect without a warm-up (--optimizer.warmup_epochs 0): leave it out")

    def require_rate(self, name: str, lr: Number) -> None:
        """Refuse ``lr``, the default that was made for the optimiser ``name``, with another optimiser."""
        if self.name != name and not was_given(self.lr, lr):
            _refuse_rate(self.name)

    @property
    def words(self) -> str:
        """What a run says of it at its beginning."""
        warmup = f", {self.warmup_epochs:g} epochs of warm-up" if self.warmup_epochs else ""
        return f"{self.name}, learning rate {self.lr:g}, weight decay {self.weight_decay:g}{warmup}"

    @property
    def first_lr(self) -> float:
        """Where the warm-up starts; not filled in in place, so that an override of the optimiser also moves it."""
        if self.warmup_lr is not None:
            return float(self.warmup_lr)
        if self.warmup_epochs == 0:  # what runs from before record, without effect
            return _PAPER_WARMUP_LR
        return min(_PAPER_WARMUP_LR, self.lr) if self.name == "lars" else 0.0

    def create(self, objective: nn.Module, groups: Sequence[dict[str, Any]] = ()) -> Optimizer:
        """Timm's optimiser on every trained parameter alike; parts of an :class:`Objective` with a rate of their own learn at that.

        ``filter_bias_and_bn`` is off: timm would take biases and norms out of the weight decay, and its LARS adapts no parameter without one, while
        RoCL's adapts all. Where the decay is 0 for everything, LARS is told to adapt all the same.

        Args:
            objective: The module whose parameters with ``requires_grad`` are trained.
            groups: Groups of its parameters, as torch's optimisers take them, with ``lr_scale`` for a share of the rate.
        """
        import timm.optim

        groups, own = list(groups), objective.own_rates() if isinstance(objective, Objective) else {}
        for part, rate in own.items():
            groups.append({"params": list(part.parameters()), "weight_decay": self.weight_decay, "lr_scale": rate / self.lr})
        grouped = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [p for p in objective.parameters() if p.requires_grad and id(p) not in grouped]
        parameters: Any = [*groups, {"params": rest, "weight_decay": self.weight_decay}] if groups and rest else groups or objective
        extra = {"always_adapt": True} if self.name == "lars" and self.weight_decay == 0 else {}
        optimizer: Optimizer = timm.optim.create_optimizer_v2(
            parameters, opt=self.name, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum, filter_bias_and_bn=False, **extra
        )
        return optimizer

    def over(self, epochs: int) -> "Schedule":
        """The learning rate over so many epochs."""
        return Schedule(self, epochs)


@dataclass(frozen=True, kw_only=True)
class AdaptationOptimizerOptions:
    """Optimiser and learning rate of fine-tuning; what is left out is chosen by the network's family (BatchNorm, transformer, other).

    Args:
        name: timm's name of an optimiser; give ``lr`` with it.
        lr: Peak learning rate.
        weight_decay: On every parameter, biases and norms included (default: 5e-4 where it is not AdamW's kind, apart from the gradient: SGD, Adam).
        layer_decay: Factor on the learning rate for each layer farther from the head; 1 for none (default: none if the backbone is untrained).
        clip_grad: Largest norm of the gradient of all parameters together; 0 for no limit.
        momentum: Momentum, for the optimisers that have one.
        schedule: cosine (after the warm-up; constant within an epoch), cosine_per_step, or steps (times 0.1 at each milestone).
        warmup_epochs: Epochs of linear warm-up from 0; with cosine_per_step also a part of one (default: a quarter of them, 3 at most).
        milestones: Shares of all epochs after which ``steps`` lowers the rate.
    """

    name: str | None = None
    lr: Number | None = None
    weight_decay: Number | None = None
    layer_decay: Number | None = None
    clip_grad: Number = Number(1)
    momentum: Number = Number(0.9)
    schedule: Literal["cosine", "cosine_per_step", "steps"] = "cosine"
    warmup_epochs: Number | None = None
    milestones: tuple[Number, ...] = OptimizerOptions.milestones

    def __post_init__(self) -> None:
        _check_optimizer(self)
        if self.name is not None and self.lr is None:
            _refuse_rate(self.name)
        require(self.layer_decay is None or 0 < self.layer_decay <= 1, f"--optimizer.layer_decay is {self.layer_decay}: give a factor in (0, 1]")
        require(self.clip_grad >= 0, f"--optimizer.clip_grad is {self.clip_grad}: give a norm above 0, or 0 for no limit")
        for name in ("weight_decay", "warmup_epochs"):
            require((getattr(self, name) or 0) >= 0, f"--optimizer.{name} is {getattr(self, name)}: give 0 or more")

    def resolved(self, chosen: dict[str, Any], epochs: int, trained: bool) -> "AdaptationOptimizerOptions":
        """With nothing left out.

        Args:
            chosen: What the network's family is trained with by default; its weight decay is for optimisers that decay weights as AdamW does.
            epochs: Length of the training.
            trained: Whether the backbone is: layers learn at different rates only where there is something to be kept.
        """
        defaults = {"warmup_epochs": min(3, epochs // 4), **chosen, **({} if trained else {"layer_decay": Number(1)})}
        if self.name is not None and _decays_apart(self.name) != _decays_apart(chosen["name"]):
            defaults["weight_decay"] = Number(_COUPLED_DECAY)
        return dataclasses.replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def create(self, objective: Objective, layers: nn.Module) -> Optimizer:
        """The optimiser of the objective's trained parameters. Once :meth:`resolved`.

        Args:
            objective: What is trained.
            layers: A timm network within it, whose layers learn the more slowly the farther they are from the head; the rest learns at the full rate.
        """
        import timm.optim

        assert self.layer_decay is not None
        groups: list[dict[str, Any]] = []
        if self.layer_decay < 1:
            decays = {"weight_decay": self.weight_decay, "weight_decay_exclude_1d": False, "layer_decay": self.layer_decay}
            groups = timm.optim.param_groups_layer_decay(layers, **decays)
        return self._whole().create(objective, groups)

    def over(self, epochs: int) -> "Schedule":
        """The learning rate over so many epochs. Once :meth:`resolved`."""
        return self._whole().over(epochs)

    def _whole(self) -> OptimizerOptions:
        """What it has in common with any other training's."""
        names = ("name", "lr", "weight_decay", "momentum", "schedule", "warmup_epochs", "milestones")
        return OptimizerOptions(**{name: getattr(self, name) for name in names}, warmup_lr=Number(0))


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a step: constant within an epoch (official code of RoCL), or falling with every step, for trainings of an epoch or two.

    Args:
        options: The peak, its shape and its warm-up.
        epochs: What ``cosine`` and ``milestones`` are stretched over.
    """

    options: OptimizerOptions
    epochs: int

    def __call__(self, epoch: int, step: int = 0, per_epoch: int = 1) -> float:
        """Learning rate of step ``step``, from 0, of epoch ``epoch``, from 0, which has ``per_epoch`` steps."""
        own, done, warmup, whole = self.options, epoch, self.options.warmup_epochs, self.epochs
        if own.schedule == "cosine_per_step":
            done, warmup, whole = epoch * per_epoch + step, round(own.warmup_epochs * per_epoch), self.epochs * per_epoch
        if done < warmup:
            return own.first_lr + (own.lr - own.first_lr) * (done + 1) / warmup
        if own.schedule == "steps":
            passed = sum(epoch >= share * self.epochs - 1e-9 for share in own.milestones)
            return float(own.lr * 0.1**passed)
        # The official code's cosine is stretched over all epochs, warm-up included, and so does not reach 0; per step it is FARE's, which does.
        length = whole - warmup if own.schedule == "cosine_per_step" else whole
        return own.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(length, 1)))


def _check_optimizer(options: OptimizerOptions | AdaptationOptimizerOptions) -> None:
    """What both kinds of options check alike."""
    if options.name is not None and not _has_momentum(options.name):
        require_untouched(options, ("momentum",), f"with {options.name}", "optimizer.")
    require(options.lr is None or 0 < options.lr < math.inf, f"--optimizer.lr is {options.lr}: give a number above 0")
    require(0 <= options.momentum < 1, f"--optimizer.momentum is {options.momentum}: give a number in [0, 1)")
    rising = all(a < b for a, b in zip(options.milestones, options.milestones[1:], strict=False))
    require(rising and all(0 < m < 1 for m in options.milestones), "--optimizer.milestones must be rising shares of the epochs in (0, 1)")
    if options.schedule != "steps":
        require_untouched(options, ("milestones",), f"with --optimizer.schedule {options.schedule}", "optimizer.")
    whole = options.schedule == "cosine_per_step" or (options.warmup_epochs or 0) % 1 == 0
    require(whole, f"--optimizer.warmup_epochs is {options.warmup_epochs}: give whole epochs, or --optimizer.schedule cosine_per_step")


def _refuse_rate(name: str) -> NoReturn:
    raise UserError(f"--optimizer.lr is missing: a rate made for another optimiser is not for {name}")


def _decays_apart(name: str) -> bool:
    """Whether timm's optimiser ``name`` takes its decay off the weights apart from steps whose length does not follow the gradient's, as AdamW does.

    It is measured, since timm does not say: two steps on one weight, under a small and a large gradient, with decay and without.
    """
    import timm.optim

    def moved(gradient: float, decay: float) -> float:
        weight = nn.Parameter(torch.ones(4, 4))
        optimizer = timm.optim.create_optimizer_v2([{"params": [weight]}], opt=name, lr=0.01, weight_decay=decay, momentum=0.9)
        for _ in range(2):
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        return 1 - weight.mean().item()

    small, large = moved(0.01, 0), moved(1, 0)
    taken = moved(0.01, 0.5) - small
    return large < 10 * small and taken > 1e-3 and abs(moved(1, 0.5) - large - taken) < 2e-4


def _has_momentum(name: str) -> bool:
    """Whether timm's optimiser ``name`` takes a momentum.

    Raises:
        UserError: timm has no such optimiser, or it cannot be used here.
    """
    if name in HAS_MOMENTUM:
        return HAS_MOMENTUM[name]
    import timm.optim

    known = timm.optim.list_optimizers()
    require(name in known, f"--optimizer.name {name} is not one of timm's optimisers{did_you_mean(name, known)}")
    special = name.startswith(("adahessian", "bnb", "fused", "kron"))
    require(not special, f"--optimizer.name {name} needs more than plain gradients, or state that no checkpoint holds: choose another")
    return bool(timm.optim.get_optimizer_info(name).has_momentum)
