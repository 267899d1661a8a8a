"""The evaluation's page: the record's numbers, nothing from outside, nothing from the files as markup."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import save_file

from rocl_transfer.evaluation.report import figures
from rocl_transfer.evaluation.report.figures import svg_classes
from rocl_transfer.evaluation.report.page import render_page

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{", "</text></svg>", "金魚"]
LINF = {"norm": "linf", "epsilon": 0.1}
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


def entry(name, accuracy, n=8, **conditions):
    return {"name": name, **conditions, "accuracy": accuracy, "interval": [accuracy * 0.9, accuracy * 0.9 + 0.1], "n": n, "seconds": 1.25}


def evaluations():
    return [
        entry("clean", 0.875),
        entry("pgd-20", 0.75, **LINF, steps=20, step_size=0.01, restarts=1),
        entry("apgd-ce", 0.625, **LINF, steps=100, restarts=1),
        entry("apgd-t", 0.5, **LINF, steps=100, restarts=1, targets=4),
        entry("square", 0.5, **LINF, queries=5000, restarts=1),
        entry("autoattack", 0.5, **LINF, version="standard"),
        entry("autoattack-fast", 0.3125, norm="l2", epsilon=0.5, version="two parts", n=16),
        entry("pgd-20", 0.6875, norm="linf", epsilon=0.2, n=16),
    ]


def full_report():
    return {
        "headline": {"name": "autoattack", **LINF},
        "classes": [{"name": name, "n": 2, "clean": 0.9, "robust": 0.1 * i} for i, name in enumerate(HOSTILE)]
        + [{"name": "nobody", "n": 0, "clean": 0.0, "robust": 0.0}],
        "worst_class": {"name": HOSTILE[0], "robust": 0.0},
        "curve": [{"epsilon": 0.0, "accuracy": 0.875, "interval": [0.8, 0.9]}, {"epsilon": 0.2, "accuracy": 0.1234, "interval": [0.1, 0.2]}],
        "curve_attack": "pgd-20 linf",
        "expected_robustness": 0.4992,
        "expected_to": 0.2,
        "transfer": [{"surrogate": "other_<b>model</b>", "sha256": "ab" * 32, "accuracy": 0.8125, "interval": [0.7, 0.9], "n": 8}],
        "smoothed": {"draws": 30, "transformations": "flips", "n": 8}
        | {"clean": entry("", 0.8521), "ordinary": entry("", 0.6543), "eot": entry("", 0.5432), "attack": "pgd"},
        "corruptions": {"gaussian_noise": [0.9, 0.8, 0.7, 0.6, 0.531], "fog": [0.5] * 5},
        "corruptions_mean": 0.6031,
        "masking": {
            "verdict": "suspect",
            "checks": [{"name": name, "passed": passed, "detail": "why"} for name, passed in (("one", True), ("two", False), ("three", None))],
        },
        "borderline": {"count": 1, "indices": [4], "tolerance": 0.0001},
        "warnings": ["a <i>warning</i>"],
    }


def write(folder, report=None, broken=("clean", *["apgd-ce linf 0.1"] * 2, "apgd-t linf 0.1", *[None] * 4), **changes):
    record = {
        "model": {"name": "net_<u>name</u>", "sha256": "cd" * 32},
        "dataset": {"name": "data", "revision": None, "split": "test", "n": 8, "classes": 5, "class_names": HOSTILE},
        "evaluations": evaluations(),
        "environment": {"torch": "2.11.0", "device": "cpu"},
        "date": "2026-11-23",
        "seed": 0,
        "config": {"data": {"name": "</pre><script>"}},
    }
    record |= changes | ({"report": report} if report else {})
    (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    parts = ["clean", *(f"{name} linf 0.1" for name in ("apgd-ce", "apgd-t", "square"))]
    lines = []
    for i, by in enumerate(broken):
        standing = {part: by not in parts[: place + 1] for place, part in enumerate(parts)}
        lines.append({"index": i, "label": 0, **standing, "broken_by": by or "autoattack-fast l2 0.5"})
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    clean = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = {"labels": torch.tensor([0, 1]), "clean_answers": torch.tensor([0, 1]), "adversarial_answers": torch.tensor([2, 7])}
    save_file({"clean": clean, "adversarial": (clean + 0.05).clamp(0, 1), **answers}, folder / "pictures.safetensors")
    return render_page(folder).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Fails on tags that do not balance; keeps tags, attributes and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.sections, self.section = [], set(), [], {"head": ""}, "head"
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.sections[self.section] += data if not self.open or self.open[-1] not in ("style",) else ""


@pytest.fixture(params=[True, False], ids=["plots", "tables"])
def plots(request, monkeypatch):
    if request.param:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setattr(figures, "find_spec", lambda name: None)
    return request.param


def test_a_full_page_is_whole_and_alone(tmp_path, plots):
    text = write(tmp_path, full_report())
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "u", "object"}
    assert ("svg" in page.tags) == plots
    assert ("plots need matplotlib" in text) != plots
    assert set(re.findall(r"https?://[^\s\"'<)]*", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "xlink:href"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name in ("href", "xlink:href")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)


def test_nothing_from_the_files_is_markup(tmp_path, plots):
    text = write(tmp_path, full_report())
    page = Page(text)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    for raw in ["<script", "<img src=x", "<i>warning", "<b>model", "<u>name", "</pre><script"]:
        assert raw not in text
    for name in HOSTILE:
        assert name in page.sections["classes"]
    assert HOSTILE[0] in page.sections["pictures"]
    assert "✗ 7" in page.sections["pictures"]  # a class without a name


def test_the_numbers_of_a_page_are_those_of_the_record(tmp_path, plots):
    sections = Page(write(tmp_path, full_report())).sections
    shown = {
        "head": ["87.50", "50.00", "78.75\u2009\u2013\u200988.75", "autoattack (standard), linf, ε = 0.1", "suspect", "1 of 3", "a <i>warning</i>"],
        "summary": [f"{100 * e['accuracy']:.2f}" for e in evaluations()],
        "broken": ["wrong before any attack112.50", "broken by apgd-ce225.00", "broken by apgd-t112.50", "broken by square00.00", "standing450.00"],
        "curve": ["12.34", "49.92", "10.00\u2009\u2013\u200920.00"],
        "classes": ["90.00", "40.00", "0.00"],
        "unseen": ["31.25", "81.25", "85.21", "65.43", "54.32"],
        "corruptions": ["60.31", "53.1", "gaussian noise"],
        "masking": ["suspect", "✓ passed", "✗ failed", "? open"],
        "measured": ["2026-11-23", "2.11.0", "sha256:" + "cd" * 32, "1 within 0.0001 of a tie: 4", "a <i>warning</i>"],
    }
    for name, words in shown.items():
        assert [word for word in words if word not in sections[name]] == [], name
    assert "68.75" not in sections["unseen"]  # of the curve
    assert "disagree" not in sections["broken"]
    assert "nobody" not in sections["classes"]
    assert "not shown: 1" in sections["classes"]


def test_a_page_of_an_empty_record_reads_not_evaluated(tmp_path):
    (tmp_path / "results.json").write_text('{"model": {"name": "m"}, "dataset": {"name": "d"}, "evaluations": []}')
    sections = Page(render_page(tmp_path).read_text()).sections
    assert sections.pop("head").count("not evaluated") == 4  # n, both accuracies, masking
    assert sections.pop("measured").count("not evaluated") == 6
    assert all(text.split()[-2:] == ["not", "evaluated"] and len(text.split()) < 9 for text in sections.values())
    assert len(sections) == 8


def test_a_page_without_one_part_of_the_report_says_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    whole = write(tmp_path, full_report()).count("not evaluated")
    for key in set(full_report()) - {"headline", "worst_class", "curve_attack", "expected_to"}:
        report = full_report()
        del report[key]
        assert write(tmp_path, report).count("not evaluated") > whole, key
    report = full_report()
    del report["smoothed"]["eot"], report["headline"], report["worst_class"]
    sections = Page(write(tmp_path, report)).sections
    assert "not evaluated" in sections["unseen"]
    assert "50.00" in sections["head"]  # AutoAttack's, named or not
    assert f"Worst class: {HOSTILE[0]}" in sections["classes"]


def test_without_an_ensemble_the_page_says_so(tmp_path):
    sections = Page(write(tmp_path, evaluations=evaluations()[:2])).sections
    assert "This is not AutoAttack" in sections["head"]
    assert "pgd-20, linf, ε = 0.1" in sections["head"]
    assert "not evaluated" in sections["broken"]


def test_verdicts_that_do_not_fit_the_record_are_named(tmp_path):
    assert "disagree" in Page(write(tmp_path, full_report(), broken=("clean", None, None))).sections["broken"]


def test_of_many_classes_the_ends_are_shown(tmp_path):
    report = full_report()
    report["classes"] = [{"name": f"class {i:03}", "n": 9, "clean": 1.0, "robust": i / 100} for i in reversed(range(100))]
    text = Page(write(tmp_path, report)).sections["classes"]
    assert all((f"class {i:03}" in text) == (i < 15 or i >= 85) for i in range(100))
    assert "70 more classes" in text


def test_plots_are_the_same_each_time():
    pytest.importorskip("matplotlib")
    rows = [{"name": 'id="x" $a$', "clean": 1.0, "robust": 0.5}]
    assert svg_classes(rows) == svg_classes(rows)
    assert 'id="x" $a$' in svg_classes(rows)


class Tables(HTMLParser):
    """What stands around each table."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.found.append([classes for classes in self.open if classes])
        if tag not in VOID:
            self.open.append(dict(attrs).get("class"))

    def handle_endtag(self, tag):
        self.open.pop()


def test_on_a_narrow_screen_every_table_scrolls_and_the_wide_ones_say_so(tmp_path, plots):
    text = write(tmp_path, full_report())
    found = Tables(text).found
    assert len(found) == 8
    assert all("scroll" in around for around in found)
    assert text.count('<p class="quiet swipe">') == 4  # all evaluations, unseen balls, transfer, corruptions
    assert ".swipe { display: block; }" in text


def test_passes_are_named_where_they_were_counted_and_nowhere_else(tmp_path):
    report = full_report()
    assert "passes" not in Page(write(tmp_path, report)).sections["measured"]
    assert "passes123" in "".join(Page(write(tmp_path, {**report, "passes": 123})).sections["measured"].split())
