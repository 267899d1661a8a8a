"""The parts of the reference AutoAttack (PyPI: pyautoattack), to be run and compared as ours are."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.attacks.margins import margin
from rocl_transfer.attacks.search import Attack, Network, Outcome
from rocl_transfer.attacks.threat_models import threat_model
from rocl_transfer.errors import UserError

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Reference(Attack):
    """One part of its standard version. All samples share one seed there, so verdicts depend on which are searched together.

    Args:
        part: One of ``PARTS``.
        epsilon: Radius in [0, 1] pixel units.
        norm: linf, l2 or l1.

    Raises:
        UserError: The package is not installed, or there is no such ball.
    """

    def __init__(self, part: str, epsilon: float, norm: str = "linf") -> None:
        if find_spec("pyautoattack") is None:
            raise UserError("the reference engine needs a package that is not installed: pip install 'rocl-transfer[autoattack]'")
        threat_model(norm, epsilon)
        self.part, self.epsilon, self.norm = part, epsilon, norm

    @property
    def name(self) -> str:
        """See :class:`Attack`."""
        return self.part

    @property
    def runs(self) -> int:
        """See :class:`Attack`: targets and restarts are its own affair."""
        return 1

    @property
    def passes(self) -> tuple[int, int]:
        """See :class:`Attack`: measured on samples that survive, in L-inf."""
        return {"apgd-ce": (10, 101), "apgd-t": (19, 909), "fab-t": (937, 900), "square": (5012, 0)}[self.part]

    def conditions(self) -> dict[str, Any]:
        """See :class:`Attack`."""
        return {"engine": "pyautoattack"}

    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """See :class:`Attack`."""
        from pyautoattack import AutoAttack

        outcome = Outcome(images)
        attack = AutoAttack(network, norm=_NORMS[self.norm], eps=self.epsilon, seed=int(seeds[0]) % 2**31, version="standard", device=images.device)
        attack.attacks_to_run = [self.part]
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):  # it reseeds the global generator
            adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        outcome.note(torch.arange(len(images), device=images.device), adversarial, margin(network(adversarial), labels))
        return outcome
