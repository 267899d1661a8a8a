"""Evaluation takes as many images at once as pixels and memory allow, and spends its passes on attacks."""

import contextlib

import pytest
import torch
from torch import nn

from rocl_transfer import PGD, evaluate
from rocl_transfer.data import Resident
from rocl_transfer.evaluation import ClassifierMonitor, FlipOptions, SearchOptions, compute_features, named_attacks, smallest_epsilon
from rocl_transfer.evaluation import engine as engine_module
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.search_network import measure, search_network
from rocl_transfer.models import create_backbone
from tests.support.elsewhere import DEVICE, elsewhere


class Counted(nn.Module):
    """Counts the images that it sees, and the most at once with their gradient and without."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))
        self.seen, self.most, self.most_with_gradient = 0, 0, 0
        self.eval()

    def forward(self, images):
        self.seen += len(images)
        self.most = max(self.most, len(images))
        if images.requires_grad:
            self.most_with_gradient = max(self.most_with_gradient, len(images))
        return self.model(images)


def data(n, size):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


def test_four_images_cost_little_more_than_their_attack():
    model = Counted()
    evaluate(model, *data(4, 32), attacks=[PGD(8 / 255, steps=20)])
    assert model.seen <= 2 * 88  # 1,720 when batches of 256 were measured first
    assert model.most <= 8


@pytest.mark.parametrize(
    ("size", "device", "most"), [(16, "cpu", 256), (32, "cpu", 256), (64, "cpu", 64), (224, "cpu", 5), (512, "cpu", 4), (224, "cuda", 83)]
)
def test_batches_follow_pixels(size, device, most):
    assert images_at_once((size, size), torch.device(device)) == most


def test_nothing_takes_many_large_images_at_once():
    model = Counted()
    images, labels = data(24, 224)
    evaluate(model, images, labels, attacks=[PGD(8 / 255, steps=2)], search=SearchOptions(batch_size=images_at_once((224, 224), images.device)))
    assert model.most_with_gradient <= 8  # of the inspection
    model.most_with_gradient = 0
    smallest_epsilon(model, images, labels, FlipOptions(steps=1), precision=0.5)
    assert model.most_with_gradient <= 5
    model.most_with_gradient = 0
    ClassifierMonitor(lambda: model, Resident((images * 255).byte()), labels, PGD(8 / 255, steps=2), 0)()
    assert model.most_with_gradient <= 5


def test_small_images_are_evaluated_as_before():
    model, images = create_backbone("resnet8_cifar", 16), (data(600, 16)[0] * 255).byte()
    sizes = []
    features = model.features
    model.features = lambda batch: sizes.append(len(batch)) or features(batch)
    compute_features(model, Resident(images))
    assert sizes == [512, 88]


def test_the_network_is_arranged_where_that_pays():
    model, images = Counted(), data(4, 8)[0]
    with torch.no_grad():
        assert search_network(model, images, foreseen=250.0) is model
        assert model.seen == 0
        search_network(model, images, foreseen=1e6)
        assert model.seen > 0


@pytest.mark.parametrize(("place", "timed"), [("cpu", 16), ("elsewhere", 256)])
def test_a_gpu_chooses_the_layout_by_as_many_images_as_fill_it(monkeypatch, place, timed):
    sizes = []
    monkeypatch.setattr(Counted, "forward", lambda self, images: sizes.append(len(images)) or self.model(images))
    with elsewhere() if place == "elsewhere" else contextlib.nullcontext() as opened, torch.no_grad():
        device = DEVICE if opened else torch.device("cpu")
        search_network(Counted().to(device), data(16, 16)[0].to(device))
    assert sizes.count(timed) >= 10  # five passes of each of two networks
    assert set(sizes) == {16, timed}


def test_measuring_ends_where_it_would_cost_more_than_what_follows():
    with torch.no_grad():
        for foreseen, most in ((100, 40), (1e9, 1e9)):
            model = Counted()
            rates = measure(model, data(4, 8)[0], None, 16, foreseen)
            assert rates.size == 16
            assert model.seen <= most
        assert measure(Counted(), data(4, 8)[0], None, 4, 1e9).size == 4  # no more will ever be asked at once
        assert measure(Counted(), data(4, 224)[0]).size >= 5


def test_the_size_of_a_batch_is_measured_for_long_evaluations(monkeypatch):
    model, images, measured = Counted(10), data(64, 8)[0], []
    monkeypatch.setattr(engine_module, "measure", lambda *given: measured.append(measure(*given)) or measured[-1])
    evaluate(model, images, model(images).argmax(1), attacks=named_attacks("fast", 1e-4, "linf", 10))
    evaluate(model, images, model(images).argmax(1), attacks=[PGD(1e-4, steps=1)])
    assert measured[0].size > 16 == measured[1].size
