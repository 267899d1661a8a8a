"""What a frozen backbone makes of images, and how well neighbours in that space share a class."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.attacks import device_of, frozen
from rocl_transfer.data import Store
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.doubts import weakness
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.results import Evaluation, wilson_interval
from rocl_transfer.models import PixelModel


@torch.no_grad()
def compute_features(model: PixelModel, images: Store, positions: Tensor | None = None, batch_size: int | None = None) -> Tensor:
    """Features (N, D) of the images at ``positions`` (default: all), float32, in eval mode; the model is left as it came in."""
    positions = torch.arange(len(images)) if positions is None else positions
    # Without gradient a pass holds little of what it does.
    at_once = batch_size or 2 * images_at_once((model.input_size, model.input_size), device_of(model, torch.device("cpu")))
    with frozen(model), full_precision():
        return torch.cat([model.features(batch.float() / 255) for batch in images.batches(positions.split(at_once))])


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, neighbours: int = 20, temperature: float = 0.07) -> float:
    """Share of queries whose nearest neighbours vote for their class (weighted kNN, Wu et al. 2018).

    Args:
        bank: (M, D) features with known classes.
        bank_labels: (M,).
        queries: (N, D) held-out features.
        labels: (N,).
        neighbours: How many of the bank vote, by cosine similarity s with weight exp(s / ``temperature``).
        temperature: See ``neighbours``.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    classes = int(max(bank_labels.max(), labels.max())) + 1
    right = 0
    for part, truth in zip(queries.split(1024), labels.split(1024), strict=True):
        similarity, nearest = (part @ bank.T).topk(min(neighbours, len(bank)))
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, bank_labels.to(part.device)[nearest], (similarity / temperature).exp())
        right += int((votes.argmax(1) == truth.to(part.device)).sum())
    return right / len(queries)


class NeighbourMonitor:
    """kNN accuracy on held-out images: how training without labels is watched.

    Args:
        model: The backbone in training.
        bank: Training images; at most 10,000 of them vote, evenly spaced, so that sorted classes all have a voice.
        bank_labels: (M,).
        queries: Held-out images.
        labels: (N,).
    """

    def __init__(self, model: PixelModel, bank: Store, bank_labels: Tensor, queries: Store, labels: Tensor) -> None:
        self.model, self.bank, self.queries, self.labels = model, bank, queries, labels
        self.voters = torch.linspace(0, len(bank) - 1, min(10_000, len(bank))).long()
        self.voters_labels = bank_labels[self.voters]

    def __call__(self) -> dict[str, float]:
        """The accuracy as it stands."""
        bank, queries = compute_features(self.model, self.bank, self.voters), compute_features(self.model, self.queries)
        return {"knn_accuracy": knn_accuracy(bank, self.voters_labels, queries, self.labels)}

    def doubts(self, measured: Evaluation) -> list[str]:
        """Why the accuracy does not mean what it seems to."""
        counts = self.labels.bincount()
        classes = int(max(self.voters_labels.max(), self.labels.max())) + 1
        right, commonest = round(measured.accuracy * measured.n), int(counts.argmax())
        weak = weakness("kNN accuracy", right, measured.n, classes, int(counts.max()) / measured.n, f"class {commonest}")
        return [weak] if weak else []

    def measure(self) -> Evaluation:
        """The accuracy for the results record."""
        began, n = time.perf_counter(), len(self.queries)
        accuracy = self()["knn_accuracy"]
        interval = wilson_interval(round(accuracy * n), n)
        return Evaluation(name="kNN", accuracy=accuracy, interval=interval, n=n, seconds=round(time.perf_counter() - began, 3))
