"""Auto-PGD (Croce & Hein 2020; for L1: 2021): gradient ascent with momentum that halves its own step where progress stalls."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.attacks.draws import normal, uniform
from rocl_transfer.attacks.margins import cross_entropy, margin, rivals, targeted_dlr
from rocl_transfer.attacks.search import ActiveSamples, Attack, Network, Outcome, ascend, check_counts
from rocl_transfer.attacks.threat_models import ThreatModel, sparse_sign, threat_model

_MOMENTUM = 0.75  # share of the new step; the rest is the step before
_RISING = 0.75  # share of steps that must raise the loss for the step size to stay


@dataclass
class _Ascent(ActiveSamples):
    targets: Tensor
    at: Tensor  # where the search stands
    before: Tensor  # where it stood a step ago
    gradient: Tensor  # at ``at``
    loss: Tensor
    last_loss: Tensor  # a step ago
    best: Tensor  # the image of highest loss so far
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor  # (N, 1, 1, 1)
    rises: Tensor  # steps since the last checkpoint that raised the loss
    checked_loss: Tensor  # highest loss at the last checkpoint
    halved: Tensor  # whether the step was halved there
    share: Tensor  # L1: of the entries that move
    changed: Tensor  # L1: entries of ``best`` that differed at the last checkpoint


class APGD(Attack):
    """Untargeted on the cross-entropy (APGD-CE), or on the targeted DLR loss against one likely class a run (APGD-T).

    Args:
        epsilon: Radius in [0, 1] pixel units.
        norm: linf, l2 or l1; for l1 the radius shrinks from three times its length while it searches.
        steps: Gradient steps of a run.
        targets: Runs against the likeliest wrong classes; 0 for the untargeted attack.
        restarts: Runs of the untargeted attack, each from its own random start.

    Raises:
        UserError: There is no such ball, or a number is too small.
    """

    def __init__(self, epsilon: float, norm: str = "linf", steps: int = 100, targets: int = 0, restarts: int = 1) -> None:
        self.epsilon, self.norm, self.steps, self.targets, self.restarts = epsilon, norm, steps, targets, restarts
        self.threat = threat_model(norm, epsilon)
        check_counts("APGD", steps=steps, restarts=restarts)
        check_counts("APGD", 0, targets=targets)

    @property
    def name(self) -> str:
        """See :class:`Attack`."""
        return "apgd-t" if self.targets else "apgd-ce"

    @property
    def runs(self) -> int:
        """See :class:`Attack`."""
        return self.targets or self.restarts

    @property
    def passes(self) -> tuple[int, int]:
        """See :class:`Attack`."""
        return int(self.targets > 0), self.steps + (3 if self.norm == "l1" else 1)

    def conditions(self) -> dict[str, Any]:
        """See :class:`Attack`."""
        return {"steps": self.steps, **({"targets": self.targets} if self.targets else {"restarts": self.restarts})}

    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """See :class:`Attack`."""
        outcome, threat = Outcome(images), self.threat
        targets = rivals(network(images), labels, runs, self.targets) if self.targets else runs
        active = _lanes(images, labels, targets, self._start(images, runs, seeds))
        if self.norm != "l1":
            self._climb(network, active, outcome, threat, self.steps)
            return outcome
        # Nearer points are hard to find from within the small ball, and easy from those found in larger ones (section 4.1 of the L1 paper).
        wide, middle = math.ceil(0.3 * self.steps), math.ceil(0.3 * self.steps)
        for factor, steps in ((3, wide), (2, middle), (1, self.steps - wide - middle)):
            ball = threat_model("l1", factor * self.epsilon)
            active.at = ball.project(active.best, active.images)
            self._climb(network, active, outcome, ball, steps, leave=factor == 1)
        return outcome

    def _start(self, images: Tensor, runs: Tensor, seeds: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        draws = 2 * uniform(seeds, "apgd", shape, runs) - 1 if self.norm == "linf" else normal(seeds, "apgd", shape, runs)
        if self.norm == "l1":
            return threat_model("l1", 3 * self.epsilon).project(images + draws, images)
        # On the ball's surface: there is no reason to start near the clean image.
        return self.threat.project(images + draws * (self.epsilon / self.threat.length(draws)), images).clamp_(0, 1)

    def _look(self, network: Network, active: _Ascent, outcome: Outcome, leave: bool) -> bool:
        """Evaluate where the active stand; the broken ones leave. False where none is left."""
        loss = (lambda logits: targeted_dlr(logits, active.labels, active.targets)) if self.targets else (
            lambda logits: cross_entropy(logits, active.labels))  # fmt: skip
        logits, active.loss, active.gradient = ascend(network, active.at, loss)
        if leave:
            wrong = outcome.note(active.position, active.at, margin(logits, active.labels))
            if wrong.any():
                active.keep(~wrong)
        return len(active) > 0

    def _climb(self, network: Network, active: _Ascent, outcome: Outcome, threat: ThreatModel, steps: int, leave: bool = True) -> None:
        if not self._look(network, active, outcome, leave):
            return
        policy = _Sparse(threat, steps, active) if threat.norm == "l1" else _Momentum(threat, steps)
        active.step_size = torch.full_like(active.images[:, :1, :1, :1], policy.first)
        active.before, active.best, active.best_gradient, active.best_loss = active.at, active.at, active.gradient, active.loss
        active.checked_loss, active.rises, active.halved = active.loss, torch.zeros_like(active.loss), torch.ones_like(active.loss, dtype=torch.bool)
        for step in range(steps):
            active.before, active.at, active.last_loss = active.at, policy.move(active, step), active.loss
            if not self._look(network, active, outcome, leave):
                return
            active.rises = active.rises + (active.loss > active.last_loss)
            better = active.loss > active.best_loss
            wide = better.view(-1, 1, 1, 1)
            active.best, active.best_gradient = torch.where(wide, active.at, active.best), torch.where(wide, active.gradient, active.best_gradient)
            active.best_loss = torch.where(better, active.loss, active.best_loss)
            policy.check(active, step)


class _Momentum:
    """Steps with momentum for L-inf and L2; at checkpoints that come ever closer the step is halved where the loss no longer rises."""

    def __init__(self, threat: ThreatModel, steps: int) -> None:
        self.threat, self.first = threat, 2 * float(threat.epsilon)
        self.interval, self.shorter, self.shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
        self.since = 0

    def move(self, active: _Ascent, step: int) -> Tensor:
        plain = self._into_ball(active.at + active.step_size * self.threat.direction(active.gradient), active.images)
        if step == 0:
            return plain
        # The point reached, plus three quarters of the way to the plain step, plus a quarter of the step before.
        mixed = plain.mul_(_MOMENTUM).add_(active.at, alpha=2 * (1 - _MOMENTUM)).sub_(active.before, alpha=1 - _MOMENTUM)
        return self._into_ball(mixed, active.images)

    def _into_ball(self, points: Tensor, images: Tensor) -> Tensor:
        return self.threat.project(points, images).clamp_(0, 1)

    def check(self, active: _Ascent, step: int) -> None:
        self.since += 1
        if self.since < self.interval:
            return
        stalls = active.rises <= _RISING * self.since
        stalls |= ~active.halved & (active.checked_loss >= active.best_loss)
        wide = stalls.view(-1, 1, 1, 1)
        active.step_size = torch.where(wide, active.step_size / 2, active.step_size)
        active.at, active.gradient = torch.where(wide, active.best, active.at), torch.where(wide, active.best_gradient, active.gradient)
        active.halved, active.checked_loss, active.rises = stalls, active.best_loss, torch.zeros_like(active.rises)
        self.since, self.interval = 0, max(self.interval - self.shorter, self.shortest)


class _Sparse:
    """Steps for L1: along as many of the largest gradient entries as the best perturbation so far suggests."""

    def __init__(self, threat: ThreatModel, steps: int, active: _Ascent) -> None:
        self.threat, self.first = threat, float(threat.epsilon)
        self.interval, self.since = max(int(0.04 * steps), 1), 0
        self._entries = active.images[0].numel()
        active.changed = self._changes(active.at, active.images)
        active.share = active.changed / self._entries / 1.5

    @staticmethod
    def _changes(points: Tensor, images: Tensor) -> Tensor:
        return (points != images).flatten(1).sum(1).float()

    def move(self, active: _Ascent, step: int) -> Tensor:
        return self.threat.project(active.at + active.step_size * sparse_sign(active.gradient, active.share), active.images)

    def check(self, active: _Ascent, step: int) -> None:
        self.since += 1
        if self.since < self.interval:
            return
        changes = self._changes(active.best, active.images)
        sparser = changes < 0.95 * active.changed
        wide = sparser.view(-1, 1, 1, 1)
        active.step_size = torch.where(wide, self.first, active.step_size / 1.5).clamp(self.first / 10, self.first)
        active.at, active.gradient = torch.where(wide, active.best, active.at), torch.where(wide, active.best_gradient, active.gradient)
        active.share, active.changed, self.since = changes / self._entries / 1.5, changes, 0


def _lanes(images: Tensor, labels: Tensor, targets: Tensor, start: Tensor) -> _Ascent:
    numbers = torch.zeros(len(images), device=images.device)
    return _Ascent(
        torch.arange(len(images), device=images.device), images, labels, targets, at=start, before=start, gradient=start, loss=numbers,
        last_loss=numbers, best=start, best_gradient=start, best_loss=numbers, step_size=start[:, :1, :1, :1], rises=numbers, checked_loss=numbers,
        halved=numbers > 0, share=numbers, changed=numbers,
    )  # fmt: skip
