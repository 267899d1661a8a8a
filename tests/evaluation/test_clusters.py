"""k-means finds blobs that stand apart, does as well as scikit-learn's on digits, and is the same for the same seed."""

import pytest
import torch

from rocl_transfer.data import load_images, store_splits
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.clusters import kmeans, nearest


def blobs(counts, dimensions=8, spread=0.05):
    generator = torch.Generator().manual_seed(1)
    centres = 3 * torch.randn(len(counts), dimensions, generator=generator)
    truth = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    truth = truth[torch.randperm(len(truth), generator=generator)]
    return centres[truth] + spread * torch.randn(len(truth), dimensions, generator=generator), truth


@pytest.mark.parametrize("seed", range(5))
def test_separated_blobs_are_found_whatever_their_sizes(seed):
    points, truth = blobs([200, 50, 8, 100])
    centres = kmeans(points, 4, seed)
    labels, distances = nearest(points, centres)
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 4
    assert len({cluster for cluster, _ in pairs}) == 4
    for cluster, blob in pairs:
        assert torch.allclose(centres[cluster], points[truth == blob].mean(0), atol=1e-5)
    assert torch.allclose(distances, (points - centres[labels]).square().sum(1), atol=1e-3)
    assert torch.equal(kmeans(points, 4, seed), centres)


def test_digits_are_clustered_as_tightly_as_scikit_learn_does():
    cluster = pytest.importorskip("sklearn.cluster")
    _, stores = store_splits(load_images("digits", image_size=16), ["train"], torch.device("cpu"))
    points = next(iter(stores["train"].batches([torch.arange(600)]))).float().flatten(1) / 255
    ours = float(nearest(points, kmeans(points, 10, 0))[1].sum())
    assert ours == pytest.approx(cluster.KMeans(10, n_init=10, random_state=0).fit(points.numpy()).inertia_, rel=0.01)


def test_as_many_clusters_as_points_and_more():
    points = torch.eye(3).repeat(2, 1)
    assert sorted(kmeans(points, 3, 0).tolist()) == sorted(torch.eye(3).tolist())
    with pytest.raises(UserError, match="only 3 different features, too few for 4 clusters: give fewer"):
        kmeans(points, 4, 0)
