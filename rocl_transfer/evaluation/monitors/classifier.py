"""How a classifier in training is watched: accuracy, clean and under attack, on held-out images."""

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import PGD, frozen
from rocl_transfer.data import ImageData, Store, derive_seed, generators, labels_of, stratified_sample
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.monitors.features import compute_features
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.models import PixelModel
from rocl_transfer.training.chance import images_needed, worth

log = logging.getLogger("rocl_transfer")
_WATCHED = 512  # training images, if there are none for validation
_VALIDATED = 1000  # of 45,000 training images PGD-10 on so many costs a tenth of an epoch of N-FGSM, and 2 % of one of TRADES


def choose_watched(data: ImageData, count: int | None, seed: int) -> tuple[Literal["train", "validation"], Tensor]:
    """The split that a classifier in training is validated on, and the positions of its images, the same each time.

    Args:
        data: Labelled; if it has no validation images, up to 512 training images are watched.
        count: Validation images, stratified by class (default: 1,000, or as many as a verdict of the guard needs with many classes).
        seed: Draws the sample.
    """
    if data.validation is None or data.validation.labels is None:
        positions = torch.linspace(0, len(data.train) - 1, min(_WATCHED, len(data.train))).long()
        log.info("there are no validation images: %d training images are watched, and the last epoch is exported", len(positions))
        return "train", positions
    count = max(_VALIDATED, images_needed(len(data.class_names))) if count is None else count
    positions = stratified_sample(data.validation.labels, count, seed)
    if len(positions) < len(data.validation):
        log.info("%d of %d validation images are looked at, in proportion to the classes: --monitor_images", len(positions), len(data.validation))
    return "validation", positions


class ClassifierMonitor:
    """Accuracies on the same images and, under attack, from the same random starts each time.

    Args:
        classifier: Gives the network to look at: images (N, 3, H, W) in [0, 1] -> logits (N, K).
        images: Held-out images.
        labels: (N,).
        attack: None if robustness is not trained for.
        seed: For the random starts.
        positions: Positions of the images that are validated on (default: all).
        batch_size: Images at once (default: by their pixels).
    """

    def __init__(
        self,
        classifier: Callable[[], nn.Module],
        images: Store,
        labels: Tensor,
        attack: PGD | None,
        seed: int,
        positions: Tensor | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.classifier, self.images, self.attack = classifier, images, attack
        self.positions = torch.arange(len(images)) if positions is None else positions
        self.labels = labels[self.positions]
        self.seed, self.batch_size = seed, batch_size

    def __call__(self) -> dict[str, float]:
        """Accuracy, clean and under attack; their means over the classes (recall); share of the commonest answer."""
        answers, robust = self._answers()
        seen = _seen(answers, self.labels)
        if self.attack is None:
            return seen
        right = (answers == self.labels) & robust
        return {**seen, "validation_robust_accuracy": right.float().mean().item(), "validation_robust_recall": _recall(right, self.labels)}

    @property
    def worth(self) -> float:
        """See :func:`~rocl_transfer.training.chance.worth`."""
        return worth(_counts(self.labels))

    @torch.no_grad()
    def _answers(self) -> tuple[Tensor, Tensor]:
        """The class given to each clean image, and whether it is still the right one under attack."""
        model, answers, robust = self.classifier(), [], []
        if self.batch_size is None:
            first = next(iter(self.images.batches([self.positions[:1]])))
            self.batch_size = images_at_once(first.shape, first.device)
        plan, truth = self.positions.split(self.batch_size), self.labels.split(self.batch_size)
        with frozen(model), full_precision():
            for chosen, labels, batch in zip(plan, truth, self.images.batches(plan), strict=True):
                images, labels = batch.float() / 255, labels.to(batch.device)
                answers.append(model(images).argmax(1))
                if self.attack is not None:
                    draws = generators([derive_seed(self.seed, int(chosen[0]))], "monitor", batch.device)
                    images = self.attack.perturb(model, images, labels, draws)
                    robust.append(model(images).argmax(1) == labels)
        return torch.cat(answers).cpu(), torch.cat(robust).cpu() if robust else torch.empty(0)


class HeadMonitor:
    """How a head on a frozen backbone is watched: the features of the held-out images are computed once.

    Where there are no validation images, up to 512 training images are watched.

    Args:
        classifier: Its head trains.
        data: The images' labels.
        stores: The images, by split; those of validation are taken out.
    """

    def __init__(self, classifier: PixelModel, data: ImageData, stores: dict[str, Store]) -> None:
        split, positions = choose_watched(data, None if data.validation is None else len(data.validation), seed=0)
        store = stores["train"] if split == "train" else stores.pop("validation")
        self.head, self.watched = classifier.head, "training" if split == "train" else "validation"
        self.features = compute_features(classifier, store, positions)
        self.labels = labels_of(data.train if split == "train" else data.validation)[positions].to(self.features.device)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Accuracy; its mean over the classes (recall); share of the commonest answer."""
        return _seen(self.head(self.features).argmax(1), self.labels)

    @property
    def worth(self) -> float:
        """See :func:`~rocl_transfer.training.chance.worth`."""
        return worth(_counts(self.labels))


def _seen(answers: Tensor, labels: Tensor) -> dict[str, float]:
    right = answers == labels
    return {
        "validation_accuracy": right.float().mean().item(),
        "validation_recall": _recall(right, labels),
        "validation_majority": answers.bincount().max().item() / len(answers),
    }


def _recall(right: Tensor, labels: Tensor) -> float:
    return torch.stack([right[labels == label].float().mean() for label in labels.unique()]).mean().item()


def _counts(labels: Tensor) -> list[int]:
    return [count for count in labels.bincount().tolist() if count]
