"""The attacks that go by one name, and the PGD that a run is measured with when its training has ended."""

from dataclasses import dataclass
from typing import Literal

from rocl_transfer.attacks import APGD, FAB, PGD, Attack, AttackOptions, Square
from rocl_transfer.attacks.reference import PARTS, Reference
from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.options import Number, require, was_given

TARGETS = {"linf": 9, "l2": 9, "l1": 5}  # of APGD-T in the standard version; FAB-T has 9 in every norm
RESTARTS = {"linf": 1, "l2": 1, "l1": 5}  # of APGD-CE


@dataclass(frozen=True)
class Ensemble:
    """Attacks one after the other, each on the samples that stood all before; a sample counts as robust where it stands them all.

    Attributes:
        name: What results call it.
        attacks: In order.
        version: What results say of how it relates to others' of that name.
    """

    name: str
    attacks: tuple[Attack, ...]
    version: str

    @property
    def norm(self) -> str:
        """Norm of every part."""
        return self.attacks[0].norm

    @property
    def epsilon(self) -> float:
        """Radius of every part."""
        return float(self.attacks[0].epsilon)


def parts_of(attack: Attack | Ensemble) -> tuple[Attack, ...]:
    """The attacks of an ensemble; an attack alone is its own part."""
    return attack.attacks if isinstance(attack, Ensemble) else (attack,)


NAMES = ("paper", "fast", "standard", "strong-pgd")


def named_attacks(name: str, epsilon: float, norm: str, classes: int, engine: str = "native") -> list[Attack | Ensemble]:
    """What ``name`` stands for.

    ``standard`` is AutoAttack's standard version: APGD-CE, APGD-T, FAB-T, Square. ``fast`` is its first two parts, which decide almost every sample.
    ``paper`` is RoCL's PGD-20 with steps of epsilon / 10. ``strong-pgd`` is PGD-50 with ten restarts.

    Args:
        name: One of ``NAMES``.
        epsilon: Radius in [0, 1] pixel units.
        norm: linf, l2 or l1.
        classes: K. Below ten there are fewer targets, below four another loss: the result is then labelled "adapted".
        engine: native, or reference (pyautoattack), which has the standard version alone.

    Raises:
        UserError: There is no such name, or the reference cannot run it.
    """
    if engine == "reference":
        if name != "standard":
            raise UserError(f"the reference engine has no attacks {name!r}: give standard, or take the native engine")
        if classes < 10:
            raise UserError(f"the reference AutoAttack fails with fewer than 10 classes ({classes} here): take the native engine, which adapts")
        return [Ensemble("autoattack", tuple(Reference(part, epsilon, norm) for part in PARTS), "standard, reference")]
    if name == "paper":
        return [PGD(epsilon, steps=20, norm=norm)]
    if name == "strong-pgd":
        return [PGD(epsilon, steps=50, norm=norm, restarts=10)]
    if name not in NAMES:
        raise UserError(f"there are no attacks {name!r}{did_you_mean(name, NAMES)}: give {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    rivals = classes - 1
    gradient = (APGD(epsilon, norm, restarts=RESTARTS[norm]), APGD(epsilon, norm, targets=min(TARGETS[norm], rivals)))
    adapted = f"adapted, K = {classes}" if rivals < 9 else ""
    if name == "fast":
        return [Ensemble("autoattack-fast", gradient, ", ".join(filter(None, ["APGD-CE and APGD-T alone", adapted])))]
    version = adapted or "standard"
    return [Ensemble("autoattack", (*gradient, FAB(epsilon, norm, targets=min(9, rivals)), Square(epsilon, norm)), version)]


@dataclass(frozen=True, kw_only=True)
class PGDOptions:
    """How robustness is measured: PGD with steps of epsilon / 10 and a random start, on the whole test split.

    Args:
        norm: Norm of the ball: linf or l2.
        epsilons: Radii (default: the paper's two, 8/255, which it trains against, and 16/255); equal ones are measured once.
        steps: Gradient steps of PGD.
        batch_size: Images attacked at once (default: chosen by their size); the verdicts do not depend on it.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilons: tuple[Number, ...] = (Number(8 / 255), Number(16 / 255))
    steps: int = 20
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require(len(self.epsilons) > 0 and all(e > 0 for e in self.epsilons), "--evaluation.epsilons must be radii above 0, such as [8/255]")
        above = self.norm == "linf" and max(self.epsilons) > 1
        require(not above, "--evaluation.epsilons has one above 1: pixels are in [0, 1], so write 8/255 rather than 8")
        given = self.norm != "l2" or was_given(self.epsilons, PGDOptions.epsilons)
        require(given, "the default --evaluation.epsilons are meant for linf: give radii with l2, such as [0.25, 0.5] at 32 px")
        require(
            self.steps > 0 and (self.batch_size is None or self.batch_size > 0), "--evaluation.steps and --evaluation.batch_size must be 1 or more"
        )

    def attacks(self) -> list[PGD]:
        """One for each radius."""
        return [PGD(epsilon, norm=self.norm, steps=self.steps) for epsilon in self.epsilons]


@dataclass(frozen=True, kw_only=True)
class AdaptationPGDOptions:
    """How robustness is measured: PGD in the attack's norm with steps of epsilon / 10 and a random start, on the whole test split.

    Args:
        epsilons: Radii (default: half of the attack's, the attack's, and twice it).
        steps: Gradient steps of PGD.
        batch_size: Images attacked at once (default: chosen by their size); the verdicts do not depend on it.
    """

    epsilons: tuple[Number, ...] | None = None
    steps: int = 20
    batch_size: int | None = None

    def against(self, attack: AttackOptions) -> PGDOptions:
        """With norm and radii of the attack that was trained against."""
        radii = self.epsilons or (attack.epsilon / 2, float(attack.epsilon), attack.epsilon * 2)
        return PGDOptions(norm=attack.norm, epsilons=radii, steps=self.steps, batch_size=self.batch_size)
