"""Many models on one page, from the records of their runs."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from rocl_transfer import UserError
from rocl_transfer.hub.overview import COLUMNS, markdown_overview, read_models, render_overview
from tests.conftest import ROOT

CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/results.json"))


class Cells(HTMLParser):
    """The table's rows, the links, and whatever would be fetched from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.links, self.fetched, self.open = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True
        if tag == "a":
            self.links.append(given["href"])
        self.fetched += [given[key] for key in ("src", "srcset", "data") if key in given] + ([given["href"]] if tag == "link" else [])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.open = False

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def test_the_page_of_the_reference_models(tmp_path):
    assert CARDS
    page = ROOT / "model_cards" / "models.page.html"  # where it would stand; nothing is written there
    models = read_models(CARDS)
    read = Cells(render_overview(models, page))
    assert tuple(read.rows[0]) == COLUMNS
    assert set(read.links) == {f"{card.name}/README.md" for card in CARDS}
    assert read.fetched == []
    shown = {(row[0], row[2], row[3], row[4]): row for row in read.rows[1:]}
    assert len(shown) == len(read.rows) - 1
    for card in CARDS:
        record = json.loads((card / "results.json").read_text())
        parts = (record, record.get("robustness") or {})
        # What was measured on more images stands, the later of two on as many.
        entries = sorted((one for part in parts for one in part.get("evaluations", [])), key=lambda one: one["n"])
        measured = {(one["name"], one.get("norm"), one.get("epsilon")): one for one in entries}
        for one in measured.values():
            name = one["name"] + (f" ({one['version']})" if "version" in one else "")
            radius = next((key[3] for key in shown if key[:3] == (record["model"]["name"], name, one.get("norm", "")) and matches(key[3], one)), None)
            row = shown[record["model"]["name"], name, one.get("norm", ""), radius]
            assert row[5] == f"{100 * one['accuracy']:.2f}"
            assert row[6] == f"{100 * one['interval'][0]:.2f} - {100 * one['interval'][1]:.2f}"
            assert row[7] == str(one["n"])


def matches(radius, one):
    low, _, high = radius.partition("/")
    value = 0.0 if not radius else float(low) / float(high or 1)
    return abs(value - (one.get("epsilon") or 0)) < 1e-9


@pytest.fixture
def two(tmp_path):
    """The reference model twice: once as it is, once with other numbers, data and a name that is no HTML."""
    for name in ("one", "two"):
        shutil.copytree(ROOT / "model_cards" / "resnet8_cifar.r_le_digits", tmp_path / name)
    path = tmp_path / "two" / "results.json"
    record = json.loads(path.read_text())
    record["model"]["name"], record["doubts"] = "<b>|bold|</b>", ["answers are at chance"]
    for part in (record, record["robustness"]):
        for one in part["evaluations"]:
            one["accuracy"] = one["accuracy"] / 2
    path.write_text(json.dumps(record))
    return tmp_path


def test_curves_take_the_lowest_accuracy_at_each_radius_of_every_model(two):
    page = render_overview(read_models([two / "one", two / "two"]), two / "page.html")
    lines = re.findall(r'<polyline class="c(\d) d0" points="([^"]+)"', page)
    curves = [(colour, [tuple(map(float, point.split(","))) for point in line.split()]) for colour, line in lines if "5 32" not in line]
    assert [colour for colour, _ in curves] == ["0", "1"]
    record = json.loads((two / "one" / "results.json").read_text())
    whole = [one for part in (record, record["robustness"]) for one in part["evaluations"]]
    for (_, points), share in zip(curves, (1, 0.5), strict=True):
        assert [round(44 + 584 * epsilon / 0.15, 1) for epsilon in (0, 0.025, 0.05, 0.1, 0.15)] == [x for x, _ in points]
        for epsilon, (_, y) in zip((0, 0.025, 0.05, 0.1, 0.15), points, strict=True):
            lowest = min(one["accuracy"] for one in whole if (one.get("epsilon") or 0) == epsilon)
            assert y == pytest.approx(10 + 250 * (1 - share * lowest), abs=0.051)


def test_names_are_no_code_and_doubts_are_said(two):
    models = read_models([two / "one", two / "two"])
    page, table = render_overview(models, two / "page.html"), markdown_overview(models, two / "page.md")
    assert "<b>" not in page
    assert "&lt;b&gt;|bold|&lt;/b&gt;" in page
    assert "Doubtful: answers are at chance" in page
    assert "is doubtful: answers are at chance" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "(one/README.md)" in table


def rewrite(folder, change):
    record = json.loads((folder / "results.json").read_text())
    change(record)
    (folder / "results.json").write_text(json.dumps(record))


def test_what_a_later_evaluation_doubts_or_warns_of_is_said_as_on_the_card(two):
    def change(record):
        record["doubts"], record["report"] = ["at chance"], {"warnings": ["outputs are coarse"]}
        record["robustness"] |= {"doubts": ["nothing broke it", "at chance"], "report": {"warnings": ["no gradient"]}}

    rewrite(two / "one", change)
    models = read_models([two / "one"])
    assert (models[0].doubts, models[0].warnings) == (("at chance", "nothing broke it"), ("outputs are coarse", "no gradient"))
    page, table = render_overview(models, two / "page.html"), markdown_overview(models, two / "page.md")
    for sentence in (*models[0].doubts, *models[0].warnings):
        assert page.count(sentence) == table.count(sentence) == 1
    assert page.count("Doubtful: ") == table.count("is doubtful: ") == 2
    assert page.count("Note: ") == table.count("comes with a note: ") == 2


@pytest.mark.parametrize(("first", "later", "shown"), [(100, 10, "0.1"), (10, 100, "0.2"), (50, 50, "0.2"), (None, 10, "0.2"), (10, None, "0.1")])
def test_of_two_numbers_of_one_kind_that_on_more_images_is_shown_with_its_n(two, first, later, shown):
    def change(record):
        for part, accuracy, n in ((record, 0.1, first), (record["robustness"], 0.2, later)):
            part["evaluations"][0] |= {"accuracy": accuracy, "n": n}

    rewrite(two / "one", change)
    (clean,) = [one for one in read_models([two / "one"])[0].numbers if one.name == "clean"]
    assert (str(clean.accuracy), clean.n) == (shown, first if shown == "0.1" else later)


def test_names_are_unique_whatever_the_folders_are_called(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("p1/eval", "p2/eval", "deep/p1/eval", "other")]
    for folder in folders:
        shutil.copytree(ROOT / "model_cards" / "resnet8_cifar.r_le_digits", folder)
    rewrite(folders[3], lambda record: record["model"].update(name="another"))
    name = json.loads((folders[0] / "results.json").read_text())["model"]["name"]
    assert [model.name for model in read_models(folders[1:])] == [f"{name} (p2/eval)", f"{name} (p1/eval)", "another"]
    names = [model.name for model in read_models(folders)]
    assert names == [f"{name} ({tmp_path.name}/p1/eval)", f"{name} (p2/eval)", f"{name} (deep/p1/eval)", "another"]
    rewrite(folders[3], lambda record: record["model"].update(name=f"{name} (p2/eval)"))
    assert len({model.name for model in read_models(folders)}) == 4
    monkeypatch.chdir(tmp_path / "p1")
    with pytest.raises(UserError, match="is named twice: name each run once"):
        read_models([folders[0], "eval"])


def test_how_a_model_was_made_is_said_where_it_is_known_alone(two):
    """The record of an evaluation has neither the training's options nor its words."""
    assert "a linear head on a frozen backbone" in read_models([two / "one"])[0].how

    def evaluated(record):
        record["config"], record["training"] = {"model": {"name": "runs/ft"}, "attacks": "standard"}, {}

    rewrite(two / "one", evaluated)
    models = read_models([two / "one"])
    page = render_overview(models, two / "page.html")
    assert models[0].how == ""
    assert "linear head" not in page
    assert re.search(rf"</a>\s*: sha256 {models[0].sha256[:12]}", page)


def test_models_of_one_name_are_told_apart_and_only_a_card_that_is_there_is_linked(tmp_path):
    for name in ("first", "second"):
        shutil.copytree(ROOT / "model_cards" / "resnet8_cifar.r_le_digits", tmp_path / name)
    (tmp_path / "second" / "README.md").unlink()
    models = read_models([tmp_path / "first", tmp_path / "second"])
    assert len({model.name for model in models}) == 2
    assert str(tmp_path) not in markdown_overview(models, tmp_path / "page.md")
    assert [model.card(tmp_path / "deep" / "page.html") for model in models] == ["../first/README.md", None]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "has no results.json: name the run folder of an evaluated model"),
        ("{", "cannot be read as the record of an evaluation: evaluate the run again"),
        ("[]", "cannot be read as the record"),
        ('{"model": {"name": "m", "title": "t"}, "dataset": {"name": "d"}, "evaluations": [3]}', "cannot be read as the record"),
        ('{"model": {"name": "m", "title": "t"}, "dataset": {"name": "d"}, "evaluations": []}', "has no accuracy: name the run folders"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path, text, sentence):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run" / "results.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_models([tmp_path / "run"])
    with pytest.raises(UserError, match="there is no folder"):
        read_models([tmp_path / "nowhere"])
