import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rocl_transfer import PGD, UserError
from rocl_transfer.attacks import L2, AttackOptions, GradientAscent, Linf, against_labels, frozen, threat_model
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


def noisy(images, seed, radius):
    return (images + (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)) - 1) * radius).clamp(0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("steps", "lengths"), [(1, [1.25]), (3, [1.875, 1.25, 0.625])])
def test_steps_that_nobody_gave_fall_evenly_and_have_an_average(norm, steps, lengths):
    model, epsilon = Precise(small_net()).eval(), 0.06
    images, labels = torch.rand(5, 3, 8, 8, generator=one()[0]), torch.tensor([0, 1, 2, 3, 0])
    attack = AttackOptions(norm=norm, epsilon=epsilon, steps=steps)
    assert attack == AttackOptions(norm=norm, epsilon=epsilon, steps=steps, step_size="auto")
    assert (attack.falls, attack.step) == (True, pytest.approx(lengths[0] * epsilon))
    found = against_labels(attack.ascent(0.5), model, images, labels, one(7))
    threat = threat_model(norm, epsilon / 2)
    at = threat.random(images, one(7)).clamp(0, 1)
    for radii in lengths:
        at.requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(model(at), labels, reduction="sum"), at)[0]
        at = threat.project((at.detach() + radii * epsilon / 2 * threat.direction(gradient)).clamp(0, 1), images)
    assert torch.allclose(found, at, atol=1e-6)


def test_a_step_that_is_given_and_the_papers_share_stay_of_one_length():
    given, share = AttackOptions(epsilon=8 / 255, step_size=2 / 255), AttackOptions(epsilon=8 / 255, step_size=None)
    assert given.ascent() == GradientAscent(Linf(8 / 255), 2 / 255, 7)
    assert share.ascent() == GradientAscent(Linf(8 / 255), round(8 / 255 * 0.007 / 0.0314, 9), 7)
    assert given.pgd().step_size == 2 / 255
    with pytest.raises(AssertionError, match="of one length"):
        AttackOptions(epsilon=8 / 255).pgd()


def test_few_steps_climb_further_than_the_papers_share_of_the_radius():
    images, labels = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    lengths = [
        (against_labels(AttackOptions(epsilon=0.1, steps=3, step_size=step).ascent(), model, images, labels, one()) - images).abs().mean().item()
        for step in ("auto", None)
    ]
    assert lengths[0] == pytest.approx(0.1)  # every pixel is at its bound
    assert lengths[1] < 0.09


@pytest.mark.parametrize(("scale", "step"), [(1.0, None), (0.25, "auto"), (1.0, 0.05)])
def test_n_fgsm_is_twice_the_noise_and_one_step_that_is_not_projected(scale, step):
    model, epsilon = Precise(small_net()).eval(), 0.06
    images, labels = torch.rand(5, 3, 8, 8, generator=one()[0]), torch.tensor([0, 1, 2, 3, 0])
    ascent = AttackOptions(kind="nfgsm", epsilon=epsilon, step_size=step).ascent(scale)
    found = against_labels(ascent, model, images, labels, one(7))
    start = noisy(images, 7, 2 * epsilon * scale).requires_grad_(True)
    gradient = torch.autograd.grad(F.cross_entropy(model(start), labels, reduction="sum"), start)[0]
    wanted = (start + (0.05 if step == 0.05 else epsilon) * scale * gradient.sign()).clamp(0, 1)
    assert torch.allclose(found, wanted, atol=1e-7)
    far = (found - images).abs().max() / (epsilon * scale)
    assert 2 < far <= 3.001
    assert found.min() >= 0
    assert found.max() <= 1


def test_n_fgsm_takes_one_step_whatever_the_default_of_its_recipe_was():
    attack = AttackOptions(kind="nfgsm", epsilon=8 / 255, steps=10)
    assert attack.steps == 1
    assert attack.step == 8 / 255
    assert attack.words == "linf 0.03137 = 8/255 (N-FGSM)"
    assert attack.climber == attack.measuring() == AttackOptions(epsilon=8 / 255, step_size=2 / 255, steps=10)
    plain = AttackOptions(epsilon=8 / 255, steps=3)
    assert plain.climber is plain
    assert plain.words == "linf 0.03137 = 8/255 (3 steps)"
    with pytest.raises(AssertionError, match="leaves the ball"):
        attack.pgd()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "nfgsm", "norm": "l2", "epsilon": 0.5}, "--attack.kind nfgsm is an attack in linf, and --attack.norm is l2"),
        ({"kind": "nfgsm", "first_steps": 1}, "--attack.first_steps has no effect with --attack.kind nfgsm"),
        ({"kind": "nfgsm", "steps": 0}, "an attack's number of steps is 0"),
        ({"steps": 3, "first_steps": 3}, "an attack's first_steps is 3: give 1 or more, and fewer than its 3 steps"),
        ({"first_steps": 0}, "an attack's first_steps is 0"),
    ],
)
def test_options_of_an_attack_that_do_nothing_are_refused(options, sentence):
    with pytest.raises(UserError, match="^" + sentence.replace("--", "[-]{2}")):
        AttackOptions(**options)


def test_steps_grow_over_the_training_in_equal_shares():
    attack = AttackOptions(epsilon=8 / 255, steps=7, first_steps=1)
    assert attack.words == "linf 0.03137 = 8/255 (1 to 7 steps)"
    steps = [attack.ascent(progress=step / 700).steps for step in range(700)]
    assert [steps.count(number) for number in range(1, 8)] == [100] * 7
    assert steps == sorted(steps)
    assert attack.ascent().steps == attack.ascent(progress=1.0).steps == 7
    assert {AttackOptions(steps=5).ascent(progress=share / 10).steps for share in range(11)} == {5}
    firsts = [attack.ascent(progress=progress).step_size * 255 / 8 for progress in (0, 1)]
    assert firsts == [pytest.approx(1.25), pytest.approx(2.5 * 7 / 8)]
