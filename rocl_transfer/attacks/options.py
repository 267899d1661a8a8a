"""The options of an attack, for whoever trains or measures against one."""

from dataclasses import dataclass
from typing import Literal

from rocl_transfer.attacks.pgd import PGD, Ascent
from rocl_transfer.attacks.threat_models import threat_model
from rocl_transfer.options import Number, require, spelled


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
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
        require(0 < self.epsilon < float("inf"), f"an attack's epsilon is {self.epsilon}: give a radius above 0, such as 8/255")
        in_range = self.norm != "linf" or self.epsilon <= 1
        require(in_range, f"an attack's epsilon is {self.epsilon}: pixels are in [0, 1], so write 8/255 rather than 8")
        given = self.norm != "l2" or self.epsilon != AttackOptions.epsilon
        require(given, "the default epsilon 0.0314 is meant for linf: give a radius with l2, such as 0.5 at 32 px")
        require(self.step_size is None or self.step_size > 0, f"an attack's step_size is {self.step_size}: give a length above 0")
        require(self.steps > 0, f"an attack's steps is {self.steps}: give 1 or more")

    @property
    def step(self) -> float:
        """The step size in force; not resolved in place, so that an override of epsilon alone also moves the step."""
        return self.step_size if self.step_size is not None else round(self.epsilon * 0.007 / 0.0314, 9)

    @property
    def words(self) -> str:
        """The attack on a card: ``linf 0.03137 = 8/255 (10 steps)``."""
        fraction = f" = {spelled(self.epsilon)}" if "/" in spelled(self.epsilon) else ""
        return f"{self.norm} {self.epsilon:.4g}{fraction} ({self.steps} steps)"

    def ascent(self, scale: float = 1.0) -> Ascent:
        """The gradient ascent, with radius and step times ``scale``."""
        return Ascent(threat_model(self.norm, self.epsilon * scale), self.step * scale, self.steps)

    def pgd(self) -> PGD:
        """The same steps against a classifier's labels."""
        return PGD(self.epsilon, norm=self.norm, step_size=self.step, steps=self.steps)


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
