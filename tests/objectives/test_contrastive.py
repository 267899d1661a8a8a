import math

import pytest
import torch
import torch.nn.functional as F

from rocl_transfer.objectives import contrastive, nt_xent


def golden(rows):
    i, j = torch.arange(rows).double()[:, None], torch.arange(128).double()[None]
    return F.normalize(torch.sin(0.37 * (128 * i + j) + 0.11 * i).float(), dim=1)


def random_views(views, n, seed=0, dtype=torch.float32):
    return F.normalize(torch.randn(views, n, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def oracle(z, temperature):
    """Term by term, as the formula is written: V x N x (V - 1) of them over V x N anchors."""
    views, n, _ = z.shape
    terms = []
    for v in range(views):
        for i in range(n):
            others = [(u, k) for u in range(views) for k in range(n) if (u, k) != (v, i)]
            scores = {other: (z[v, i] @ z[other]).item() / temperature for other in others}
            total = math.log(sum(math.exp(score) for score in scores.values()))
            terms += [total - scores[u, i] for u in range(views) if u != v]
    return sum(terms) / (views * n)


@pytest.mark.parametrize(
    ("rows", "views", "value", "tolerance"),
    [(8, 2, 2.0551084, 1e-5), (512, 2, 5.4513491, 1e-5), (12, 3, 6.7992701, 1e-5), (768, 3, 12.4043420, 1e-4)],
)
def test_nt_xent_has_its_golden_values(rows, views, value, tolerance):
    z = golden(rows).view(views, -1, 128)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize(("views", "n", "value"), [(2, 256, 6.23637), (3, 512, 14.67257)])
def test_nt_xent_of_equal_similarities_is_the_logarithm_of_their_number(views, n, value):
    z = F.normalize(torch.ones(views, n, 128), dim=-1)
    assert nt_xent(z, z, 0.5).item() == pytest.approx((views - 1) * math.log(views * n - 1), abs=1e-5)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize(("views", "n"), [(2, 1), (2, 5), (3, 4), (4, 3)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_formula_term_by_term(views, n, temperature):
    z = random_views(views, n)
    assert nt_xent(z, z, temperature).item() == pytest.approx(oracle(z, temperature), rel=1e-5)


@pytest.mark.parametrize(("groups", "anchor_views", "views", "n", "offset"), [(1, 3, 3, 20, 10), (4, 1, 2, 16, 0), (1, 2, 2, 7, 0)])
@pytest.mark.parametrize("entries", [1, 100])
def test_rows_in_turn_are_the_whole_matrix(monkeypatch, groups, anchor_views, views, n, offset, entries):
    keys = torch.stack([random_views(views, n + offset, seed) for seed in range(groups)])
    anchors = keys[:, :anchor_views, offset : offset + n].clone().requires_grad_()
    whole = nt_xent(anchors, keys, 0.5, offset)
    (gradient,) = torch.autograd.grad(whole, anchors)
    monkeypatch.setattr(contrastive, "_ENTRIES", entries)
    seen = []
    monkeypatch.setattr(contrastive, "_terms", lambda *given, terms=contrastive._terms: (seen.append(given[0].shape[-2]), terms(*given))[1])
    again = nt_xent(anchors, keys, 0.5, offset)
    assert len(seen) > 1
    assert max(seen) * groups * views * (n + offset) <= max(entries, groups * views * (n + offset))
    torch.testing.assert_close(again, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(again, anchors)[0], gradient, rtol=1e-5, atol=1e-8)


def test_gradient_with_detached_keys_is_that_of_the_ordinary_mean():
    # Three views: the value is twice the mean, the detached factor halves the gradient again.
    z = random_views(3, 64).requires_grad_()
    (ours,) = torch.autograd.grad(nt_xent(z, z, 0.5), z)
    rows = z.flatten(0, 1)
    similarity = (rows @ rows.T / 0.5).fill_diagonal_(float("-inf"))
    log_softmax = similarity.log_softmax(1)
    image = torch.arange(64).repeat(3)
    positive = (image[:, None] == image[None]) & ~torch.eye(192, dtype=torch.bool)
    (ordinary,) = torch.autograd.grad(-log_softmax[positive].mean(), z)
    assert F.cosine_similarity(ours.flatten(), ordinary.flatten(), dim=0).item() > 0.999
    assert (ours.norm() / ordinary.norm()).item() == pytest.approx(1, abs=0.02)


def test_ranks_that_compute_their_own_rows_give_the_whole():
    z = random_views(3, 8).requires_grad_()
    whole = nt_xent(z, z, 0.5)
    halves = [nt_xent(part, z, 0.5, offset=offset) for part, offset in ((z[:, :4], 0), (z[:, 4:], 4))]
    torch.testing.assert_close(sum(halves) / 2, whole)
    torch.testing.assert_close(torch.autograd.grad(sum(halves) / 2, z)[0], torch.autograd.grad(whole, z)[0])


def test_leading_axes_are_independent_problems():
    z = torch.stack([random_views(2, 6, seed) for seed in range(3)])
    torch.testing.assert_close(nt_xent(z, z, 0.5), sum(nt_xent(part, part, 0.5) for part in z))


def test_rows_of_one_view_are_part_of_all_rows():
    z = random_views(2, 6)
    first, second = nt_xent(z[:1], z, 0.5), nt_xent(z[1:], z.flip(0), 0.5)
    torch.testing.assert_close((first + second) / 2, nt_xent(z, z, 0.5))


def test_is_float32_under_autocast():
    z = random_views(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(z, z, 0.5)
    assert torch.equal(inside, nt_xent(z, z, 0.5))
