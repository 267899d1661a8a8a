"""How a classifier in training is watched: accuracy, clean and under attack, on held-out images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import PGD, frozen
from rocl_transfer.data import Store, derive_seed, generators
from rocl_transfer.evaluation.precision import full_precision


class ClassifierMonitor:
    """Accuracies on the same images and, under attack, from the same random starts each time.

    Args:
        classifier: Gives the network to look at: images (N, 3, H, W) in [0, 1] -> logits (N, K).
        images: Held-out images.
        labels: (N,).
        attack: None where robustness is not trained for.
        seed: Of the random starts.
        positions: Of the images looked at (default: all).
        batch_size: Images at once.
    """

    def __init__(
        self,
        classifier: Callable[[], nn.Module],
        images: Store,
        labels: Tensor,
        attack: PGD | None,
        seed: int,
        positions: Tensor | None = None,
        batch_size: int = 256,
    ) -> None:
        self.classifier, self.images, self.attack = classifier, images, attack
        self.positions = torch.arange(len(images)) if positions is None else positions
        self.labels = labels[self.positions]
        self.seed, self.batch_size = seed, batch_size

    def __call__(self) -> dict[str, float]:
        """Accuracy, clean and under attack; their means over the classes (recall); share of the commonest answer."""
        answers, robust = self._answers()
        right = answers == self.labels
        seen = {
            "validation_accuracy": right.float().mean().item(),
            "validation_recall": self._recall(right),
            "validation_majority": answers.bincount().max().item() / len(answers),
        }
        if self.attack is None:
            return seen
        right &= robust
        return {**seen, "validation_robust_accuracy": right.float().mean().item(), "validation_robust_recall": self._recall(right)}

    def _recall(self, right: Tensor) -> float:
        return torch.stack([right[self.labels == label].float().mean() for label in self.labels.unique()]).mean().item()

    @torch.no_grad()
    def _answers(self) -> tuple[Tensor, Tensor]:
        """The class given to each clean image, and whether it is still the right one under attack."""
        model, answers, robust = self.classifier(), [], []
        plan, truth = self.positions.split(self.batch_size), self.labels.split(self.batch_size)
        with frozen(model), full_precision():
            for chosen, labels, batch in zip(plan, truth, self.images.stream(plan), strict=True):
                images, labels = batch.float() / 255, labels.to(batch.device)
                answers.append(model(images).argmax(1))
                if self.attack is not None:
                    draws = generators([derive_seed(self.seed, int(chosen[0]))], "monitor", batch.device)
                    images = self.attack(model, images, labels, draws)
                    robust.append(model(images).argmax(1) == labels)
        return torch.cat(answers).cpu(), torch.cat(robust).cpu() if robust else torch.empty(0)
