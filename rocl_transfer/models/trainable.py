"""Which part of a classifier trains: all, the head, the last stages, the norms, or low-rank additions."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rocl_transfer.errors import UserError
from rocl_transfer.models.backbone import PixelModel
from rocl_transfer.options import require


class LowRank(nn.Module):
    """A weight of a linear or convolution layer plus a trained one of rank r: LoRA (Hu et al. 2021), on the kernel as a matrix (out, in x k x k).

    Starts as the weight itself: ``up`` is zero.

    Args:
        weight: As it is.
        rank: r; never above what the matrix can have.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.down = nn.Parameter(torch.empty(rank, columns, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The sum."""
        return weight + (self.up @ self.down).view_as(weight)


@dataclass(frozen=True, kw_only=True)
class TrainableOptions:
    """Which part of a network trains.

    Args:
        train: What trains beside the head: all, head, last-K or first-K (stages), norm, or lora.
        lora_rank: Rank of the additions of --train lora (default: 8).
    """

    train: str = "all"
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"all|head|norm|lora|(last|first)-[1-9]\d*", self.train)),
            f"--train is {self.train}: give all, head, last-2, norm or lora",
        )
        require(self.lora_rank is None or self.train == "lora", f"--lora_rank has no effect with --train {self.train}: leave it out")
        require(self.lora_rank is None or self.lora_rank > 0, f"--lora_rank is {self.lora_rank}: give 1 or more")

    def select(self, model: PixelModel, head: bool = True) -> None:
        """Let only that part train; see :func:`select_trainable`."""
        select_trainable(model, self.train, self.lora_rank or 8, head)


def select_trainable(model: PixelModel, what: str, lora_rank: int = 8, head: bool = True) -> None:
    """Let only ``what`` of a network train, in place.

    Args:
        model: A classifier, or a backbone.
        what: all, head, last-K or first-K (of timm's stages, or of blocks where the network has no stages; the stem goes with the first), norm
            (scales and shifts of the norms), or lora (low-rank additions to the linear and convolution layers; :func:`merge_lora` folds them in).
        lora_rank: Rank of ``lora``.
        head: Whether a classifier's head trains in any case; if not, it never does.

    Raises:
        UserError: There is no such part, or the network has fewer stages.
    """
    net, own = model.net, model.head
    model.requires_grad_(what == "all")
    if found := re.fullmatch(r"(last|first)-(\d+)", what):
        _train_stages(model, found[1], int(found[2]))
    elif what == "norm":
        norms = [p for module in net.modules() if "norm" in type(module).__name__.lower() for p in module.parameters(recurse=False)]
        if not norms:
            raise UserError(f"--train norm: {model.architecture} has no normalisation layers with parameters; give head, last-1, lora or all")
        for parameter in norms:
            parameter.requires_grad_(True)
    elif what == "lora":
        layers = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d)) and module is not own]
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, lora_rank))
    elif what not in ("all", "head"):
        raise UserError(f"--train {what} is unknown: give all, head, last-K such as last-2, norm or lora")
    own.requires_grad_(head)


def _train_stages(model: PixelModel, side: str, count: int) -> None:
    from timm.models import group_parameters

    net = model.net
    parameters = dict(net.named_parameters())
    own = {id(parameter) for parameter in model.head.parameters()}
    stages: dict[int, list[str]] = group_parameters(net, net.group_matcher(coarse=True))
    # A group of norms alone, such as ConvNeXt's last, is no stage: it goes with the one before.
    bodies = [k for k, names in sorted(stages.items()) if any(parameters[n].dim() > 1 and id(parameters[n]) not in own for n in names)]
    if not 0 < count <= len(bodies):
        raise UserError(f"--train {side}-{count}: {model.architecture} has {len(bodies)} stages; give {side}-1 to {side}-{len(bodies)}, or all")
    chosen = [group for group in stages if (group >= bodies[-count] if side == "last" else group <= bodies[count - 1])]
    for name in (name for group in chosen for name in stages[group]):
        parameters[name].requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Fold low-rank additions into the weights, in place: the network is a plain one again, with the same outputs."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight: Tensor = module.weight.clone()  # type: ignore[operator]
            # torch's remove_parametrizations takes the weight off the class, which copies of the network (an EMA, say) share.
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            module.weight = nn.Parameter(weight)
