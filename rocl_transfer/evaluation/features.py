"""What a frozen backbone makes of images, and how well neighbours in that space share a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.attacks import frozen
from rocl_transfer.data import Store
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.models import PixelModel


@torch.no_grad()
def compute_features(model: PixelModel, images: Store, positions: Tensor | None = None, batch_size: int = 512) -> Tensor:
    """Features (N, D) of the images at ``positions`` (default: all), float32, in eval mode; the model is left as it came in."""
    positions = torch.arange(len(images)) if positions is None else positions
    with frozen(model), full_precision():
        return torch.cat([model.features(batch.float() / 255) for batch in images.stream(positions.split(batch_size))])


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
