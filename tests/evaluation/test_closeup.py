"""One image looked at closely: what is shown is what the library measures."""

import math
from pathlib import Path

import pytest
import torch

import rocl_transfer as rt
from rocl_transfer import UserError
from rocl_transfer.attacks import PGD
from rocl_transfer.data import generators
from rocl_transfer.evaluation import FlipOptions, smallest_epsilon
from rocl_transfer.evaluation.report.closeup import close_up
from rocl_transfer.models import create_backbone

MODEL = Path(__file__).parents[2] / "model_cards" / "resnet8_cifar.r_le_digits"


@pytest.fixture(scope="module")
def model():
    return rt.load_classifier(str(MODEL))


@pytest.fixture(scope="module")
def digit():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(data.images[13] * 255 / 16).round().to(torch.uint8)
    return pixels.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(3, 16, 16).contiguous()


def test_a_close_up_shows_what_pgd_finds(model, digit):
    seen = close_up(model, digit, epsilon=0.2, steps=10, seed=3)
    clean = digit[None] / 255
    label = model(clean).argmax(1)
    for row in (1, 5, 8):
        attack = PGD(float(seen.epsilons[row]), steps=10)
        alone = model(attack.perturb(model, clean, label, generators([3], "attack"))).softmax(1)[0]
        assert seen.probabilities[row] == pytest.approx(alone.tolist(), abs=1e-3)
    assert seen.probabilities[0] == pytest.approx(model(clean).softmax(1)[0].tolist(), abs=1e-5)
    assert seen.epsilons.tolist() == pytest.approx([0.2 * step / 8 for step in range(9)])
    found = smallest_epsilon(model, clean, label, FlipOptions(steps=10), seed=[3])
    assert seen.flips_at == pytest.approx(float(found), rel=1 / 32)


def test_answers_and_the_perturbation_enlarged(model, digit):
    seen = close_up(model, digit, epsilon=0.25)
    assert seen.before[0] == "3"
    assert seen.after[0] != "3"
    assert seen.before[1] == pytest.approx(float(seen.probabilities[0].max()))
    assert 0 < seen.largest_change <= 0.25 + 1e-6
    enlarged = seen.perturbation()
    assert (enlarged.min() >= 0, enlarged.max() <= 1) == (True, True)
    assert max(0.5 - float(enlarged.min()), float(enlarged.max()) - 0.5) == pytest.approx(0.5)
    assert torch.allclose((enlarged - 0.5) * 2 * seen.largest_change, seen.adversarial - seen.clean, atol=1e-6)
    assert seen.leading(2) == seen.probabilities.amax(0).topk(2).indices.tolist()


def test_epsilon_0_is_the_clean_image_alone(model, digit):
    seen = close_up(model, digit, epsilon=0)
    assert len(seen.epsilons) == len(seen.probabilities) == 1
    assert torch.equal(seen.adversarial, seen.clean)
    assert seen.before == seen.after
    assert (seen.perturbation() == 0.5).all()


def test_what_never_flips_is_infinite_and_l2_is_a_ball(model, digit):
    seen = close_up(model, digit, epsilon=0.01, norm="l2", upper=0.01, steps=2)
    assert math.isinf(seen.flips_at)
    assert seen.searched == 0.01
    assert float((seen.adversarial - seen.clean).norm()) <= 0.01 + 1e-6


def test_the_model_is_left_as_it_came_in(digit):
    model = rt.load_classifier(str(MODEL)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    once, again = (close_up(model, digit, epsilon=0.1, steps=5) for _ in range(2))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.requires_grad for weight in model.parameters())
    assert torch.equal(once.probabilities, again.probabilities)
    with torch.no_grad():
        assert once.probabilities[0] == pytest.approx(model.eval()(digit[None] / 255).softmax(1)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"epsilon": 8}, "write 8/255 rather than 8"),
        ({"steps": 0}, "the steps are 0"),
        ({"norm": "linff"}, "there is no threat model 'linff'"),
        ({"upper": 0}, "max_epsilon is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, digit, options, sentence):
    with pytest.raises(UserError, match=sentence):
        close_up(model, digit, **options)


def test_what_is_no_image_or_no_classifier_is_refused(model, digit):
    with pytest.raises(UserError, match=r"the image has the shape \(1, 3, 16, 16\)"):
        close_up(model, digit[None])
    with pytest.raises(UserError, match="the model has no classes"):
        close_up(create_backbone("resnet8_cifar", 16), digit)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        close_up(model, digit.float())
