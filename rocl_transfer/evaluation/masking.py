"""Is a model robust, or are its gradients hidden? Signs of gradient masking (Athalye et al. 2018; Carlini et al. 2019; Croce & Hein 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.evaluation.results import Evaluation


@dataclass(frozen=True)
class Check:
    """One sign, looked for.

    Attributes:
        name: What an honest model shows.
        passed: Whether this one does.
        detail: A sentence with the numbers.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What the signs are looked for in; accuracies under attack are of the same samples, and None where they were not measured.

    Attributes:
        inspection: Of the model.
        pgd: PGD-20 at the radius in question.
        strong: PGD-50 with ten restarts there.
        one_step: One step of length epsilon.
        ensemble: What stands the headline's attacks.
        gradient: What stands those of them that use gradients, where a query attack followed; else None.
        curve: PGD-20 at rising radii.
        huge: APGD at a radius at which any image can be made any other.
        transfers: Attacks made on other models.
        missed: Samples that a transfer broke and the strong attack did not, of each transfer.
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


def masking_checks(seen: Evidence) -> list[Check]:
    """Every sign of masking, looked for in the evidence."""
    n = seen.pgd.n
    few = max(0.002 * n, 1)  # 0.2 points; one sample is chance
    checks = [_gap(seen), *_queries(seen, few), _falls(seen, few), _steps(seen, few), _huge(seen), _one_step(seen, few)]
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
    """masked, or not masked."""
    return "not masked" if all(check.passed for check in checks) else "masked"


def _percent(entry: Evaluation) -> str:
    return f"{100 * entry.accuracy:.1f} %"


def _gap(seen: Evidence) -> Check:
    # AT and RoCL models lose 3 to 14 points from PGD-20 to AutoAttack; masked ones lose almost everything.
    passed = seen.pgd.accuracy - seen.ensemble.accuracy <= max(0.5 * seen.pgd.accuracy, 0.02) or seen.pgd.accuracy < 0.05
    return Check("AutoAttack finds little more than PGD", passed, f"PGD-20 {_percent(seen.pgd)}, {seen.ensemble.name} {_percent(seen.ensemble)}")


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
    said = f"it does not: {rises[0]}" if rises else f"from {_percent(seen.curve[0])} to {_percent(seen.curve[-1])} over {len(seen.curve)} radii"
    return Check("accuracy falls with epsilon", not rises, said)


def _steps(seen: Evidence, few: float) -> Check:
    more = round((seen.strong.accuracy - seen.pgd.accuracy) * seen.pgd.n)
    return Check("accuracy falls with steps", more <= few, f"PGD-20 {_percent(seen.pgd)}, PGD-50 with ten restarts {_percent(seen.strong)}")


def _huge(seen: Evidence) -> Check:
    said = f"{_percent(seen.huge)} under {seen.huge.name} at {seen.huge.norm} {seen.huge.epsilon:.4g}"
    return Check("accuracy is near 0 at a huge epsilon", seen.huge.accuracy <= 0.05, said)


def _one_step(seen: Evidence, few: float) -> Check:
    stronger = round((seen.pgd.accuracy - seen.one_step.accuracy) * seen.pgd.n)
    return Check("many steps are stronger than one", stronger <= few, f"one step {_percent(seen.one_step)}, PGD-20 {_percent(seen.pgd)}")
