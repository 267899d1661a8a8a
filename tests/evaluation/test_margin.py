import math

import pytest
import torch
from torch import nn

from rocl_transfer import PGD, UserError, evaluate
from rocl_transfer.evaluation import FlipOptions, smallest_epsilon
from rocl_transfer.models import create_backbone
from tests.conftest import Precise

PRECISION = 1 / 32


class Plane(nn.Module):
    """Two classes on the two sides of a plane, whose distance from an image has a closed form."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3 * 4 * 4, generator=torch.Generator().manual_seed(0)))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())  # through the grey image

    def forward(self, images):
        margin = images.flatten(1) @ self.w + self.b
        return torch.stack([-margin, margin], 1)

    def distance(self, images, norm):
        gap = (images.flatten(1) @ self.w + self.b).abs()
        return (gap / (self.w.abs().sum() if norm == "linf" else self.w.norm())).detach()


class Constant(nn.Module):
    def forward(self, images):
        return torch.tensor([0.0, 1.0]).expand(len(images), 2) + 0 * images.sum((1, 2, 3))[:, None]


def near_grey(n=12):
    """Images far from the borders of [0, 1], at distances from the plane that differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(1)
    plane = Plane()
    noise = torch.rand(n, 3, 4, 4, generator=generator) * 0.02
    images = 0.5 + noise + plane.w.detach().sign().view(3, 4, 4) * torch.logspace(-3, -0.7, n).view(-1, 1, 1, 1) * 0.9
    return plane, images.clamp(0.05, 0.95)


def weak_net():
    torch.manual_seed(0)
    model = create_backbone("resnet8_cifar", 16)
    model.net.reset_classifier(3)
    images = torch.rand(10, 3, 16, 16)
    model = Precise(model).eval()
    return model, images, model(images).argmax(1)


@pytest.mark.parametrize(("norm", "steps", "upper"), [("linf", 20, 64 / 255), ("l2", 60, 4.0)])
def test_a_plane_is_as_far_as_geometry_says(norm, steps, upper):
    plane, images = near_grey()
    found = smallest_epsilon(plane, images, plane(images).argmax(1), FlipOptions(norm=norm, steps=steps, max_epsilon=upper))
    exact = plane.distance(images, norm)
    assert exact.max() / exact.min() > 10
    assert (found >= exact * (1 - 1e-3)).all()  # an attack cannot do better
    assert (found <= exact * (1 + 1.1 * PRECISION) + 1e-5).all()


@pytest.mark.parametrize("precision", [0.25, 1 / 128])
def test_the_smallest_epsilon_is_as_precise_as_asked(precision):
    plane, images = near_grey()
    found = smallest_epsilon(plane, images, plane(images).argmax(1), precision=precision)
    ratio = found / plane.distance(images, "linf")
    assert ratio.max() <= 1 / (1 - precision) + 1e-2
    assert (ratio.max() > 1.05) == (precision == 0.25)


def test_a_larger_limit_leaves_what_was_found_and_finds_the_rest():
    plane, images = near_grey()
    labels = plane(images).argmax(1)
    exact = plane.distance(images, "linf")
    full = smallest_epsilon(plane, images, labels, FlipOptions(max_epsilon=1.0))
    assert full.isfinite().all()
    for upper in (2 / 255, 8 / 255, 0.05, 0.11):
        found = smallest_epsilon(plane, images, labels, FlipOptions(max_epsilon=upper))
        within = found < upper
        assert torch.equal(found[within], full[within])
        assert torch.equal(found.isinf(), exact > upper)  # the limit itself is tried
        at_the_limit = ~within & found.isfinite()
        assert torch.allclose(full[at_the_limit], found[at_the_limit], rtol=PRECISION)
    assert exact.min() < 2 / 255 < 0.11 < exact.max()


def test_the_attack_succeeds_at_what_is_returned_and_evaluate_agrees():
    model, images, labels = weak_net()
    found = smallest_epsilon(model, images, labels, FlipOptions(steps=10), seed=3)
    assert ((found > 0) & found.isfinite()).any()
    for index in torch.nonzero(found.isfinite()).flatten().tolist():
        attacks = [PGD(found[index].item(), steps=10), PGD(found[index].item() * (1 - 1.1 * PRECISION), steps=10)]
        verdicts = evaluate(model, images, labels, attacks=attacks, seed=3).verdicts[index]
        assert [value for value in verdicts.values() if isinstance(value, bool)] == [True, False, True]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_is_irrelevant_and_so_are_the_images_beside(batch_size):
    model, images, labels = weak_net()
    for norm, upper in (("linf", 64 / 255), ("l2", 2.0)):
        options = FlipOptions(norm=norm, steps=5, max_epsilon=upper)
        whole = smallest_epsilon(model, images, labels, options)
        assert torch.allclose(whole, smallest_epsilon(model, images, labels, options, batch_size=batch_size), rtol=PRECISION)
    seeds = list(range(10))
    alone = torch.cat([smallest_epsilon(model, images[i : i + 1], labels[i : i + 1], FlipOptions(steps=5), seed=[i]) for i in seeds])
    assert torch.allclose(alone, smallest_epsilon(model, images, labels, FlipOptions(steps=5), seed=seeds), rtol=PRECISION)


def test_wrong_answers_are_at_0_and_what_cannot_be_changed_is_at_infinity():
    plane, images = near_grey()
    assert smallest_epsilon(plane, images, 1 - plane(images).argmax(1)).tolist() == [0] * len(images)
    labels = torch.tensor([1, 0, 1, 0])
    assert smallest_epsilon(Constant(), torch.rand(4, 3, 4, 4), labels).tolist() == [math.inf, 0, math.inf, 0]


def test_an_image_on_the_border_ends_the_search():
    plane = Plane()
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert 0 <= smallest_epsilon(plane, grey, plane(grey).argmax(1)).item() < 1e-4


def test_in_eval_mode_and_left_as_it_came():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.rand(8, 3, 4, 4), torch.zeros(8, dtype=torch.long)
    first, second = (smallest_epsilon(model, images, labels) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "2 images, 3 labels and 2 seeds"),
        ({"seed": [1]}, "2 images, 2 labels and 1 seeds"),
        ({"images": torch.rand(0, 3, 4, 4), "labels": torch.zeros(0, dtype=torch.long)}, "at least one"),
        ({"images": torch.full((2, 3, 4, 4), 200.0)}, r"floats in \[0, 1\]"),
        ({"precision": 0}, "the precision is 0: give a number above 0"),
        ({"batch_size": 0}, "batch_size is 0: give 1 or more"),
    ],
)
def test_bad_calls_of_smallest_epsilon_are_one_sentence(change, sentence):
    call = {"images": torch.rand(2, 3, 4, 4), "labels": torch.ones(2, dtype=torch.long), **change}
    with pytest.raises(UserError, match=sentence):
        smallest_epsilon(Constant(), **call)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_epsilon": 0}, "max_epsilon is 0: give a radius above 0"),
        ({"max_epsilon": math.inf}, "max_epsilon is inf: give a radius above 0"),
        ({"max_epsilon": 64}, "write 64/255 rather than 64"),
        ({"norm": "l7"}, "linf, l2 or l1"),
        ({"steps": 0}, "steps is 0: it must be 1 or more"),
    ],
)
def test_options_that_cannot_be_meant_are_one_sentence(change, sentence):
    with pytest.raises(UserError, match=sentence):
        FlipOptions(**change)
