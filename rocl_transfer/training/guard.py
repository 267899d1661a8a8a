"""When a run is dead, said in a sentence: the field prints such runs as results (RobustGenBench: 250 of 480 short robust fine-tunings)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from rocl_transfer.training.chance import FEWEST, could_have_learned, images_needed

ValidationResult = Mapping[str, Any]
CONSTANT = 0.02  # of the teacher's spread: a student's features vary no more


class Collapse(Exception):  # noqa: N818 - not an error of the program's
    """Training died.

    Args:
        sentence: How it showed, and what to change.
        curable: Whether going back and learning more slowly may help.
    """

    def __init__(self, sentence: str, curable: bool = True) -> None:
        super().__init__(sentence)
        self.curable = curable


@dataclass(frozen=True)
class Recovery:
    """What is tried before a run is given up.

    Args:
        rollbacks: How often a dead run goes back to its last good checkpoint.
        lowering: Factor on the learning rate at each of them.
        skips: Steps in a row whose loss or gradient may be not finite; such steps are skipped.
    """

    rollbacks: int = 2
    lowering: float = 0.3
    skips: int = 2


class Judge(Protocol):
    """Whatever judges a run by its validation results, epoch by epoch."""

    @property
    def blindness(self) -> str | None:
        """A sentence where there are too few images to tell a dead run; None else."""

    def best(self, results: Sequence[ValidationResult], among: Sequence[ValidationResult] | None = None) -> ValidationResult | None:
        """The best of those ``among`` all (default: all) that are not dead."""

    def overfitting(self, best: ValidationResult, last: ValidationResult) -> str | None:
        """A sentence where the end is worse than the best by more than chance; None else."""

    def judge(self, results: Sequence[ValidationResult], ended: bool) -> None:
        """Raise :class:`Collapse` where the run is dead."""


@dataclass(frozen=True)
class Guard:
    """Judges a classifier's training by its validation results, epoch by epoch.

    That is ``validation_accuracy``, ``validation_recall`` (its mean over the classes), ``validation_majority`` (share of the commonest answer) and,
    where ``robust``, ``validation_robust_accuracy`` and ``validation_robust_recall``.

    Args:
        classes: K.
        images: How many the monitor sees.
        robust: Whether robustness is trained for.
        watched: What the images are: validation, or training images if there are none.
        grace: Epochs before a run can be dead: warm-up, ramp, a slow start.
        whole: The first epoch that is trained against the whole epsilon; robust accuracy that a start had before it may be lost.
        worth: How many images of equally large classes tell as much (default: ``images``); see :func:`~rocl_transfer.training.chance.worth`.
        remedy: What to change where accuracy is at chance (default: what helps fine-tuning).
    """

    classes: int
    images: int
    robust: bool
    watched: str = "validation"
    grace: int = 0
    whole: int = 0
    worth: float | None = None
    remedy: str | None = None

    @property
    def evidence(self) -> float:
        """How many images the verdicts rest on."""
        return self.images if self.worth is None else self.worth

    @property
    def blindness(self) -> str | None:
        """A sentence where there are too few images to tell a dead run; None else."""
        needed = images_needed(self.classes)
        if self.evidence >= needed:
            return None
        few = f"{self.images} {self.watched} images" + ("" if self.evidence > 0.9 * self.images else ", few of some classes,")
        sign = "one answer for all of them or a" if self.evidence >= FEWEST else "a"
        more = "" if self.watched != "validation" else "; --data.validation_fraction gives more"
        return (
            f"{few} are too few to tell accuracy at chance from learning (about {needed} would do for {self.classes} classes of equal size): "
            f"{sign} loss that is not finite ends this run, chance does not{more}"
        )

    @property
    def metric(self) -> str:
        """What the best epoch is chosen by: the mean over the classes, or one answer for all would win on unbalanced data."""
        return "validation_robust_recall" if self.robust else "validation_recall"

    def best(self, results: Sequence[ValidationResult], among: Sequence[ValidationResult] | None = None) -> ValidationResult | None:
        """The result with the best metric, of those ``among`` all (default: all) that are not dead; ties go to more right clean images."""
        alive = [result for result in (results if among is None else among) if self._symptom(result, results) is None]
        return max(alive, key=lambda result: (result[self.metric], result["validation_accuracy"]), default=None)

    def overfitting(self, best: ValidationResult, last: ValidationResult) -> str | None:
        """A sentence where robust accuracy has fallen since its best (Rice et al. 2020) by two points and more than chance; None else."""
        if not self.robust or self.watched != "validation":
            return None
        top, end = best["validation_robust_accuracy"], last["validation_robust_accuracy"]
        if top - end < 0.02 + math.sqrt(top * (1 - top) / self.images):
            return None
        return (
            f"robust overfitting: {100 * top:.1f} % of the validation images were robust at epoch {best['epoch']}, {100 * end:.1f} % at the last one "
            f"({last['epoch']}); fewer --epochs, --awp_gamma 0.005 or --ema_decay 0.999 work against it"
        )

    def judge(self, results: Sequence[ValidationResult], ended: bool) -> None:
        """Raise :class:`Collapse` if the run is dead: for three validations in a row after the grace, or at the end of the training."""
        last = [result for result in results if result["epoch"] >= self.grace][-3:]
        if not last or (len(last) < 3 and not ended):
            return
        where = f"at step {last[-1]['step']}, epoch {last[-1]['epoch']}: "
        symptoms = [self._symptom(result, results) for result in last]
        if symptoms[-1] is not None and (ended or all(symptoms)):
            raise Collapse(f"training is dead {where}{symptoms[-1]}")
        clean = 100 * last[-1]["validation_accuracy"]
        # None of 30 images: with 95 % confidence fewer than one in ten.
        if self.robust and ended and last[-1]["validation_robust_accuracy"] == 0 and clean * self.images >= 100 * 30:
            # Nothing collapsed, or two validations would have shown it; learning more slowly would not bring it.
            raise Collapse(
                f"training ended without success {where}not one of {self.images} {self.watched} images is classified robustly, with a clean accuracy "
                f"of {clean:.1f} %: start from a robust backbone, lower --attack.epsilon, raise --optimizer.lr, or train longer (--epochs)",
                curable=False,
            )

    def _symptom(self, result: ValidationResult, results: Sequence[ValidationResult]) -> str | None:
        recall, chance = result["validation_recall"], 1 / self.classes
        clean = result["validation_accuracy"]
        # One-sided 95 %: a few images more than guessing are no sign of life; but few images are no sign of death either.
        margin = min(1.645 * math.sqrt(chance * (1 - chance) / self.evidence), chance / 4)
        # Of one class alone, one answer may be all right.
        if result["validation_majority"] == 1.0 and recall <= 1 / 2 and self.evidence >= FEWEST:
            longer = "train longer with a longer warm-up (--class_balanced true where the classes are unbalanced)"
            return (
                f"every one of {self.images} {self.watched} images is given the same class (constant predictions): "
                f"{self.remedy or f'lower --optimizer.lr, or {longer}'}"
            )
        if recall < chance + margin and not could_have_learned(recall, self.evidence, self.classes):
            return (
                f"accuracy is at chance ({100 * recall:.1f} % averaged over {self.classes} classes, guessing gives {100 * chance:.1f} %): "
                f"{self.remedy or 'lower --optimizer.lr, train longer (--epochs), or start from a pre-trained backbone'}"
            )
        if not self.robust:
            return None
        robust = result["validation_robust_accuracy"]
        # Before the whole epsilon, and where all get one answer, robust accuracy is no achievement that could be lost.
        before = [
            other
            for other in results
            if other["step"] < result["step"] and other["epoch"] >= self.whole and other["validation_recall"] >= chance + margin
        ]
        peak = max((other["validation_robust_accuracy"] for other in before), default=0.0)
        # From twice what guessing gives to less than guessing is as dead: one answer for all images would stand more.
        lost = max(peak / 4, chance if peak >= 2 * chance else 0.0)
        # Three standard errors of the difference, so that small validation sets do not cry wolf.
        if robust < lost and (peak - robust) > 3 * math.sqrt(2 * peak * (1 - peak) / self.images):
            return (
                f"robust accuracy fell from {100 * peak:.1f} to {100 * robust:.1f} % while clean accuracy is {100 * clean:.1f} % (catastrophic "
                "overfitting): attack in more steps (--attack.kind pgd with more --attack.steps) or smaller ones (--attack.step_size), "
                "or lower --optimizer.lr"
            )
        return None


@dataclass(frozen=True)
class StudentGuard:
    """Judges a student's training, without labels, by validation results on its likeness to the teacher.

    That is ``validation_drift``, ``validation_displacement`` and ``validation_spread`` (in units of the teacher's spread) and, where there are
    classes, ``validation_agreement``.

    Args:
        images: How many the monitor sees.
        classes: K of the teacher; 0 if it has none.
        grace: Epochs before a run can be dead: a warm-up, a slow start.
        start: The drift before the training; a student of another network's begins far from it, and is dead where it comes no nearer.
    """

    images: int
    classes: int
    grace: int = 0
    start: float = 0.0

    blindness: ClassVar[str | None] = None  # features can be judged on any number of images

    def best(self, results: Sequence[ValidationResult], among: Sequence[ValidationResult] | None = None) -> ValidationResult | None:
        """The result whose adversarial features are nearest to the teacher's, of those that are not dead."""
        alive = [result for result in (results if among is None else among) if self._symptom(result) is None]
        return min(alive, key=lambda result: float(result["validation_displacement"]), default=None)

    def overfitting(self, best: ValidationResult, last: ValidationResult) -> str | None:
        """None: a student has no labels to overfit to."""

    def judge(self, results: Sequence[ValidationResult], ended: bool) -> None:
        """Raise :class:`Collapse` if the run is dead: for three validations in a row after the grace, or at the end of the training."""
        last = [result for result in results if result["epoch"] >= self.grace][-3:]
        symptoms = [self._symptom(result) for result in last]
        if symptoms and symptoms[-1] is not None and (ended or (len(last) == 3 and all(symptoms))):
            raise Collapse(f"training is dead at step {last[-1]['step']}, epoch {last[-1]['epoch']}: {symptoms[-1]}: lower --optimizer.lr")

    def _symptom(self, result: ValidationResult) -> str | None:
        if result["validation_spread"] < CONSTANT:
            spread = f"{100 * result['validation_spread']:.2g} % of the teacher's spread"
            return f"the features of {self.images} images have become nearly constant ({spread})"
        agreement = result.get("validation_agreement")
        if agreement is not None and not could_have_learned(agreement, self.images, self.classes):
            numbers = f"{100 * agreement:.1f} % of {self.images} images get them, guessing gives {100 / self.classes:.1f} %"
            return f"the teacher's answers are lost ({numbers})"
        drift = result["validation_drift"]
        if agreement is None and drift > 1 and drift >= self.start:
            began = f", and no nearer than at the start ({self.start:.2f})" if self.start else ""
            return f"the student is farther from its teacher on clean images ({drift:.2f} of the spread) than images are from each other{began}"
        return None
