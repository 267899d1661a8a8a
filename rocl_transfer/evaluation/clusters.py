"""Clusters of features by k-means, which stand for classes where there are no labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.errors import UserError

_AT_ONCE = 2**16  # points


def kmeans(points: Tensor, clusters: int, seed: int, starts: int = 10, rounds: int = 100) -> Tensor:
    """Centres (K, D) of the best of several k-means clusterings (Lloyd 1982), each begun by k-means++ (Arthur, Vassilvitskii 2007).

    Args:
        points: (N, D) on the CPU, in any unit: distances are Euclidean.
        clusters: K.
        seed: For the first centres.
        starts: Clusterings, of which the one with the smallest sum of squared distances is taken.
        rounds: Most rounds of one clustering.

    Raises:
        UserError: There are fewer different points than clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [_lloyd(points, _apart(points, clusters, generator), rounds) for _ in range(starts)]
    return min(found, key=lambda pair: pair[1])[0]


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the nearest centre (N,), and the squared distance to it (N,).

    Args:
        points: (N, D).
        centres: (K, D).
    """
    parts = [torch.cdist(part, centres).min(1) for part in points.split(_AT_ONCE)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]).square()


def _apart(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centres: each a point, drawn in proportion to its squared distance from those before it."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = (points - points[chosen[0]]).square().sum(1).double()
    while len(chosen) < clusters:
        reach = distances.cumsum(0)
        if reach[-1] == 0:
            raise UserError(f"the images have only {len(chosen)} different features, too few for {clusters} clusters: give fewer")
        draw = torch.rand(1, dtype=torch.float64, generator=generator) * reach[-1]
        chosen.append(int(torch.searchsorted(reach, draw, right=True).clamp(max=len(points) - 1)))
        distances = distances.minimum((points - points[chosen[-1]]).square().sum(1).double())
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor, rounds: int) -> tuple[Tensor, float]:
    """Centres after at most ``rounds`` rounds, and the sum of squared distances from them; a cluster that has lost its points takes the farthest."""
    before, (labels, distances) = None, nearest(points, centres)
    for _ in range(rounds):
        if before is not None and torch.equal(labels, before):
            break
        members = zip(points.split(_AT_ONCE), F.one_hot(labels, len(centres)).split(_AT_ONCE), strict=True)
        sums = sum((inside.T.to(part.dtype) @ part for part, inside in members), torch.zeros_like(centres))
        counts = labels.bincount(minlength=len(centres))
        centres = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = points[distances.topk(int(empty.sum())).indices]
        before, (labels, distances) = labels, nearest(points, centres)
    return centres, float(distances.double().sum())
