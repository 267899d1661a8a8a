"""AutoAttack's parts: against plain oracles, linear models whose robustness is known, and the reference implementation."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rocl_transfer as rt
from rocl_transfer.attacks import APGD, FAB, PGD, Square, margin, threat_model
from rocl_transfer.attacks.draws import below, normal, uniform
from rocl_transfer.attacks.margins import rivals, targeted_dlr
from rocl_transfer.attacks.reference import PARTS, Reference
from tests.conftest import Precise

ROOT = Path(__file__).parents[2]
NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def test_draws_belong_to_the_sample_and_nothing_else():
    seeds = torch.tensor([5, 6, 7, 8])
    whole = uniform(seeds, "a", (3, 2), 4)
    assert torch.equal(whole[2:3], uniform(seeds[2:3], "a", (3, 2), 4))
    assert torch.equal(whole, uniform(seeds, "a", (3, 2), torch.full((4,), 4)))
    others = [uniform(seeds, "b", (3, 2), 4), uniform(seeds, "a", (3, 2), 5), uniform(seeds + 1, "a", (3, 2), 4)]
    assert all((whole != other).all() for other in others)


def test_draws_are_uniform_normal_and_uncorrelated():
    draws = uniform(torch.arange(2000), "a", (50,))
    assert draws.min() > 0
    assert draws.max() < 1
    counts = torch.histc(draws, 20, 0, 1) / draws.numel() * 20
    assert (counts - 1).abs().max() < 0.03
    neighbours = torch.corrcoef(torch.stack([draws[:, 0], draws[:, 1], uniform(torch.arange(2000), "a", (50,), 1)[:, 0]]))
    assert (neighbours - torch.eye(3)).abs().max() < 0.08
    values = normal(torch.arange(2000), "a", (50,))
    assert values.isfinite().all()
    assert (values.mean().abs() < 0.02, (values.std() - 1).abs() < 0.02) == (True, True)
    assert set(below(3, draws).unique().tolist()) == {0, 1, 2}
    assert below(3, torch.tensor([1 - 2**-24])) == 2


def test_losses_against_loops():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels, targets = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 0, 3, 2, 0, 4])
    for row in range(6):
        z, y, t = logits[row], labels[row], targets[row]
        first, *_, third, fourth = [sorted(z.tolist(), reverse=True)[i] for i in (0, 1, 2, 3)]
        assert targeted_dlr(logits, labels, targets)[row].item() == pytest.approx(((z[t] - z[y]) / (first - (third + fourth) / 2)).item(), rel=1e-4)
        others = [v for i, v in enumerate(z.tolist()) if i != y]
        assert margin(logits, labels)[row].item() == pytest.approx(z[y].item() - max(others))
        assert z[rivals(logits, labels, torch.full((6,), 2), 3)[row]].item() == sorted(others, reverse=True)[2]


def feasible(images, norm, epsilon, count, generator):
    """Random points of the ball and of [0, 1]."""
    for _ in range(count):
        other = torch.rand(images.shape, generator=generator)
        other = torch.where(torch.rand(images.shape, generator=generator) < torch.rand((), generator=generator), other, images)
        delta = other - images
        length = threat_model(norm, 1.0).length(delta)
        yield images + delta * (epsilon / length.clamp_min(1e-9)).clamp_max(1) * torch.rand(images.shape[:1], generator=generator).view(-1, 1, 1, 1)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 6.0), st.integers(0, 1000))
def test_l1_projection_is_the_nearest_point_of_ball_and_box(epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((3, 1, 4, 4), generator=generator)
    far = images + torch.randn(images.shape, generator=generator)
    near = threat_model("l1", epsilon).project(far, images)
    assert (threat_model("l1", 1.0).length(near - images) <= epsilon * (1 + 1e-4) + 1e-5).all()
    assert near.min() >= 0
    assert near.max() <= 1
    for point in feasible(images, "l1", epsilon, 20, generator):  # the angle at a projection on a convex set is never acute
        assert (((far - near) * (point - near)).sum((1, 2, 3)) <= 1e-4).all()


def shortest_by_bisection(norm, weight, room, need):
    """One row, in plain Python."""
    if norm == "l1":
        move = [0.0] * len(weight)
        for i in sorted(range(len(weight)), key=lambda i: -weight[i]):
            if weight[i] > 0 and need > 0:
                move[i] = min(need / weight[i], room[i])
                need -= move[i] * weight[i]
        return move
    rate = weight if norm == "l2" else [1.0] * len(weight)
    low, high = 0.0, 1e6
    for _ in range(200):
        time = (low + high) / 2
        gained = sum(w * min(time * r, m) for w, r, m in zip(weight, rate, room, strict=True))
        low, high = (time, high) if gained < need else (low, time)
    return [min(high * r, m) for r, m in zip(rate, room, strict=True)]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NORMS), st.integers(1, 12), st.integers(0, 1000), st.floats(0.05, 1.3))
def test_shortest_move_against_bisection(norm, size, seed, share):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand((3, size), generator=generator) * (torch.rand((3, size), generator=generator) > 0.2)
    room = torch.rand((3, size), generator=generator) * (torch.rand((3, size), generator=generator) > 0.2)
    need = share * (weight * room).sum(1) + 1e-6
    moves = threat_model(norm, 1.0).shortest(weight, room, need)
    for row in range(3):
        wanted = torch.tensor(shortest_by_bisection(norm, weight[row].tolist(), room[row].tolist(), need[row].item()))
        gains = weight[row] > 0  # where nothing is gained, a move neither helps nor, in L-inf, lengthens
        assert torch.allclose(moves[row][gains], wanted[gains], atol=2e-3), (norm, moves[row], wanted)


class Linear(nn.Module):
    """Logits are linear in the pixels, so the distance to the nearest other class is a formula."""

    def __init__(self, classes, pixels, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=generator))

    def forward(self, images):
        return (images - 0.5).flatten(1) @ self.weight.T

    def distances(self, images, labels, norm):
        logits = self(images)
        lead = logits.gather(1, labels[:, None]) - logits
        slope = torch.linalg.vector_norm(self.weight[labels][:, None] - self.weight[None], DUAL[norm], dim=2)
        return (lead / slope).scatter(1, labels[:, None], math.inf).amin(1).detach()


def linear_case(norm, classes=5):
    generator = torch.Generator().manual_seed(1)
    model = Linear(classes, 3 * 6 * 6)
    images = 0.5 + 0.1 * (torch.rand((60, 3, 6, 6), generator=generator) - 0.5)  # far from 0 and 1: the box plays no part
    labels = model(images).argmax(1)
    distance = model.distances(images, labels, norm)
    epsilon = float(distance.median())
    return model, images, labels, distance, epsilon


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_attacks_break_exactly_what_lies_in_the_ball(norm, classes):
    model, images, labels, distance, epsilon = linear_case(norm, classes)
    targets = classes - 1
    for attack in (APGD(epsilon, norm, 50), APGD(epsilon, norm, 50, targets=targets), FAB(epsilon, norm, 30, targets=targets)):
        broken = (model(attack(model, images, labels)).argmax(1) != labels) if attack.name != "apgd-ce" or norm != "l1" else None
        if broken is None:
            continue  # untargeted L1 steps need their restarts: see the reference below
        clear = (distance / epsilon - 1).abs() > 0.02
        wanted = distance < epsilon
        missed = (broken != wanted) & clear
        # Of several classes, the untargeted loss may lead to one that is not the nearest.
        assert int(missed.sum()) <= (9 if attack.name == "apgd-ce" and classes > 2 else 0), (attack.name, distance[missed] / epsilon)
        assert not (broken & ~wanted & clear).any()


@pytest.mark.parametrize("norm", NORMS)
def test_square_breaks_what_is_well_inside_and_nothing_outside(norm):
    model, images, labels, distance, epsilon = linear_case(norm)
    factor = {"linf": 1.5, "l2": 4, "l1": 12}[norm]
    wide = factor * epsilon
    broken = model(Square(wide, norm, 500)(model, images, labels)).argmax(1) != labels
    assert not (broken & (distance > wide)).any()
    assert broken[distance < 0.5 * epsilon].float().mean() > 0.8


@pytest.mark.parametrize("norm", NORMS)
def test_square_that_looks_ahead_finds_what_it_finds_one_by_one(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double().requires_grad_(False)
    asked = []

    def network(images):
        asked.append(len(images))
        return model(images.double()).float()

    images = torch.rand(5, 3, 8, 8)
    labels, seeds = model(images.double()).argmax(1), torch.arange(5)
    attack = Square({"linf": 0.04, "l2": 0.2, "l1": 1.0}[norm], norm, 700)
    one_by_one = attack.search(network, images, labels, seeds * 0, seeds)
    passes, calls = sum(asked), len(asked)
    asked.clear()
    ahead = attack.search(network, images, labels, seeds * 0, seeds, at_once=40)
    assert not one_by_one.broken.all()
    assert torch.equal(ahead.broken, one_by_one.broken)
    torch.testing.assert_close(ahead.margin, one_by_one.margin, rtol=0, atol=1e-6)
    torch.testing.assert_close(ahead.adversarial, one_by_one.adversarial)
    assert max(asked) <= 40
    assert len(asked) < 0.8 * calls
    assert passes <= sum(asked) < 1.1 * passes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [lambda e, n: PGD(e, norm=n, steps=5, restarts=2), lambda e, n: APGD(e, n, 10, targets=2),
                                  lambda e, n: FAB(e, n, 10, 2), lambda e, n: Square(e, n, 30)])  # fmt: skip
def test_results_are_images_of_the_ball_and_do_not_depend_on_the_batch(norm, kind):
    torch.manual_seed(0)
    model = Precise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))).requires_grad_(False)
    images = torch.rand(12, 3, 8, 8).round(decimals=1)
    labels = model(images).argmax(1)
    epsilon = {"linf": 0.05, "l2": 0.4, "l1": 4.0}[norm]
    attack, seeds = kind(epsilon, norm), torch.arange(12)
    runs = torch.arange(12) % attack.runs
    whole = attack.search(model, images, labels, runs, seeds)
    delta = threat_model(norm, 1.0).length(whole.adversarial - images).flatten()
    assert (delta <= epsilon * (1 + 1e-4) + 1e-6).all()
    assert whole.adversarial.min() >= 0
    assert whole.adversarial.max() <= 1
    assert torch.equal(model(whole.adversarial).argmax(1) != labels, whole.broken)
    assert (delta[~whole.broken] == 0).all()
    assert whole.broken.any()
    for chosen in (torch.tensor([3]), torch.tensor([7, 2, 9])):
        part = attack.search(model, images[chosen], labels[chosen], runs[chosen], seeds[chosen])
        assert torch.equal(part.broken, whole.broken[chosen])
        assert torch.allclose(part.margin, whole.margin[chosen], atol=1e-5)


@pytest.fixture(scope="module")
def robust_digits():
    model = rt.load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits")).requires_grad_(False)
    from rocl_transfer.data import load_images, store_images

    data = load_images("digits", image_size=16)
    images = store_images(data.test, 16, torch.device("cpu")).inputs.float() / 255
    chosen = torch.nonzero(model(images).argmax(1) == data.test.labels).flatten()[::22]
    return model, images[chosen], data.test.labels[chosen]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("norm", "epsilon", "parts"),
    [
        ("linf", 0.1, PARTS[:2]),
        *(pytest.param(*case, PARTS[:3], marks=slow) for case in (("linf", 0.1), ("l2", 1.0), ("l1", 12.0))),
    ],
)
def test_each_part_of_autoattack_is_close_to_the_reference(robust_digits, norm, epsilon, parts):
    """Part by part on all samples, not only on those that stood the part before."""
    model, images, labels = robust_digits
    seeds, runs = torch.arange(len(images)), torch.zeros(len(images), dtype=torch.long)
    restarts, targets = (5, 5) if norm == "l1" else (1, 9)
    native = {"apgd-ce": APGD(epsilon, norm, restarts=restarts), "apgd-t": APGD(epsilon, norm, targets=targets), "fab-t": FAB(epsilon, norm)}
    for part in parts:
        theirs = Reference(part, epsilon, norm).search(model, images, labels, runs, seeds).broken
        ours = torch.zeros_like(theirs)
        for run in range(native[part].runs):
            ours |= native[part].search(model, images, labels, runs + run, seeds).broken
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 1, part
        assert 0.1 < ours.float().mean() < 0.95  # so that there is something to differ in
