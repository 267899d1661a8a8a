"""Black-box transfer: images made to break another model."""

from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.attacks.frozen import frozen
from rocl_transfer.attacks.gate import untouched
from rocl_transfer.attacks.margins import margin
from rocl_transfer.attacks.search import Attack, Network, Outcome


class Transfer(Attack):
    """Runs ``attack`` on a surrogate and shows what it finds to the model.

    Args:
        surrogate: Images in [0, 1] -> logits of the same classes.
        attack: What is run on it.
        name: What results call it.
        sha256: SHA-256 of the surrogate's weights, so that what was found with others is not taken for it.
    """

    def __init__(self, surrogate: nn.Module, attack: Attack, name: str, sha256: str | None = None) -> None:
        self.surrogate, self.attack, self._name, self.sha256 = untouched(surrogate), attack, name, sha256
        self.norm, self.epsilon = attack.norm, attack.epsilon

    @property
    def name(self) -> str:
        """See :class:`Attack`."""
        return self._name

    @property
    def runs(self) -> int:
        """See :class:`Attack`."""
        return self.attack.runs

    @property
    def passes(self) -> tuple[int, int]:
        """See :class:`Attack`; the surrogate's are counted like the model's."""
        forward, gradient = self.attack.passes
        return forward + 1, gradient

    def conditions(self) -> dict[str, Any]:
        """See :class:`Attack`."""
        return {**self.attack.conditions(), **({"surrogate": self.sha256} if self.sha256 else {})}

    def alike(self, other: Attack) -> bool:
        """See :class:`Attack`; surrogates without a SHA-256 are told apart by what they are."""
        if not isinstance(other, Transfer) or not self.attack.alike(other.attack):
            return False
        return super().alike(other) and (self.sha256 is not None or self.surrogate.model is other.surrogate.model)

    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """See :class:`Attack`."""
        outcome = Outcome(images)
        with frozen(self.surrogate):
            found = self.attack.search(self.surrogate, images, labels, runs, seeds, at_once).adversarial
        outcome.note(torch.arange(len(images), device=images.device), found, margin(network(found), labels))
        return outcome
