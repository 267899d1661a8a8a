"""DynACL (Luo, Wang, Wang 2023): ACL whose augmentation weakens over training while the adversarial loss gains weight."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.data import Augmentation
from rocl_transfer.models import Folded, PixelModel, TwoSets
from rocl_transfer.objectives.acl import ACL
from rocl_transfer.options import Number, require

_STEPS = 20  # of the strength: 1, 0.95 ... 0.05


class DynACL(ACL):
    """ACL with views at strength s = 1, 0.95 ... 0.05, each for a twentieth of the training, and losses weighed 1 - w and 1 + w with w = 2/3 (1 - s).

    The paper's weight as AIR's code has it; in DynACL's own it rises one epoch before the strength falls, and ends at 0.667 instead of 0.633.

    Made as :class:`ACL` is; the views are drawn at full strength at first.
    """

    title = "pre-trained without labels by DynACL (adversarial contrastive learning under augmentation that weakens)"

    @dataclass(frozen=True, kw_only=True)
    class Options(ACL.Options):
        """DynACL: ACL under augmentation that weakens.

        Args:
            ema_decay: Second views go through the EMA of the network (0.99 in DynACL's code), which is measured and exported; 0 for none.
        """

        method: str = "dynacl"
        ema_decay: Number = Number(0)

        def __post_init__(self) -> None:
            super().__post_init__()
            require(0 <= self.ema_decay < 1, f"--objective.ema_decay is {self.ema_decay}: give a factor in [0, 1), such as 0.99")

    options: Options

    def __init__(self, encoder: PixelModel, projector: nn.Module, views: Augmentation, options: Options | None = None) -> None:
        super().__init__(encoder, projector, views, options)
        self.whole, self.strength, self.decay = views, 1.0, self.options.ema_decay
        self.key: PixelModel | None = None
        if self.decay:
            key, self.key_projector = copy.deepcopy(encoder).requires_grad_(False), copy.deepcopy(projector).requires_grad_(False)
            self.key, self.key_attacked = key, Folded(key, self.options.compile)
            # First the norms of the two that learn, then those of the two that follow.
            self.clean_set = TwoSets(encoder, projector, key, self.key_projector)

    @property
    def exported(self) -> PixelModel:
        """The encoder, or its EMA if there is one."""
        return self.encoder if self.key is None else self.key

    @property
    def exported_projector(self) -> nn.Module:
        """The projector that belongs to it."""
        return self.projector if self.key is None else self.key_projector

    def facts(self) -> dict[str, Any]:
        """The schedule, and the EMA."""
        ends = [1.0, 1 / _STEPS]
        return {**super().facts(), "strength": ends, **({"ema_decay": float(self.decay)} if self.decay else {})}

    def begin_step(self, step: int, total: int) -> None:
        """The views weaken."""
        super().begin_step(step, total)
        strength = 1 - (_STEPS * step // total) / _STEPS
        if strength != self.strength:
            self.strength, self.views = strength, self.whole.scaled(strength)

    def weighed(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """The loss from those of the two pairs."""
        w = 2 / 3 * (1 - self.strength)
        loss = ((1 - w) * clean + (1 + w) * adversarial) / 2
        return {"loss": loss, "clean": clean.detach(), "adversarial": adversarial.detach(), "strength": clean.new_full((), self.strength)}

    def embed(self, *views: Tensor) -> Tensor:
        """(2, N, D): both views by the network that learns, or the second by the one that follows, without a gradient."""
        if self.key is None:
            return super().embed(*views)
        first, second = views
        with torch.no_grad():
            target = self.key_unit(self.key(second))
        return torch.stack([self.project(first), target])

    def key_unit(self, features: Tensor) -> Tensor:
        """Features of the EMA as they are compared."""
        return nn.functional.normalize(self.key_projector(features).float(), dim=-1)

    def attacked_embedding(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """See :class:`ACL`."""
        if self.key is None:
            return super().attacked_embedding(images)
        encoder, key = self.attacked.current(images), self.key_attacked.current(images)

        def embed(pairs: Tensor) -> Tensor:
            first, second = (view.flatten(0, 1) for view in pairs.unbind(1))
            z = torch.stack([self.unit(encoder(first)), self.key_unit(key(second))])
            return z.view(2, len(pairs), -1, z.shape[-1]).transpose(0, 1)

        return embed

    @torch.no_grad()
    def end_step(self) -> None:
        """The EMA follows the weights; its BatchNorm statistics are its own."""
        if self.key is None:
            return
        half = len(self.clean_set.norms) // 2
        pairs = ((self.encoder, self.key), (self.projector, self.key_projector), (self.clean_set.norms[:half], self.clean_set.norms[half:]))
        for learns, follows in pairs:
            for now, average in zip(learns.parameters(), follows.parameters(), strict=True):
                average.lerp_(now, 1 - self.decay)
