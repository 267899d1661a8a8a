"""FAB-T (Croce & Hein 2020b): step on the linearised boundary to one class, as near to the clean image as possible."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.attacks.margins import margin, rivals
from rocl_transfer.attacks.search import ActiveSamples, Attack, Network, Outcome, ascend, check_counts
from rocl_transfer.attacks.threat_models import threat_model

_OVERSHOOT = 1.05  # of the step on the boundary
_PULL = 0.9  # of the way out, that a point beyond the boundary is taken back to
_TOWARDS_IMAGE = 0.1  # largest share of the projection of the clean image in the next point


@dataclass
class _Walk(ActiveSamples):
    targets: Tensor
    at: Tensor


def _lead(truth: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """By how much the target leads the true class, above 0 beyond the boundary."""
    return lambda logits: (logits.gather(1, targets) - logits.gather(1, truth)).squeeze(1)


class FAB(Attack):
    """Looks for the nearest image beyond the boundary to one likely class a run; broken where that lies in the ball.

    The published algorithm evaluates the network twice per step: whether the new point is beyond the boundary, then the gradient where the point was
    taken back to. Here one evaluation serves both: the boundary is linearised where the step landed. See RESULTS.md for what that costs and saves.

    Args:
        epsilon: Radius in [0, 1] pixel units.
        norm: linf, l2 or l1.
        steps: Steps of one run.
        targets: Runs, each against one of the likeliest wrong classes.

    Raises:
        UserError: There is no such ball, or a number is too small.
    """

    def __init__(self, epsilon: float, norm: str = "linf", steps: int = 100, targets: int = 9) -> None:
        self.epsilon, self.norm, self.steps, self.targets = epsilon, norm, steps, targets
        self.threat = threat_model(norm, epsilon)
        check_counts("FAB", steps=steps, targets=targets)

    @property
    def name(self) -> str:
        """See :class:`Attack`."""
        return "fab-t"

    @property
    def runs(self) -> int:
        """See :class:`Attack`."""
        return self.targets

    @property
    def passes(self) -> tuple[int, int]:
        """See :class:`Attack`."""
        return 1, self.steps + 1

    def conditions(self) -> dict[str, Any]:
        """See :class:`Attack`."""
        return {"steps": self.steps, "targets": self.targets}

    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """See :class:`Attack`; nothing here is random."""
        outcome = Outcome(images)
        targets = rivals(network(images), labels, runs, self.targets)
        active = _Walk(torch.arange(len(images), device=images.device), images, labels, targets, images)
        for _ in range(self.steps + 1):
            logits, lead, gradient = ascend(network, active.at, _lead(active.labels[:, None], active.targets[:, None]))
            margins = margin(logits, active.labels)
            beyond, delta = margins < 0, active.at - active.images
            inside = self.threat.length(delta).flatten() <= self.epsilon
            within = torch.where(inside, margins, torch.inf)
            broken = outcome.note(active.position, active.at, within)
            point = torch.where(beyond.view(-1, 1, 1, 1), active.images + _PULL * delta, active.at)
            active.at = self._step(active.images, active.at, point, lead, gradient)
            if broken.any():
                active.keep(~broken)
                if not len(active):
                    break
        return outcome

    def _step(self, images: Tensor, landed: Tensor, point: Tensor, lead: Tensor, gradient: Tensor) -> Tensor:
        """The next point: between the projections of ``point`` and of the clean image on the boundary linearised at ``landed``, a little beyond."""
        starts = torch.cat([point, images])
        slope = torch.cat([gradient, gradient]).flatten(1)
        away = (slope * (starts - torch.cat([landed, landed])).flatten(1)).sum(1) + torch.cat([lead, lead])  # the target's lead there
        up = torch.where((away < 0)[:, None], slope, -slope)
        flat = starts.flatten(1)
        room = torch.where(up > 0, 1 - flat, flat)
        move = (up.sign() * self.threat.shortest(up.abs(), room, away.abs())).view_as(starts)
        lengths = self.threat.length(move).clamp_min(1e-8)
        of_point, of_image = lengths.chunk(2)
        share = (of_point / (of_point + of_image)).clamp(max=_TOWARDS_IMAGE)
        beyond = (starts + _OVERSHOOT * move).chunk(2)
        return torch.lerp(beyond[0], beyond[1], share).clamp_(0, 1)
