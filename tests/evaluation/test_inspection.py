"""What an inspection sees before any attack: images that change each other's answers, outputs in steps, half precision."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rocl_transfer import UserError, evaluate
from rocl_transfer.attacks import APGD
from rocl_transfer.evaluation import Context, SearchOptions, assemble, inspect_model, named_attacks, report_attacks

K = 10


def linear(size=8, seed=0):
    """A linear network, whose images lie at distances from other answers that differ by much."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, K)).eval()


def data(n=48, size=8, model=None):
    images = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, (model or linear())(images).argmax(1)


class Around(nn.Module):
    def __init__(self, model, before=lambda x: x, after=lambda y, x: y):
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.eval()

    def forward(self, images):
        return self.after(self.model(self.before(images)), images)


class Attention(nn.Module):
    """Takes the batch for the sequence, as a transformer with batch_first forgotten does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Linear(192, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, K)
        self.eval()

    def forward(self, images):
        tokens = self.embed(images.flatten(1))[:, None]
        return self.head(self.mix(tokens, tokens, tokens)[0][:, 0])


class BatchStatistics(nn.Module):
    """BatchNorm that never leaves the training mode."""

    def __init__(self):
        super().__init__()
        self.model = linear()

    def forward(self, images):
        return self.model(F.batch_norm(images, None, None, training=True))


def rows(x):
    return torch.arange(len(x), dtype=x.dtype).view(-1, 1)


MIXING = {
    "the mean of the batch": Around(linear(), lambda x: x - x.mean(0)),
    "statistics of the batch": BatchStatistics(),
    "the largest of the batch": Around(linear(), lambda x: x / x.amax()),
    "attention over the batch": Attention(),
    "the number of images": Around(linear(), after=lambda y, x: y + len(x) * torch.linspace(0, 0.01, K)),
    "the place in the batch": Around(linear(), after=lambda y, x: y + rows(x) * torch.linspace(0, 0.1, K)),
    "the first of the batch": Around(linear(), lambda x: x - 0.1 * x[:1]),
    "quantised by the batch": Around(linear(), lambda x: (x / x.mean() * 4).round() * x.mean() / 4),
}


@pytest.mark.parametrize("what", MIXING)
def test_images_that_change_each_others_answers_are_seen(what):
    images, labels = data()
    for n in (48, 7):
        seen = inspect_model(MIXING[what], images[:n], labels[:n] * 0)
        assert seen.beside > 1e-3
        assert "depends on the images beside it" in " ".join(seen.warnings)
        assert not seen.random


def test_one_image_is_looked_at_beside_strangers():
    images, labels = data(1)
    assert inspect_model(MIXING["the mean of the batch"], images, labels * 0).beside > 0
    assert inspect_model(linear(), images, labels).beside == 0


@pytest.mark.parametrize("kind", ["float32", "bfloat16 inside", "convolutions", "one at a time"])
def test_rounding_is_not_taken_for_dependence_on_other_images(kind):
    torch.manual_seed(0)
    images, labels = data()
    model = {
        "float32": linear(),
        "bfloat16 inside": Around(linear().bfloat16(), lambda x: x.bfloat16(), lambda y, x: y.float()),
        "convolutions": nn.Sequential(
            nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 8, 3), nn.Flatten(), nn.Linear(128, K)).eval(),
        "one at a time": linear(),
    }[kind]  # fmt: skip
    assert inspect_model(model, images, labels).beside == 0


def test_measured_one_at_a_time_the_batch_size_does_not_matter_again():
    images, labels = data(12)
    model = Around(linear(), lambda x: x - 0.5 * x.mean(0))
    labels = torch.cat([model(image) for image in images.split(1)]).argmax(1)
    attacks = [APGD(2 / 255, steps=10)]
    together = {size: evaluate(model, images, labels, attacks=attacks, search=SearchOptions(batch_size=size)) for size in (12, 1)}
    assert together[12]["clean"].accuracy < together[1]["clean"].accuracy == 1  # which is why it is said
    alone = [evaluate(model, images, labels, attacks=attacks, search=SearchOptions(batch_size=size, one_at_a_time=True)) for size in (12, 5, 1)]
    verdicts = [[{k: v for k, v in line.items() if isinstance(v, bool)} for line in found.verdicts] for found in alone]
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert alone[0]["clean"].accuracy == 1
    assert 0 < alone[0]["apgd-ce"].accuracy == together[1]["apgd-ce"].accuracy < 1
    assert "one image a pass, on purpose" in " ".join(alone[0].warnings)
    assert "depends on the images" not in " ".join(alone[0].warnings)


def test_it_is_said_from_python_too_and_written_down(tmp_path, caplog):
    caplog.set_level("INFO", "rocl_transfer")
    images, labels = data(8)
    results = evaluate(MIXING["the mean of the batch"], images, labels, attacks="paper")
    assert "note: the model's answer to an image depends on the images beside it" in caplog.text
    results.write(tmp_path, model={}, dataset={}, training={}, config={})
    record = json.loads((tmp_path / "results.json").read_text())
    assert "depends on the images beside it" in record["report"]["warnings"][0]


def test_a_journal_of_batches_is_not_continued_one_at_a_time(tmp_path):
    images, labels = data(4)
    evaluate(linear(), images, labels, attacks="paper", context=Context(journal=tmp_path / "j"))
    with pytest.raises(UserError, match="one at a time differ"):
        evaluate(linear(), images, labels, attacks="paper", search=SearchOptions(one_at_a_time=True), context=Context(journal=tmp_path / "j"))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Around(linear(), after=lambda y, x: y.squeeze(0)), r"answers 8 images at once and fails on 1"),
        (nn.Sequential(linear(), nn.BatchNorm1d(K)), None),
        (Around(linear(), after=lambda y, x: F.batch_norm(y, None, None, training=True)), r"fails on 1 \(Expected more than 1 value per channel"),
        (Around(linear(), lambda x: x.view(2, -1, 3, 8, 8).flatten(0, 1)), "answers 8 images at once and fails on 1"),
    ],
)
def test_a_model_that_needs_a_batch_is_refused_before_it_is_attacked(model, sentence):
    images, labels = data(8)
    model.eval()
    if sentence is None:
        assert inspect_model(model, images, labels * 0).beside == 0
        return
    with pytest.raises(UserError, match=sentence):
        evaluate(model, images, labels * 0)


def masking_of(model, images, labels, epsilon=2 / 255):
    seen = inspect_model(model, images, labels)
    headline = named_attacks("fast", epsilon, "linf", K)[0]
    results = evaluate(model, images, labels, attacks=report_attacks(headline, 8, K, {}), context=Context(seen=seen))
    return results, assemble(results, headline, 8, [str(i) for i in range(K)], seen, {})["masking"]


def test_attacks_that_a_large_offset_blinds_are_no_robustness():
    """The same linear network with and without 1e8 added to its logits, 48 images of 8 px."""
    honest = linear()
    images, labels = data(model=honest)
    blind = Around(copy.deepcopy(honest), after=lambda y, x: y + 1e8)
    results, found = masking_of(honest, images, labels)
    assert found["verdict"] == "not masked", [check for check in found["checks"] if not check["passed"]]
    with torch.no_grad():
        answers = blind(images).argmax(1)
    seen = inspect_model(blind, images, answers)
    assert seen.coarse
    assert "too coarse for float32: numbers near its largest logit (1e+08) lie 8 apart" in " ".join(seen.warnings)
    _, found = masking_of(blind, images, answers)
    assert found["verdict"] == "masked"
    assert "answers are fine enough for attacks to follow" in [check["name"] for check in found["checks"] if not check["passed"]]
    assert results["autoattack-fast"].accuracy < 1


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(context, logits, step):
        return (logits / step).round() * step

    @staticmethod
    def backward(context, gradient):
        return gradient, None


@pytest.mark.parametrize("offset", [1e6, 1e7, -1e8, 1e9])
def test_logits_with_a_huge_offset_are_found_coarse(offset):
    images, labels = data()
    assert inspect_model(Around(linear(), after=lambda y, x: y + offset), images, labels * 0).coarse


@pytest.mark.parametrize("offset", [0, 1e2, 1e3])
def test_logits_with_a_small_offset_are_not_found_coarse(offset):
    images, labels = data()
    seen = inspect_model(Around(linear(), after=lambda y, x: y + offset), images, labels)
    assert (seen.coarse, seen.warnings) == (False, ())


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Around(linear(), after=lambda y, x: (y + 1e8) - 1e8), "first place to two classes"),
        (Around(linear(), after=lambda y, x: Rounded.apply(y, 1.0)), "stay the same to the last digit"),
        (Around(linear(), after=lambda y, x: (100 * y).softmax(1).mul(1e3).softmax(1)), "stay the same to the last digit"),
        (Around(linear().bfloat16(), lambda x: x.bfloat16(), lambda y, x: y + 300), "too coarse for bfloat16"),
        (Around(linear().half(), lambda x: x.half(), lambda y, x: y + 2000), "too coarse for float16"),
        (Around(linear(), after=lambda y, x: 0 * y), "first place to two classes alike for 100%"),
    ],
    ids=["offset taken back", "rounded, gradients passed through", "saturated", "bfloat16", "float16", "constant"],
)
def test_other_outputs_that_come_in_steps(model, sentence):
    images, labels = data()
    seen = inspect_model(model, images, labels * 0)
    assert seen.coarse
    assert sentence in " ".join(seen.warnings)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = linear()

    def forward(self, images):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(images).float()


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (linear(), "float32"),
        (linear().double(), "float64"),
        (Around(linear().half(), lambda x: x.half()), "float16"),
        (Around(linear().bfloat16(), lambda x: x.bfloat16(), lambda y, x: y.float()), "bfloat16"),
        (Autocast(), "bfloat16"),
        (Around(linear(), lambda x: x.half().float()), "float16"),
    ],
    ids=["float32", "float64", "half", "cast back", "autocast inside", "input alone"],
)
def test_half_precision_is_said_wherever_it_stands(model, precision, tmp_path):
    images, labels = data(6)
    model.eval()
    results = evaluate(model, images, labels * 0, attacks="paper")
    assert results.precision == precision
    assert ("not of float32" in " ".join(results.warnings)) == (precision in ("float16", "bfloat16"))
    results.write(tmp_path, model={}, dataset={}, training={}, config={})
    assert json.loads((tmp_path / "results.json").read_text())["environment"]["precision"] == precision


def test_nothing_right_before_the_attacks_decides_nothing():
    images, labels = data(16)
    _, found = masking_of(linear(), images, (labels + 1) % K)
    assert found["verdict"] == "undecided"
    assert [check["name"] for check in found["checks"] if check["passed"] is None] == ["there is something to break"]
