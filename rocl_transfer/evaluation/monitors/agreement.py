"""How like its teacher a student is, without a label: do they give the same answers, and how far does an adversary move the features?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rocl_transfer.attacks import PGD, AttackOptions, against_labels, device_of, frozen
from rocl_transfer.data import Store, derive_seed, generators
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.evaluate import evaluate
from rocl_transfer.evaluation.monitors.features import compute_features
from rocl_transfer.evaluation.options import Context, SearchOptions
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.results import Evaluation, Results
from rocl_transfer.models import PixelModel


def spread(features: Tensor) -> float:
    """Root mean square distance of features (N, D) from their mean: the unit that displacements are given in."""
    return float((features - features.mean(0)).square().sum(1).mean().sqrt())


def _at_once(model: PixelModel) -> int:
    return images_at_once((model.input_size, model.input_size), device_of(model, torch.device("cpu")))


class Watched:
    """A few images and what the teacher makes of them.

    Args:
        teacher: Frozen; a classifier's answers count beside its features.
        images: Where they are.
        positions: Which of them.
        seed: For the random starts of attacks, which are the same each time.
        batch_size: Images at once (default: 128, fewer of large ones).
    """

    def __init__(self, teacher: PixelModel, images: Store, positions: Tensor, seed: int, batch_size: int | None = None) -> None:
        self.images, self.positions, self.seed, self.batch_size = images, positions, seed, batch_size or min(128, _at_once(teacher))
        self.target = compute_features(teacher, images, positions)
        with torch.no_grad():
            self.answers = teacher.head(self.target).argmax(1) if teacher.class_names else None
        self.spread = spread(self.target)
        self.scale = float(self.target.square().sum(1).mean())

    def __len__(self) -> int:
        return len(self.positions)

    @torch.no_grad()
    def measure(self, model: PixelModel, attack: AttackOptions, own: bool = False) -> dict[str, float]:
        """Distances in units of the teacher's spread, and shares of images with the teacher's answer where it has classes.

        Args:
            model: If it has not the teacher's width, so that features cannot be compared, distances are left out.
            attack: Climbs the distance of the features; and, against the teacher's answer, the cross-entropy.
            own: Measure how far an adversary moves the features from the model's own of the clean image, not from the teacher's.

        Returns:
            ``drift`` (clean features from the teacher's), ``displacement`` (adversarial ones), ``spread`` (of the model's features, as a share of the
            teacher's) and, for classifiers, ``agreement`` and ``robust_agreement``.
        """
        found: list[tuple[Tensor, ...]] = []
        plan = self.positions.split(self.batch_size)
        with frozen(model), full_precision():
            for number, (batch, target) in enumerate(zip(self.images.batches(plan), self.target.split(self.batch_size), strict=True)):
                images = batch.float() / 255
                clean = model.features(images)
                aim = clean if own else target
                moved = model.features(self._moved(model, images, aim, attack, number))
                parts = (clean, (clean - target).norm(dim=1), (moved - aim).norm(dim=1))
                found.append((*parts, *self._answered(model, images, clean, attack, number)))
        clean, drift, displacement, *agreement = (torch.cat(part) for part in zip(*found, strict=True))
        seen = {"drift": drift.mean(), "displacement": displacement.mean()}
        values = {name: float(value) / max(self.spread, 1e-12) for name, value in seen.items()}
        shares = {name: float(part.float().mean()) for name, part in zip(("agreement", "robust_agreement"), agreement, strict=False)}
        return {**values, "spread": spread(clean) / max(self.spread, 1e-12), **shares}

    def _moved(self, model: PixelModel, images: Tensor, aim: Tensor, attack: AttackOptions, number: int) -> Tensor:
        draws = generators([derive_seed(self.seed, number)], "displacement", images.device)
        return attack.ascent()(images, lambda x: (model.features(x) - aim).square().sum(), draws)

    def _answered(self, model: PixelModel, images: Tensor, clean: Tensor, attack: AttackOptions, number: int) -> tuple[Tensor, ...]:
        if self.answers is None or not model.class_names:
            return ()
        answers = self.answers.split(self.batch_size)[number]
        draws = generators([derive_seed(self.seed, number)], "answers", images.device)
        attacked = against_labels(attack.ascent(), model, images, answers, draws)
        same = model.head(clean).argmax(1) == answers
        return same, same & (model(attacked).argmax(1) == answers)


class StudentMonitor:
    """How a student in training is watched, without labels.

    Args:
        student: Gives the model to look at.
        watched: Images, and the teacher's view of them.
        attack: What is climbed each time.
    """

    def __init__(self, student: Callable[[], PixelModel], watched: Watched, attack: AttackOptions) -> None:
        self.student, self.watched, self.attack = student, watched, attack

    def __call__(self) -> dict[str, float]:
        """See :meth:`Watched.measure`, under names that begin with ``validation_``."""
        return {f"validation_{name}": value for name, value in self.watched.measure(self.student(), self.attack).items()}


@dataclass(frozen=True)
class BeforeAfter:
    """What a twin is measured on, and against.

    Args:
        images: The images.
        positions: Those measured.
        labels: (N,) of all images as the model counts its classes; None if there are none that it knows.
        attacks: Against the labels.
        agreement: Against the teacher's answers.
        seed: For the random starts.
        batch_size: Images attacked at once (default: by their pixels, so that two runs evaluate alike).
    """

    images: Store
    positions: Tensor
    labels: Tensor | None
    attacks: Sequence[PGD]
    agreement: PGD
    seed: int
    batch_size: int | None

    def accuracies(self, model: PixelModel) -> Results | None:
        """Accuracy of a classifier, if there are labels: clean, and under the attacks."""
        return None if self.labels is None or not model.class_names else self._measured(model, self.labels, self.attacks)

    def agreements(self, model: PixelModel, teacher: PixelModel) -> list[Evaluation]:
        """Shares of images that get the teacher's answer: clean, and under PGD on that answer; nothing if one of them has no classes."""
        if not (model.class_names and teacher.class_names):
            return []
        with torch.no_grad():
            given = teacher.head(compute_features(teacher, self.images, self.positions)).argmax(1).cpu()
        answers = torch.zeros(len(self.images), dtype=torch.long)
        answers[self.positions] = given
        return self._measured(model, answers, [self.agreement]).evaluations

    def _measured(self, model: PixelModel, labels: Tensor, attacks: Sequence[PGD]) -> Results:
        at_once = self.batch_size or _at_once(model)
        return evaluate(
            model, self.images, labels, attacks=attacks, samples=self.positions, seed=self.seed, search=SearchOptions(batch_size=at_once),
            context=Context(progress=True, say_doubts=False),
        )  # fmt: skip
