"""The published models: cards that are what their records render, weights that give the recorded numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import rocl_transfer as rt
from rocl_transfer.data import load_images, store_images
from rocl_transfer.hub import add_to_card, render_card
from rocl_transfer.training import sha256

CARDS = Path(__file__).parents[2] / "model_cards"
PUBLISHED = sorted(path.parent for path in CARDS.glob("*/results.json"))


@pytest.fixture(params=PUBLISHED, ids=lambda path: path.name)
def published(request):
    return request.param, json.loads((request.param / "results.json").read_text())


def test_the_card_is_what_its_record_renders(published, tmp_path):
    folder, record = published
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert render_card(copy).read_text() == (folder / "README.md").read_text()
    assert sha256(folder / "model.safetensors") == record["model"]["sha256"]
    assert record["model"]["name"] == folder.name


def test_an_evaluation_takes_the_place_of_one_that_says_no_more_and_stands_beside_any_other(tmp_path):
    run = shutil.copytree(CARDS / "resnet8_cifar.r_le_digits", tmp_path / "run")
    record = json.loads((run / "results.json").read_text())
    strong = record["robustness"]  # AutoAttack at 0.1 on 360 images
    strong["report"] = {"masking": {"verdict": "not masked", "checks": []}}
    (run / "results.json").write_text(json.dumps(record))

    def add(name="digits", n=360, epsilon=0.1, attack="autoattack", sha256=record["model"]["sha256"], report=strong["report"]):
        entries = [{**entry, "epsilon": epsilon, "name": attack} if "epsilon" in entry else entry for entry in strong["evaluations"]]
        data = {**strong["dataset"], "name": name, "n": n}
        found = {**strong, "model": {"sha256": sha256}, "dataset": data, "evaluations": entries, "report": report}
        (tmp_path / "found.json").write_text(json.dumps(found))
        added = add_to_card(run, tmp_path / "found.json")
        kept = json.loads((run / "results.json").read_text())["robustness"]
        return added, [(part["dataset"]["name"], part["dataset"]["n"], part["evaluations"][-1]["epsilon"]) for part in (kept if added else [])]

    first = ("digits", 360, 0.1)
    for less in ({"n": 359}, {"attack": "pgd-20"}, {"report": {}}, {"sha256": "0" * 64}):
        assert add(**less) == (False, [])
    assert add(name="others", n=5, epsilon=0.01) == (True, [first, ("others", 5, 0.01)])
    assert add(epsilon=0.2, n=100) == (True, [first, ("others", 5, 0.01), ("digits", 100, 0.2)])
    assert add(epsilon=0.2, n=50, attack="autoattack", report={})[0] is False
    assert add(epsilon=0.2, n=200) == (True, [first, ("others", 5, 0.01), ("digits", 200, 0.2)])
    card = (run / "README.md").read_text()
    assert card.count("Each part of an ensemble counts") == 3
    assert "| autoattack | linf | 0.2 |" in card
    assert f"{100 * strong['evaluations'][-1]['accuracy']:.2f}" in card


@pytest.mark.parametrize(("precision", "words"), [("bf16", ", bf16 autocast."), ("tf32", ", convolutions in TF32."), ("no", ".")])
def test_the_card_says_what_was_computed_in(published, tmp_path, precision, words):
    folder, record = published
    copy = shutil.copytree(folder, tmp_path / "copy")
    record["training"]["precision"] = precision
    (copy / "results.json").write_text(json.dumps(record))
    assert f"minutes on 1 x cpu{words}\n" in render_card(copy).read_text()


@pytest.mark.parametrize("folder", [path for path in PUBLISHED if path.name.endswith("_digits")], ids=lambda path: path.name)  # bundled images
def test_the_weights_give_the_recorded_accuracies(folder):
    record = json.loads((folder / "results.json").read_text())
    model = rt.load_classifier(str(folder))
    data = load_images(record["dataset"]["name"], image_size=model.input_size)
    assert len(data.test) == record["dataset"]["n"]
    test = store_images(data.test, model.input_size, torch.device("cpu"))
    attack = next(entry for entry in record["evaluations"] if entry.get("epsilon") == 0.1)
    results = rt.evaluate(model, test, data.test.labels, attacks="paper", epsilon=attack["epsilon"], seed=record["seed"])
    assert results["clean"].accuracy == record["evaluations"][0]["accuracy"]
    # Another processor's rounding may move a borderline sample or two.
    assert results["pgd-20"].accuracy == pytest.approx(attack["accuracy"], abs=2.5 / record["dataset"]["n"])
