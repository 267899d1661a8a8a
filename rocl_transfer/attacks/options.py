"""The options of an attack, for whoever trains or measures against one."""

from dataclasses import dataclass, replace
from typing import Literal

from rocl_transfer.attacks.pgd import PGD, GradientAscent
from rocl_transfer.attacks.threat_models import Linf, check_step, threat_model
from rocl_transfer.options import Number, require, spelled, was_given

_NOISE = 2  # radii: of N-FGSM's random start; its paper's choice
# Radii: what steps that nobody gave have on average. A single one of more overfits catastrophically (Wong, Rice, Kolter 2020); of several the first
# cross the ball from any start, and the last refine.
_AVERAGE = 1.25


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """The attack trained against, in [0, 1] pixel units. The defaults are RoCL's, but for the step size.

    Args:
        kind: pgd, or nfgsm (N-FGSM, linf): uniform noise of twice epsilon and one step of epsilon, not projected back to the ball.
        norm: Norm of the ball: linf or l2.
        epsilon: Radius, a number or a fraction such as 8/255.
        step_size: Length of a step, or auto: of pgd steps that fall evenly and have 1.25 radii on average, so that they cross the ball first and
            refine then, however few they are; of nfgsm the radius. null is RoCL's share of the radius, 0.007 / 0.0314 of it, which runs from before
            auto keep when they are resumed.
        steps: Number of gradient steps of pgd; nfgsm takes one.
        first_steps: Steps at the beginning of the training, from which they grow to ``steps`` in equal shares of it (default: as many as at the end).
    """

    kind: Literal["pgd", "nfgsm"] = "pgd"
    norm: Literal["linf", "l2"] = "linf"
    epsilon: Number = Number(0.0314)
    step_size: Number | Literal["auto"] | None = "auto"
    steps: int = 7
    first_steps: int | None = None

    def __post_init__(self) -> None:
        require(self.steps > 0, f"an attack's number of steps is {self.steps}: give 1 or more")
        if self.kind == "nfgsm":
            require(self.norm == "linf", f"--attack.kind nfgsm is an attack in linf, and --attack.norm is {self.norm}: give --attack.kind pgd")
            require(self.first_steps is None, "--attack.first_steps has no effect with --attack.kind nfgsm, which takes one step: leave it out")
            object.__setattr__(self, "steps", 1)  # what a record says of it; the command line refuses another number
        require(0 < self.epsilon < float("inf"), f"an attack's epsilon is {self.epsilon}: give a radius above 0, such as 8/255")
        in_range = self.norm != "linf" or self.epsilon <= 1
        require(in_range, f"an attack's epsilon is {self.epsilon}: pixels are in [0, 1], so write 8/255 rather than 8")
        given = self.norm != "l2" or was_given(self.epsilon, AttackOptions.epsilon)
        require(given, "the default epsilon 0.0314 is meant for linf: give a radius with l2, such as 0.5 at 32 px")
        if isinstance(self.step_size, float | int):
            check_step(self.norm, self.step_size)
        grows = self.first_steps is None or 0 < self.first_steps < self.steps
        require(grows, f"an attack's first_steps is {self.first_steps}: give 1 or more, and fewer than its {self.steps} steps, or leave it out")

    @property
    def falls(self) -> bool:
        """Whether steps become shorter from one to the next."""
        return self.kind == "pgd" and self.step_size == "auto"

    @property
    def step(self) -> float:
        """The (first) step size in force; not resolved in place, so that an override of epsilon alone also moves the step."""
        if isinstance(self.step_size, float | int):
            return float(self.step_size)
        if self.kind == "nfgsm":
            return float(self.epsilon)
        return self._first(self.steps) if self.falls else round(self.epsilon * 0.007 / 0.0314, 9)

    def _first(self, steps: int) -> float:
        """The first of ``steps`` that fall to 1 / steps of it and have the wanted average."""
        return 2 * _AVERAGE * self.epsilon * steps / (steps + 1)

    @property
    def words(self) -> str:
        """The attack on a card: ``linf 0.03137 = 8/255 (10 steps)``."""
        fraction = f" = {spelled(self.epsilon)}" if "/" in spelled(self.epsilon) else ""
        grown = "" if self.first_steps is None else f"{self.first_steps} to "
        how = "N-FGSM" if self.kind == "nfgsm" else f"{grown}{self.steps} steps"
        return f"{self.norm} {self.epsilon:.4g}{fraction} ({how})"

    def steps_at(self, progress: float) -> int:
        """The number of steps when ``progress`` of the training, in [0, 1], is done."""
        first = self.steps if self.first_steps is None else self.first_steps
        return min(first + int(progress * (self.steps - first + 1)), self.steps)

    def ascent(self, scale: float = 1.0, progress: float = 1.0) -> GradientAscent:
        """The gradient ascent, with radius and step times ``scale``, when ``progress`` of the training, in [0, 1], is done.

        N-FGSM (de Jorge et al. 2022) draws its start from a ball of twice the radius and never projects: what is trained on may be three radii away,
        which is what keeps one step from catastrophic overfitting. The start is clamped to [0, 1] too, as in the official code.
        """
        threat = threat_model(self.norm, self.epsilon * scale)
        if self.kind == "nfgsm":
            return GradientAscent(threat, self.step * scale, 1, start=Linf(_NOISE * self.epsilon * scale), projects=False)
        steps = self.steps_at(progress)
        return GradientAscent(threat, (self._first(steps) if self.falls else self.step) * scale, steps, falls=self.falls)

    def pgd(self) -> PGD:
        """The steps of a pgd, as at the end of the training, against a classifier's labels."""
        assert self.kind == "pgd", "N-FGSM leaves the ball: measure with .measuring()"
        assert not self.falls, "PGD's steps are of one length: measure with .measuring()"
        return PGD(self.epsilon, norm=self.norm, step_size=self.step, steps=self.steps)

    def measuring(self, steps: int = 10) -> "AttackOptions":
        """The same ball, climbed by PGD with ``steps`` of a quarter of the radius: what trains cheaply would measure too little."""
        return replace(self, kind="pgd", step_size=Number(self.epsilon / 4), steps=steps, first_steps=None)

    @property
    def climber(self) -> "AttackOptions":
        """What measures, where the attack that was trained against is to measure as well: itself, or :meth:`measuring` for N-FGSM."""
        return self.measuring() if self.kind == "nfgsm" else self


def share_of_radius(ramp: tuple[float, float], progress: float) -> float:
    """The share of the radius in force when ``progress`` of the training is done.

    Args:
        ramp: Shares of the training with radius 0, and after which the radius is whole; linear between them.
        progress: In [0, 1].
    """
    start, full = ramp
    if progress >= full:
        return 1.0
    return 0.0 if progress <= start else (progress - start) / (full - start)
