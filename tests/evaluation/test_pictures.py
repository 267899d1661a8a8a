"""Pictures are what the evaluation found: none says something else than the verdict on its sample."""

import json
import warnings

import pytest
import torch
from torch import nn

from rocl_transfer import PGD, evaluate
from rocl_transfer.attacks import APGD, Square
from rocl_transfer.attacks.transfer import Transfer
from rocl_transfer.data import Resident
from rocl_transfer.evaluation import Context, Ensemble, choose_pictures
from rocl_transfer.evaluation.report.page import render_page
from rocl_transfer.evaluation.results import attack_key
from rocl_transfer.evaluation.searcher import Searcher
from tests.evaluation.test_page import Page

K = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, K)).eval()


class Stairs(nn.Module):
    """No gradient anywhere: Square alone breaks it."""

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, images):
        return self.model((images * 64).round() / 64)


def data(model, n=40):
    """The first two are labelled wrongly."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % K
    return images, labels


def ensemble(epsilon):
    return Ensemble("autoattack", (APGD(epsilon, steps=10), Square(epsilon, queries=200)), "short")


def agree(model, images, results, pictures, epsilon):
    """Every picture, held against the verdict on its sample and against the model."""
    lines = {line["index"]: line for line in results.verdicts}
    kinds = []
    for row, sample in enumerate(pictures.samples.tolist()):
        line = lines[sample]
        changed = (pictures.adversarial[row] - pictures.clean[row]).abs().max()
        assert torch.equal(pictures.clean[row], images[sample])
        assert pictures.labels[row] == line["label"]
        assert (pictures.clean_answers[row] == line["label"]) == line["clean"]
        assert (pictures.adversarial_answers[row] == line["label"]) == line[results.pictured]
        assert model(pictures.adversarial[row : row + 1]).argmax(1) == pictures.adversarial_answers[row]
        broken = line["clean"] and not line[results.pictured]
        assert (0 < changed <= epsilon + 1e-6) if broken else changed == 0
        kinds.append(2 if not line["clean"] else 0 if broken else 1)
    assert kinds == sorted(kinds)  # broken ones first, then those that stood, then those that were wrong before
    return kinds


@pytest.mark.parametrize("epsilon", [1e-5, 0.006, 0.02, 0.2])
def test_pictures_say_what_the_verdicts_say(epsilon):
    model = network()
    images, labels = data(model)
    results = evaluate(model, images, labels, attacks=[ensemble(epsilon), PGD(2 * epsilon, steps=3)])
    assert results.pictured == attack_key(ensemble(epsilon))
    pictures = choose_pictures(Resident(images), results)
    kinds = agree(model, images, results, pictures, epsilon)
    assert len(kinds) == 8
    everything = sorted(2 if not line["clean"] else int(line[results.pictured]) for line in results.verdicts)
    assert kinds == everything[:8]
    if epsilon == 0.2:  # every class is broken wholly, and every one is shown
        assert results["autoattack"].accuracy == 0
        assert set(pictures.labels.tolist()) == {line["label"] for line in results.verdicts if line["clean"]}


def test_what_random_search_broke_is_shown_as_that(tmp_path):
    model = Stairs()
    images, labels = data(model)
    results = evaluate(model, images, labels, attacks=[ensemble(0.05)])
    pictures = choose_pictures(Resident(images), results)
    assert 0 in agree(model, images, results, pictures, 0.05)
    results.write(tmp_path, model={"name": "m"}, dataset={"name": "d", "n": 40, "class_names": list("abcd")}, training={}, config={})
    pictures.write(tmp_path / "pictures.safetensors")
    page = Page(render_page(tmp_path).read_text(encoding="utf-8")).sections["pictures"]
    assert page.count(", square") == sum(line.get("broken_by", "").startswith("square") for line in results.verdicts
                                         if line["index"] in pictures.samples.tolist()) > 0  # fmt: skip
    assert "none found" not in page


def test_the_page_says_of_the_others_what_they_are(tmp_path):
    model = network()
    images, labels = data(model, 6)
    results = evaluate(model, images, labels, attacks=[ensemble(1e-6)])
    results.write(tmp_path, model={"name": "m"}, dataset={"name": "d", "n": 6, "class_names": list("abcd")}, training={}, config={})
    choose_pictures(Resident(images), results).write(tmp_path / "pictures.safetensors")
    page = Page(render_page(tmp_path).read_text(encoding="utf-8")).sections["pictures"]
    assert page.count("wrong before any attack") == 2
    assert page.count("stood every attack") == 4


def test_a_run_that_went_on_shows_the_same_and_another_radius_its_own(tmp_path, monkeypatch):
    model = network()
    images, labels = data(model)

    def run(epsilon):
        return evaluate(model, images, labels, attacks=[ensemble(epsilon)], context=Context(journal=tmp_path / "j"))

    first = run(0.02)
    assert first.found
    (tmp_path / "j" / "found" / "autoattack_linf_0.02" / ".7.safetensors").write_bytes(b"")  # of a kill while it was written
    monkeypatch.setattr(Searcher, "_search", None)  # nothing is left to be searched
    again = run(0.02)
    assert again.found.keys() == first.found.keys()
    assert all(torch.equal(again.found[sample][0], image) and again.found[sample][1] == answer for sample, (image, answer) in first.found.items())
    monkeypatch.undo()
    smaller = run(0.006)
    agree(model, images, smaller, choose_pictures(Resident(images), smaller), 0.006)


def test_few_are_kept_of_each_class():
    model = network()
    images, labels = data(model, 300)
    found = evaluate(model, images, labels, attacks=[PGD(0.3, steps=3)]).found
    assert 0 < len(found) <= 8 * K


def test_clean_accuracy_alone_has_no_pictures():
    model = network()
    images, labels = data(model)
    assert choose_pictures(Resident(images), evaluate(model, images, labels, attacks=[])) is None


def test_pictured_chooses_the_attack():
    model = network()
    images, labels = data(model)
    results = evaluate(model, images, labels, attacks=[PGD(1e-5, steps=3), PGD(0.2, steps=3)], context=Context(pictured=-1))
    assert results.pictured == "pgd-3 linf 0.2"
    assert 0 in agree(model, images, results, choose_pictures(Resident(images), results), 0.2)


def test_letters_that_the_font_lacks_are_one_line_of_the_log(tmp_path, caplog):
    pytest.importorskip("matplotlib")
    from rocl_transfer.evaluation.report.figures import draw_adversarial

    caplog.set_level("INFO", "rocl_transfer")
    model = network()
    images, labels = data(model)
    results = evaluate(model, images, labels, attacks=[PGD(0.2, steps=3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, letters in (("plain", "abcd"), ("fish", "金魚魚金")):
            draw_adversarial(choose_pictures(Resident(images), results), PGD(0.2, steps=3), list(letters), tmp_path / f"{name}.png")
    said = [record.getMessage() for record in caplog.records if ".png" in record.getMessage()]
    assert said == ["fish.png: the font lacks letters of the names, boxes stand for them"]


@pytest.mark.parametrize("name", ["$10_$20", "$$", "$\\frac{$", "$x_$ and $y^$"])
def test_a_name_is_no_formula_in_any_figure(name, tmp_path):
    """Two dollar signs are one to matplotlib, and a formula that cannot be read ended the run that had been trained."""
    pytest.importorskip("matplotlib")
    from rocl_transfer.evaluation.comparison import compare, draw_comparison, read_run
    from rocl_transfer.evaluation.report.figures import draw_adversarial, draw_robustness, draw_training, svg_broken, svg_classes, svg_curve

    model = network()
    images, labels = data(model)
    attack = Transfer(model, PGD(0.2, steps=3), name)
    results = evaluate(model, images, labels, attacks=[attack])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step, name: 1.0}) + "\n" for step in (1, 2)))
    for folder in ("a", "b"):
        (tmp_path / f"{folder}{name}").mkdir(parents=True)
        results.write(tmp_path / f"{folder}{name}", model={"name": name}, dataset={"name": "d"}, training={}, config={})
    draw_adversarial(choose_pictures(Resident(images), results), attack, [name] * K, tmp_path / "adversarial.png")
    draw_robustness(results, tmp_path / "robustness.png")
    draw_training(tmp_path / "metrics.jsonl", tmp_path / "training.png")
    draw_comparison(compare([read_run(tmp_path / f"{folder}{name}") for folder in ("a", "b")]), tmp_path / "comparison.png")
    assert len(list(tmp_path.glob("*.png"))) == 4
    shown = [{"epsilon": 0.1 * step, "accuracy": 0.5} for step in range(3)]
    for page in (svg_broken([(name, 3), ("left", 2)], 5), svg_curve(shown, None, None, name), svg_classes([{"name": name, "clean": 1, "robust": 0}])):
        assert name in page
