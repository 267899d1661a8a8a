"""Signs of gradient masking: each can fail, planted masks are called so, an honest model is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import rocl_transfer as rt
from rocl_transfer.data import load_images, store_images
from rocl_transfer.evaluation import Evaluation, assemble, evaluate, inspect_model, named_attacks, report_attacks
from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.evaluation.report.masking import Evidence, masking_checks, verdict
from rocl_transfer.evaluation.report.smoothing import Smoothed

ROOT = Path(__file__).parents[2]


def entry(name, accuracy, epsilon=0.03, n=1000):
    return Evaluation(name=name, norm="linf", epsilon=epsilon, accuracy=accuracy, interval=(0, 1), n=n, seconds=0)


HONEST = Evidence(
    inspection=Inspection((), False, 0.0, 10), pgd=entry("pgd-20", 0.5), strong=entry("pgd-50x10", 0.48), one_step=entry("pgd-1", 0.55),
    ensemble=entry("autoattack", 0.45), gradient=entry("fab-t", 0.45),
    curve=[entry("pgd-20", a, e) for a, e in ((0.7, 0.01), (0.5, 0.03), (0.2, 0.06))],
    huge=entry("apgd-ce", 0.0, 0.25), transfers=[entry("transfer from b", 0.7)], missed=[1],
)  # fmt: skip


@pytest.mark.parametrize(
    ("sign", "changed"),
    [
        ("AutoAttack leaves at least half", {"ensemble": entry("autoattack", 0.2), "gradient": entry("fab-t", 0.2)}),
        ("random search finds no more", {"gradient": entry("fab-t", 0.46)}),
        ("accuracy falls with epsilon", {"curve": [entry("pgd-20", 0.5, 0.01), entry("pgd-20", 0.51, 0.03)]}),
        ("more steps and restarts leave no more", {"strong": entry("pgd-50x10", 0.51)}),
        ("near 0 at a huge epsilon", {"huge": entry("apgd-ce", 0.3, 0.25)}),
        ("many steps leave no more", {"one_step": entry("pgd-1", 0.4)}),
        ("attacks on other models", {"missed": [9]}),
        ("gradients are there", {"inspection": Inspection((), False, 0.4, 10)}),
        ("answers are not random", {"inspection": Inspection((), True, 0.0, 10)}),
    ],
)
def test_each_sign_of_masking_fails_exactly_one_check(sign, changed):
    assert verdict(masking_checks(HONEST)) == "not masked"
    failed = [check.name for check in masking_checks(replace(HONEST, **changed)) if not check.passed]
    assert len(failed) == 1
    assert sign in failed[0]


@pytest.mark.parametrize(
    ("curve", "passed"),
    [
        ([0.375, 0.375, 0.375], None),  # what a blind attack gives
        ([0.7, 0.7, 0.699], None),  # one of a thousand is chance
        ([0.7, 0.7, 0.6], True),
        ([0.002, 0.0, 0.0], True),  # nothing is left that could fall
        ([0.7, 0.71, 0.1], False),
    ],
)
def test_a_robustness_curve_that_does_not_fall_fails_the_check(curve, passed):
    radii = (0.0075, 0.03, 0.12)
    checks = masking_checks(replace(HONEST, curve=[entry("pgd-20", a, e) for a, e in zip(curve, radii, strict=True)]))
    assert [check.passed for check in checks if check.name == "accuracy falls with epsilon"] == [passed]
    assert verdict(checks) == {None: "undecided", True: "not masked", False: "masked"}[passed]


@pytest.mark.parametrize("found", [{"spacing": 0.02}, {"ties": 0.05}, {"still": 0.3}])
def test_outputs_in_steps_are_a_sign(found):
    checks = masking_checks(replace(HONEST, inspection=replace(HONEST.inspection, **found)))
    assert [check.name for check in checks if not check.passed] == ["answers are fine enough for attacks to follow"]


def test_where_nothing_is_right_nothing_is_decided():
    checks = masking_checks(replace(HONEST, clean=entry("clean", 0.001)))
    assert verdict(checks) == "undecided"
    assert verdict(masking_checks(replace(HONEST, clean=entry("clean", 0.8)))) == "not masked"


def test_a_headline_without_queries_makes_no_claim_about_them():
    assert not any("random search" in check.name for check in masking_checks(replace(HONEST, gradient=None)))


class Scaled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return 1e4 * self.model(images)


class Quantised(Scaled):
    def forward(self, images):
        return self.model((images * 8).round() / 8)


class Noisy(Scaled):
    def forward(self, images):
        return self.model((images + 0.1 * torch.randn_like(images)).clamp(0, 1))


@pytest.fixture(scope="module")
def digits():
    model = rt.load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits"))
    data = load_images("digits", image_size=16)
    images = store_images(data.test, 16, torch.device("cpu")).inputs.float() / 255
    return model, images, data.test.labels


def test_what_is_wrong_with_a_model_is_said(digits):
    model, images, labels = digits

    def said(other, pixels=images[:32]):
        return " | ".join(inspect_model(other, pixels, labels[:32]).warnings)

    assert said(model.eval()) == ""
    assert "training mode" in said(nn.Sequential(nn.BatchNorm2d(3), model).train())
    model.eval()
    assert "probabilities" in said(nn.Sequential(model, nn.Softmax(1)))
    assert "random" in said(Noisy(model))
    assert "no gradient in any pixel for 100 %" in said(Quantised(model))
    with pytest.raises(rt.UserError, match="must give logits"):
        inspect_model(nn.Flatten(0), images[:4], labels[:4])
    with pytest.raises(rt.UserError, match="does not take images"):
        inspect_model(nn.Linear(7, 10), images[:4], labels[:4])
    with pytest.raises(rt.UserError, match="not finite"):
        inspect_model(nn.Sequential(model, nn.Threshold(1e9, float("nan"))), images[:4], labels[:4])


def masking_of(model, images, labels):
    seen = inspect_model(model, images, labels)
    headline = named_attacks("fast", 0.1, "linf", 10)[0]
    results = evaluate(model, images, labels, attacks=report_attacks(headline, 16, 10, {}))
    return results, assemble(results, headline, 16, [str(i) for i in range(10)], seen, {})


@pytest.mark.slow
@pytest.mark.parametrize("mask", [Scaled, Quantised, Noisy])
def test_a_model_with_planted_gradient_masking_is_called_masked(digits, mask):
    model, images, labels = digits
    _, report = masking_of(mask(model), images[::12], labels[::12])
    assert report["masking"]["verdict"] == "masked"


@pytest.mark.slow
def test_an_honest_model_is_not_called_masked(digits):
    model, images, labels = digits
    results, report = masking_of(model, images[::6], labels[::6])
    assert report["masking"]["verdict"] == "not masked", [c for c in report["masking"]["checks"] if not c["passed"]]
    assert results["apgd-ce", 64 / 255].accuracy <= 0.05
    assert report["curve"][0]["accuracy"] == results["clean"].accuracy
    steps = zip(report["curve"][:6], report["curve"][1:7], strict=True)
    area = sum((a["accuracy"] + b["accuracy"]) / 2 * (b["epsilon"] - a["epsilon"]) for a, b in steps)
    assert report["expected_robustness"] == pytest.approx(area / 0.2)
    assert sum(entry["n"] for entry in report["classes"]) == len(images[::6])


def test_smoothed_inference_is_a_function_whose_gradient_is_the_expectation():
    class Squares(nn.Module):
        def forward(self, images):
            return torch.stack([(images**2).mean((1, 2, 3)), images.mean((1, 2, 3))], 1)

    def view(images, generator):
        return images * torch.rand((), generator=generator)

    smoothed, images = Smoothed(Squares(), view, draws=5, seed=3), torch.rand(4, 3, 4, 4)
    assert torch.equal(smoothed(images)[1:2], smoothed(images[1:2]))
    from rocl_transfer.data import derive_seed

    factors = [torch.rand((), generator=torch.Generator().manual_seed(derive_seed(3, draw))) for draw in range(5)]
    expected = sum(Squares()(images * factor) for factor in factors) / 5
    assert torch.allclose(smoothed(images), expected, atol=1e-6)
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(smoothed(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(gradient, 2 * images * sum(f**2 for f in factors) / 5 / 48, atol=1e-6)
