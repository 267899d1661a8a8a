import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rocl_transfer import PGD, UserError
from rocl_transfer.attacks import L2, Linf, frozen, threat_model
from tests.conftest import Precise

shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def one(seed=0):
    return [torch.Generator().manual_seed(seed)]


def length(threat, delta):
    return delta.flatten(1).abs().amax(1) if threat.norm == "linf" else delta.flatten(1).norm(dim=1)


@settings(deadline=None, max_examples=60)
@given(shapes, st.sampled_from([Linf, L2]), st.floats(1e-3, 1.0), st.integers(0, 1000))
def test_random_starts_and_projections_stay_in_the_ball(shape, ball, epsilon, seed):
    threat = ball(epsilon)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    start = threat.random(images, one(seed))
    assert (length(threat, start - images) <= epsilon * (1 + 1e-4) + 1e-6).all()
    far = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1))
    projected = threat.project(far, images)
    assert (length(threat, projected - images) <= epsilon * (1 + 1e-4) + 1e-6).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    # What is inside already stays where it is.
    assert torch.allclose(threat.project(projected, images), projected, atol=1e-6)


def test_l2_start_fills_the_ball_uniformly():
    images = torch.full((4000, 1, 1, 2), 0.5)
    radius = (L2(0.3).random(images, one()) - images).flatten(1).norm(dim=1) / 0.3
    # In two dimensions the radius of a uniform point has distribution function r ** 2.
    assert (radius**2).mean().item() == pytest.approx(0.5, abs=0.02)
    assert (radius < 0.5).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e10])
def test_l2_direction_has_length_one_however_small_the_gradient(scale):
    gradient = torch.randn(4, 3, 5, 5, generator=one()[0]) * scale
    gradient[0] = 0
    lengths = L2(0.5).direction(gradient).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.tensor([0.0, 1.0, 1.0, 1.0]), atol=1e-5)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_against_a_plain_loop_over_single_images(norm):
    model, epsilon, step, steps = Precise(small_net()).eval(), 0.1, 0.02, 5
    images, labels = torch.rand(3, 3, 8, 8, generator=one()[0]), torch.tensor([0, 1, 2])
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    ours = PGD(epsilon, norm=norm, step_size=step, steps=steps)(model, images, labels, seeds)
    for i in range(3):
        x, generator = images[i : i + 1], torch.Generator().manual_seed(i)
        if norm == "linf":
            adv = x + (torch.rand(x.shape, generator=generator) * 2 - 1) * epsilon
        else:
            radius = torch.rand(1, generator=generator) ** (1 / x.numel())
            direction = torch.randn(x.shape, generator=generator)
            adv = x + direction / direction.norm() * radius * epsilon
        adv = adv.clamp(0, 1)
        for _ in range(steps):
            adv = adv.detach().requires_grad_()
            F.cross_entropy(model(adv), labels[i : i + 1]).backward()
            with torch.no_grad():
                up = adv.grad.sign() if norm == "linf" else adv.grad / adv.grad.norm()
                adv = (adv + step * up).clamp(0, 1)
                delta = adv - x
                delta = delta.clamp(-epsilon, epsilon) if norm == "linf" else delta * min(1, epsilon / delta.norm().item())
                adv = x + delta
        assert torch.allclose(ours[i : i + 1], adv, atol=1e-5)


def test_one_seed_a_sample_makes_the_batch_irrelevant():
    model, images, labels = Precise(small_net()), torch.rand(6, 3, 8, 8, generator=one()[0]), torch.arange(6) % 4
    attack = PGD(0.1, steps=5)
    whole = attack(model, images, labels, [torch.Generator().manual_seed(i) for i in range(6)])
    parts = torch.cat(
        [attack(model, images[i : i + 2], labels[i : i + 2], [torch.Generator().manual_seed(j) for j in (i, i + 1)]) for i in (0, 2, 4)]
    )
    assert torch.allclose(whole, parts, atol=1e-6)


def test_the_default_start_follows_torchs_seed():
    model, images, labels = small_net(), torch.rand(2, 3, 8, 8, generator=one()[0]), torch.tensor([0, 1])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(PGD(0.1, steps=2)(model, images, labels))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_frozen_restores_everything_also_after_an_error():
    model = small_net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError), frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("images", [torch.full((1, 3, 4, 4), 200.0), torch.full((1, 3, 4, 4), -0.5), torch.ones(1, 3, 4, 4, dtype=torch.uint8)])
def test_images_in_other_units_are_refused(images):
    with pytest.raises(UserError, match=r"floats in \[0, 1\]"):
        PGD(8 / 255)(small_net(), images, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_radius_for_each_image_is_an_attack_for_each_image(norm):
    model, images, labels = Precise(small_net()), torch.rand(3, 3, 8, 8, generator=one()[0]), torch.tensor([0, 1, 2])
    radii = [0.01, 0.1, 0.4]
    together = PGD(torch.tensor(radii).view(-1, 1, 1, 1), steps=5, norm=norm)(
        model, images, labels, [torch.Generator().manual_seed(i) for i in range(3)]
    )
    for i, radius in enumerate(radii):
        alone = PGD(radius, steps=5, norm=norm)(model, images[i : i + 1], labels[i : i + 1], one(i))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)
    with pytest.raises(UserError, match="give a radius above 0"):
        threat_model(norm, torch.tensor([0.1, 0.0]).view(-1, 1, 1, 1))


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0), ("l2", -1), ("l7", 0.1), ("linf", float("nan"))])
def test_wrong_balls_are_refused(norm, epsilon):
    with pytest.raises(UserError):
        threat_model(norm, epsilon)
