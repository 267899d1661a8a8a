"""Accuracies that prove nothing: each is held against guessing, one answer for all, and the start, and the sentence has the right numbers."""

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

import rocl_transfer as rt
from rocl_transfer.data import Resident
from rocl_transfer.evaluation import Evaluation, NeighbourMonitor, SearchOptions, wilson_interval
from rocl_transfer.evaluation.doubts import Answers, against_the_start, doubts, weakness
from rocl_transfer.models import create_backbone


def said(labels, answers, classes, names=(), **standing):
    """As of a model that gave ``answers``; ``standing`` is right under attack."""
    labels, answers = np.array(labels), np.array(answers)
    attacked = {name: np.array(rows, dtype=bool) for name, rows in standing.items()}
    return Answers(labels, {"clean": labels == answers, **attacked}, classes, answers, names)


def test_one_answer_for_all_is_named():
    labels = [0, 1] * 24
    right = np.array(labels) == 1
    (sentence,) = doubts(said(labels, [1] * 48, 2, ("ants", "bees"), pgd=right))
    assert sentence.startswith("every image gets class 'bees': 50.00 %, interval 36.4-63.6 % of 48 images, guessing 50.00 %, is that class's share")
    assert "whether its normalisation is inside it" in sentence
    (unnamed,) = doubts(said(labels, [7] * 48, 10))  # a class that no image has
    assert unnamed.startswith("every image gets class 7: 0.00 %, interval 0.0-7.4 % of 48 images, guessing 10.00 %")


def test_chance_level_has_interval_and_guessing():
    labels = np.arange(100) % 10
    answers = np.where(np.arange(100) < 10, labels, (labels + 1 + np.arange(100) // 10 % 9) % 10)
    (sentence,) = doubts(said(labels, answers, 10))
    assert sentence.startswith("clean accuracy is not above guessing: 10.00 %, interval 5.5-17.4 % of 100 images, guessing 10.00 %; look whether")


def test_the_commonest_answer_of_unequal_classes():
    labels = [0] * 90 + [1] * 10
    almost = [0] * 99 + [1]  # 91 right
    (sentence,) = doubts(said(labels, almost, 2, ("cat", "dog")))
    assert sentence.startswith("clean accuracy is not above the commonest answer by more than chance: 91.00 %, interval 83.8-95.2 % of 100 images")
    assert sentence.endswith("guessing 50.00 %, 'cat' for all 90.00 %; the mean over the classes is 55.00 %")
    honest = [0] * 72 + [1] * 18 + [1] * 8 + [0] * 2  # 80 % of each class: less than 90 %, and the mean over the classes says what it is worth
    (sentence,) = doubts(said(labels, honest, 2, ("cat", "dog")))
    assert "not above the commonest answer: 80.00 %" in sentence
    assert "the mean over the classes is 80.00 %" in sentence


def test_below_guessing_asks_for_the_order_of_the_classes():
    labels = np.arange(200) % 10
    (sentence,) = doubts(said(labels, (labels + 1) % 10, 10))
    assert sentence.startswith("clean accuracy is below guessing: 0.00 %, interval 0.0-1.9 % of 200 images, guessing 10.00 %")
    assert "its classes are in the order of the data's" in sentence


def test_few_images_prove_nothing_in_either_direction():
    (sentence,) = doubts(said([0, 0, 1, 1], [0, 0, 1, 0], 2))
    assert sentence.startswith(
        "clean accuracy is not above guessing by more than chance: 75.00 %, interval 30.1-95.4 % of 4 images, guessing 50.00 %"
    )
    assert doubts(said([0, 0, 1, 1], [0, 0, 1, 1], 2)) == []  # 4 of 4: interval from 51 %
    assert doubts(said([0] * 20 + [1] * 20, [0] * 18 + [1] * 20 + [0] * 2, 2)) == []


def test_images_of_one_class():
    sentence, *_ = doubts(said([3] * 20, [3] * 15 + [1] * 5, 10))
    assert sentence == "all 20 images are of one class, 3: an accuracy on them cannot be told from one answer for all"


def test_robust_accuracy_that_one_answer_would_have():
    labels = np.arange(400) % 10
    clean = np.where(np.arange(400) < 320, labels, (labels + 1) % 10)
    small, large, none = np.arange(400) < 40, np.arange(400) < 8, np.zeros(400)
    (sentence,) = doubts(said(labels, clean, 10, **{"pgd-20 linf 0.03": small, "pgd-20 linf 0.06": large, "pgd-20 linf 0.1": none}))
    assert sentence == (
        "under pgd-20 linf 0.03 (10.00 %, interval 7.4-13.3 %) and whatever breaks more, one answer for all images would do as well (10.00 %)"
    )
    assert doubts(said(labels, clean, 10, **{"pgd-20 linf 0.03": np.arange(400) < 200, "pgd-20 linf 0.1": none})) == []  # 0 % needs no sentence


def test_an_ensemble_that_breaks_no_sample_is_doubted():
    labels = np.arange(48) % 2
    (sentence,) = doubts(said(labels, labels, 2, **{"apgd-ce linf 0.03": labels >= 0, "autoattack-fast linf 0.03": labels >= 0}))
    assert sentence.startswith("nothing broke one of the 48 right answers (2 attacks, autoattack-fast linf 0.03 the last)")
    assert doubts(said(labels, labels, 2, pgd=np.arange(48) > 0)) == []  # it broke one


def test_of_older_verdicts_the_answers_are_not_known():
    labels = np.arange(60) % 2
    (sentence,) = doubts(Answers(labels, {"clean": labels == 0}, 2))
    assert sentence.startswith("clean accuracy is not above guessing: 50.00 %")


def test_a_training_no_better_than_its_start_is_doubted():
    start = {"watched": "validation", "validation_accuracy": 0.6, "validation_robust_accuracy": 0.4}
    best = {"validation_accuracy": 0.55, "validation_robust_accuracy": 0.4}
    (sentence,) = against_the_start(start, {"best": best})
    assert sentence == (
        "training gained nothing on the validation images: 60.00 % clean, 40.00 % robust at the start, "
        "55.00 % clean, 40.00 % robust at the exported epoch"
    )
    assert against_the_start(start, {"best": {**best, "validation_robust_accuracy": 0.41}}) == []
    assert against_the_start({}, {"best": best}) == []
    assert against_the_start(start, {"best": None}) == []


@pytest.mark.parametrize(
    ("right", "n", "classes", "commonest"), [(51, 60, 2, 0.5), (20, 100, 10, 0.1), (1, 100, 1000, 0.001), (970, 1000, 2, 0.95), (9, 10, 2, 0.5)]
)
def test_what_is_above_guessing_is_not_doubted(right, n, classes, commonest):
    assert weakness("accuracy", right, n, classes, commonest, "x") is None


class Constant(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] * 0 + torch.tensor([0.0, 1.0, 0.0])


@pytest.mark.parametrize("attacks", ["paper", "fast"])
def test_the_python_call_says_it_and_the_record_holds_it(tmp_path, caplog, attacks):
    images, labels = torch.rand(48, 3, 8, 8), torch.arange(48) % 3
    with caplog.at_level(logging.WARNING, "rocl_transfer"):
        results = rt.evaluate(Constant(), images, labels, attacks=attacks, epsilon=8 / 255)
    (sentence,) = results.doubts
    assert sentence.startswith("every image gets class 1: 33.33 %, interval 21.7-47.5 % of 48 images, guessing 33.33 %")
    assert f"doubt: {sentence}" in caplog.messages
    assert [line["answer"] for line in results.verdicts] == [1] * 48
    results.write(tmp_path, model={}, dataset={}, training={}, config={})
    assert json.loads((tmp_path / "results.json").read_text())["doubts"] == [sentence]


def test_the_python_call_is_silent_where_nothing_is_doubtful(caplog):
    images = torch.rand(60, 3, 8, 8) * 0.2
    labels = torch.arange(60) % 3
    images[torch.arange(60), labels] += 0.5  # the class's channel is brighter
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with caplog.at_level(logging.WARNING, "rocl_transfer"):
        results = rt.evaluate(model, images, labels, attacks="paper", epsilon=0.3)
    assert results["clean"].accuracy == 1
    assert results.doubts == []
    assert not caplog.messages


def test_answers_stand_in_the_order_of_the_samples():
    images = torch.zeros(6, 3, 8, 8)
    images[torch.arange(6), torch.arange(6) % 3] = 1.0
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    results = rt.evaluate(model, images, torch.arange(6) % 3, attacks=[], samples=torch.tensor([4, 0, 5]), search=SearchOptions(batch_size=2))
    assert [(line["index"], line["answer"]) for line in results.verdicts] == [(0, 0), (4, 1), (5, 2)]


@pytest.mark.parametrize(
    ("right", "said"), [(12, "kNN accuracy is not above guessing by more than chance: 12.00 %, interval 7.0-19.8 %"), (40, None)]
)
def test_the_accuracy_of_neighbours_is_held_against_guessing_too(right, said):
    backbone = create_backbone("resnet8_cifar", 16)
    images, labels = Resident(torch.zeros(100, 3, 16, 16, dtype=torch.uint8)), torch.arange(100) % 10
    monitor = NeighbourMonitor(backbone, images, labels, images, labels)
    measured = Evaluation(name="kNN", accuracy=right / 100, interval=wilson_interval(right, 100), n=100, seconds=0)
    found = monitor.doubts(measured)
    assert found == [] if said is None else found[0].startswith(said)
