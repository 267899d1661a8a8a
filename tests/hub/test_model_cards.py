"""The published models: cards that are what their records render, weights that give the recorded numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import rocl_transfer as rt
from rocl_transfer.data import load_images, store_images
from rocl_transfer.hub import render_card
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
