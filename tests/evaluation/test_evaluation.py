import json

import pytest
import torch
from torch import nn

from rocl_transfer import PGD, UserError, evaluate
from rocl_transfer.attacks import APGD
from rocl_transfer.attacks.transfer import Transfer
from rocl_transfer.data import Resident
from rocl_transfer.evaluation import Ensemble, SearchOptions, compute_features, knn_accuracy, named_attacks, report_attacks, wilson_interval
from rocl_transfer.evaluation.evaluate import require_told_apart
from rocl_transfer.evaluation.results import attack_key, distinct, entry_key, name_in, spelled, verdict_key
from rocl_transfer.models import create_backbone
from tests.conftest import Precise


class Half(nn.Module):
    """Class 1 where the mean pixel is above a half: an attack of epsilon flips what is nearer than epsilon, so the truth is known."""

    def forward(self, images):
        margin = images.mean((1, 2, 3)) - 0.5
        return torch.stack([-margin, margin], 1) * 10


def grey_levels():
    levels = torch.tensor([0.40, 0.45, 0.48, 0.52, 0.55, 0.60])
    return levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), (levels > 0.5).long()


def test_a_model_whose_robustness_is_known():
    images, labels = grey_levels()
    results = evaluate(Half(), images, labels, attacks=[PGD(epsilon, steps=20) for epsilon in (0.01, 0.03, 0.07, 0.2)])
    assert [e.accuracy for e in results.evaluations] == pytest.approx([1, 1, 4 / 6, 2 / 6, 0])
    assert [line["pgd-20 linf 0.07"] for line in results.verdicts] == [True, False, False, False, False, True]
    assert results["clean"].n == 6
    assert results["pgd-20", 0.07].step_size == pytest.approx(0.007)


def test_wrong_before_the_attack_is_wrong_after_it():
    images, labels = grey_levels()
    results = evaluate(Half(), images, 1 - labels, attacks="paper", epsilon=0.2)
    assert [e.accuracy for e in results.evaluations] == [0, 0]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_verdicts_do_not_depend_on_the_batch_size(batch_size):
    torch.manual_seed(0)
    backbone = create_backbone("resnet8_cifar", 16)
    backbone.net.reset_classifier(3)
    model, images = Precise(backbone), torch.rand(20, 3, 16, 16)
    labels = model.eval()(images).argmax(1)
    attacks = [PGD(0.002, steps=5), PGD(0.02, steps=5, norm="l2")]
    found, expected = (evaluate(model, images, labels, attacks=attacks, search=SearchOptions(batch_size=size)).verdicts for size in (batch_size, 256))
    for mine, other in zip(found, expected, strict=True):
        assert mine.pop("margin") == pytest.approx(other.pop("margin"), abs=1e-6)
        assert mine == other


def test_a_store_of_bytes_is_the_tensor_of_floats():
    images, labels = (torch.rand(6, 3, 4, 4) * 255).byte(), torch.arange(6) % 2
    from_store = evaluate(Half(), Resident(images), labels, attacks="paper")
    assert from_store.verdicts == evaluate(Half(), images / 255, labels, attacks="paper").verdicts


def test_measured_in_eval_mode_and_left_as_it_came():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.rand(8, 3, 4, 4), torch.zeros(8, dtype=torch.long)
    first, second = (evaluate(model, images, labels, attacks="paper") for _ in range(2))
    assert first.verdicts == second.verdicts
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("images", [torch.full((2, 3, 4, 4), 1.1), torch.full((2, 3, 4, 4), -0.1), torch.full((2, 3, 4, 4), float("nan"))])
def test_pixels_outside_the_unit_range_are_refused(images):
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        evaluate(Half(), images, torch.zeros(2, dtype=torch.long))


def test_bad_calls_of_evaluate_are_one_sentence():
    images, labels = grey_levels()
    with pytest.raises(UserError, match="one label per image"):
        evaluate(Half(), images, labels[:-1])
    with pytest.raises(UserError, match="labels run from 7 to 7, the model has 2 classes"):
        evaluate(Half(), images, torch.full_like(labels, 7))
    with pytest.raises(UserError, match="did you mean 'paper'"):
        evaluate(Half(), images, labels, attacks="papers")


def one_name(epsilon=0.07):
    """Attacks that verdicts would call alike though they differ."""
    fast, attack = named_attacks("fast", epsilon, "linf", 2)[0], PGD(epsilon)
    return {
        "steps of another length": [attack, PGD(epsilon, step_size=1e-4)],
        "other steps": [APGD(epsilon), APGD(epsilon, steps=1)],
        "a part, and what it does alone": [fast, APGD(epsilon, targets=1)],
        "an ensemble of other parts": [fast, Ensemble("autoattack-fast", fast.attacks[:1], "")],
        "two surrogates": [Transfer(Half(), attack, "transfer"), Transfer(Half(), attack, "transfer")],
        "an attack on a surrogate, and itself": [attack, Transfer(Half(), attack, attack.name)],
    }


@pytest.mark.parametrize("which", one_name())
def test_different_attacks_of_one_name_are_refused_before_anything_is_measured(which):
    """Of the first, the second's verdicts would be given."""

    class Unasked(nn.Module):
        def forward(self, images):
            raise AssertionError("measured")

    images, labels = grey_levels()
    with pytest.raises(UserError, match=r"two attacks go by the name '[\w-]+ linf 0.07', one .* and one .*: evaluate each in a call of its own$"):
        evaluate(Unasked(), images, labels, attacks=one_name()[which])


def test_equal_attacks_give_equal_numbers_however_often_and_wherever_they_stand():
    images, labels = grey_levels()
    fast, surrogate = named_attacks("fast", 0.07, "linf", 2)[0], Half()
    transfers = [Transfer(surrogate, PGD(0.07), "transfer") for _ in range(2)]
    attacks = [PGD(0.07), fast, PGD(0.07), APGD(0.07), fast, *transfers]
    results = evaluate(Half(), images, labels, attacks=attacks)
    alone = {key: value for attack in (PGD(0.07), fast, transfers[0]) for key, value in accuracies(evaluate(Half(), images, labels, attacks=attack))}
    assert len(results.evaluations) == 1 + 1 + 3 + 1 + 1 + 3 + 2
    assert all(alone[key] == value for key, value in accuracies(results))


def accuracies(results):
    return [(entry.name, entry.accuracy) for entry in results.evaluations]


@pytest.mark.parametrize(("norm", "size"), [("linf", 32), ("l2", 32), ("l1", 32), ("l1", 8)])
@pytest.mark.parametrize("epsilon", [1e-3, 8 / 255, 0.5, 1.0, 12.0, 300.0])
def test_no_two_attacks_of_a_full_report_differ_under_one_name(norm, size, epsilon):
    if norm != "linf" or epsilon <= 1:
        headline = named_attacks("standard", epsilon, norm, 10)[0]
        require_told_apart(report_attacks(headline, size, 10, {"a": (Half(), "1"), "b": (Half(), "2")}))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("autoattack", "nothing was measured under 'autoattack'; did you mean 'autoattack-fast'?: there are clean, apgd-ce linf 0.07,"),
        (("apgd-ce", 0.1), "nothing was measured under ('apgd-ce', 0.1): there are clean, apgd-ce linf 0.07, apgd-t linf 0.07, autoattack-fast linf"),
    ],
)
def test_what_was_not_measured_is_refused_with_what_was(key, sentence):
    images, labels = grey_levels()
    with pytest.raises(UserError) as refused:
        evaluate(Half(), images, labels, attacks="fast", epsilon=0.07)[key]
    assert str(refused.value).startswith(sentence)


def test_evaluate_runs_autoattack_by_default():
    images, labels = grey_levels()
    results = evaluate(Half(), images, labels, epsilon=0.07)
    assert results["autoattack"].accuracy == pytest.approx(2 / 6)
    assert results["autoattack"].version == "adapted, K = 2"
    assert [e.name for e in results.evaluations if e.name not in ("clean", "autoattack")] == ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize("name", ["pgd-20", "transfer from a b.c"])
def test_a_verdicts_key_is_spelled_alike_everywhere_and_gives_the_name_back(name):
    key = verdict_key(name, "linf", 8 / 255)
    assert key == entry_key({"name": name, "norm": "linf", "epsilon": 8 / 255}) == f"{name} linf 0.0313725"
    assert name_in(key) == name
    assert name_in(verdict_key("clean")) == entry_key({"name": "clean"}) == "clean"


def test_the_key_of_an_attack_is_in_every_verdict():
    images, labels = grey_levels()
    attack = PGD(0.03, norm="l2", steps=3)
    assert all(attack_key(attack) in line for line in evaluate(Half(), images, labels, attacks=attack).verdicts)


def test_the_record_of_an_evaluation_holds_its_conditions(tmp_path):
    images, labels = grey_levels()
    results = evaluate(Half(), images, labels, attacks="paper", epsilon=0.07)
    results.write(tmp_path, model={"name": "half", "sha256": "0"}, dataset={"name": "grey"}, training={}, config={"a": 1})
    record = json.loads((tmp_path / "results.json").read_text())
    assert set(record) == {"model", "dataset", "evaluations", "doubts", "environment", "date", "training", "seed", "config"}
    clean, pgd = record["evaluations"]
    assert set(clean) == {"name", "accuracy", "interval", "n", "seconds", "passes"}
    assert {k: pgd[k] for k in ("name", "norm", "epsilon", "steps", "restarts", "n")} == {
        "name": "pgd-20", "norm": "linf", "epsilon": 0.07, "steps": 20, "restarts": 1, "n": 6,
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert sum(line["pgd-20 linf 0.07"] for line in lines) / 6 == pgd["accuracy"]


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)]
)
def test_wilson_interval_against_published_values(right, n, low, high):
    # 81/263 and 15/148: Newcombe 1998, table I, method 3.
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=1e-4)


def test_knn_votes_by_similarity():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 2.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    queries = torch.tensor([[5.0, 0.2], [0.1, 0.3]])
    assert knn_accuracy(bank, labels, queries, torch.tensor([0, 1]), neighbours=2) == 1
    assert knn_accuracy(bank, labels, queries, torch.tensor([1, 1]), neighbours=2) == 0.5
    assert knn_accuracy(bank, labels, queries, torch.tensor([0, 1]), neighbours=5) == 1  # similarity outweighs the three others


def test_features_leave_the_model_as_it_came():
    model = create_backbone("resnet8_cifar", 16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    features = compute_features(model, Resident(images), batch_size=4)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(features, model.eval()(images / 255))
    torch.testing.assert_close(compute_features(model, Resident(images), torch.tensor([3, 1])), features[[3, 1]])


@pytest.mark.parametrize(
    ("radius", "words"),
    [
        (8 / 255, "8/255"), (4 / 255, "4/255"), (0.5 * 8 / 255, "4/255"), (1.5 / 255, "1.5/255"), (0.25 / 255, "0.25/255"), (0.0314, "0.0314"),
        (0.1, "0.1"), (0.2, "0.2"), (0.5, "0.5"), (1.0, "1"), (12.0, "12"), (0.031372, "0.03137"), (0.333, "0.333"), (64 / 255, "64/255"),
    ],
)  # fmt: skip
def test_a_radius_comes_back_as_it_was_given(radius, words):
    assert spelled(radius) == words


def test_equal_radii_are_measured_once(caplog):
    caplog.set_level("INFO", "rocl_transfer")
    attacks = [PGD(0.0314), PGD(8 / 255), PGD(16 / 255), PGD(8 / 255, steps=50), PGD(16 / 255, norm="l2"), PGD(16 / 255)]
    assert [(a.name, a.norm, a.epsilon) for a in distinct(attacks)] == [
        ("pgd-20", "linf", 8 / 255), ("pgd-50", "linf", 8 / 255), ("pgd-20", "l2", 16 / 255), ("pgd-20", "linf", 16 / 255),
    ]  # fmt: skip
    assert caplog.messages == ["epsilon 0.0314 and 8/255 are one, measured once: 8/255", "epsilon 16/255 is measured once: 16/255"]
    assert len(distinct([PGD(0.1), PGD(0.102)])) == 2
