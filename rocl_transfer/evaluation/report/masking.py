"""Is a model robust, or are its gradients hidden? Signs of gradient masking (Athalye et al. 2018; Carlini et al. 2019; Croce & Hein 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.evaluation.results import Evaluation

_FALLS = "accuracy falls with epsilon"


@dataclass(frozen=True)
class Check:
    """One sign, looked for.

    Attributes:
        name: What an honest model shows, and no more than what was tested.
        passed: Whether this one does; None if the numbers do not tell.
        detail: A sentence with the numbers.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What the signs are looked for in; accuracies under attack are of the same samples, and None if they were not measured.

    Attributes:
        inspection: What inspecting the model gave.
        pgd: PGD-20 at the radius in question.
        strong: PGD-50 with ten restarts there.
        one_step: One step of length epsilon.
        ensemble: What stands the headline's attacks.
        gradient: What stands those of them that use gradients, where a query attack followed; else None.
        curve: PGD-20 at rising radii.
        huge: APGD at a radius at which any image can be made any other.
        transfers: Attacks made on other models.
        missed: Samples that a transfer broke and the strong attack did not, of each transfer.
        clean: Accuracy before any attack.
    """

    inspection: Inspection
    pgd: Evaluation
    strong: Evaluation
    one_step: Evaluation
    ensemble: Evaluation
    gradient: Evaluation | None
    curve: Sequence[Evaluation]
    huge: Evaluation
    transfers: Sequence[Evaluation] = ()
    missed: Sequence[int] = ()
    clean: Evaluation | None = None


def masking_checks(seen: Evidence) -> list[Check]:
    """Every sign of masking, looked for in the evidence."""
    n = seen.pgd.n
    few = max(0.002 * n, 1)  # 0.2 points; one sample is chance
    checks = [
        *_something(seen, few),
        _gap(seen),
        *_queries(seen, few),
        _falls(seen, few),
        _steps(seen, few),
        _huge(seen),
        _one_step(seen, few),
        _fine(seen),
    ]
    for entry, missed in zip(seen.transfers, seen.missed, strict=True):
        checks.append(
            Check("attacks on other models find no more than attacks on this one", missed <= few,
                  f"{entry.name} broke {missed} of {n} samples that stood PGD-50 with ten restarts on the model itself")
        )  # fmt: skip
    zero = seen.inspection.zero_gradients
    checks.append(Check("gradients are there", zero <= 0.1, f"the loss has no gradient in any pixel for {100 * zero:.1f} % of the images looked at"))
    is_random = seen.inspection.random
    checks.append(
        Check("answers are not random", not is_random, f"two passes over the same images gave {'different' if is_random else 'equal'} logits")
    )
    return checks


def verdict(checks: Sequence[Check]) -> str:
    """masked; not masked; or undecided, where no sign is there and one of them could not be tested."""
    if any(check.passed is False for check in checks):
        return "masked"
    return "undecided" if any(check.passed is None for check in checks) else "not masked"


def _percent(entry: Evaluation) -> str:
    return f"{100 * entry.accuracy:.1f} %"


def _something(seen: Evidence, few: float) -> list[Check]:
    if seen.clean is None or round(seen.clean.accuracy * seen.clean.n) > few:
        return []
    return [Check("there is something to break", None, f"{_percent(seen.clean)} of {seen.clean.n} images are right before any attack")]


def _fine(seen: Evidence) -> Check:
    found = seen.inspection
    said = (
        f"neighbouring numbers at the largest logit lie {100 * found.spacing:.2g} % of an image's spread apart, {100 * found.ties:.0f} % of the "
        f"images looked at have two first classes, the logits of {100 * found.still:.0f} % stay the same when pixels move by 1/255"
    )
    return Check("answers are fine enough for attacks to follow", not found.coarse, said)


def _gap(seen: Evidence) -> Check:
    # AT and RoCL models lose 3 to 14 points from PGD-20 to AutoAttack; masked ones lose almost everything.
    passed = seen.pgd.accuracy - seen.ensemble.accuracy <= max(0.5 * seen.pgd.accuracy, 0.02) or seen.pgd.accuracy < 0.05
    return Check(
        "AutoAttack leaves at least half of what PGD leaves", passed, f"PGD-20 {_percent(seen.pgd)}, {seen.ensemble.name} {_percent(seen.ensemble)}"
    )


def _queries(seen: Evidence, few: float) -> list[Check]:
    if seen.gradient is None:
        return []
    found = round((seen.gradient.accuracy - seen.ensemble.accuracy) * seen.pgd.n)
    said = f"Square broke {found} of {seen.pgd.n} samples that stood gradient attacks"
    return [Check("random search finds no more than gradients", found <= few, said)]


def _falls(seen: Evidence, few: float) -> Check:
    rises = [
        f"{_percent(low)} at {low.epsilon:.4g} and {_percent(high)} at {high.epsilon:.4g}"
        for low, high in pairwise(seen.curve)
        if round((high.accuracy - low.accuracy) * high.n) > few
    ]
    first, last = seen.curve[0], seen.curve[-1]
    said = f"from {_percent(first)} at {first.epsilon:.4g} to {_percent(last)} at {last.epsilon:.4g}"
    if rises:
        return Check(_FALLS, False, f"it rises: {rises[0]}")
    if round(first.accuracy * first.n) <= few:
        return Check(_FALLS, True, f"nothing is left that could fall: {said}")
    # Equal at all radii is what an attack gives that sees nothing, and what a robust model gives at radii that are too small for it.
    falls = round((first.accuracy - last.accuracy) * first.n) > few
    return Check(_FALLS, True if falls else None, said if falls else f"it stays: {said}, so attacks may be blind, or the radii too small to tell")


def _steps(seen: Evidence, few: float) -> Check:
    more = round((seen.strong.accuracy - seen.pgd.accuracy) * seen.pgd.n)
    return Check(
        "more steps and restarts leave no more standing",
        more <= few,
        f"PGD-20 {_percent(seen.pgd)}, PGD-50 with ten restarts {_percent(seen.strong)}",
    )


def _huge(seen: Evidence) -> Check:
    said = f"{_percent(seen.huge)} under {seen.huge.name} at {seen.huge.norm} {seen.huge.epsilon:.4g}"
    return Check("accuracy is near 0 at a huge epsilon", seen.huge.accuracy <= 0.05, said)


def _one_step(seen: Evidence, few: float) -> Check:
    stronger = round((seen.pgd.accuracy - seen.one_step.accuracy) * seen.pgd.n)
    return Check("many steps leave no more standing than one", stronger <= few, f"one step {_percent(seen.one_step)}, PGD-20 {_percent(seen.pgd)}")
