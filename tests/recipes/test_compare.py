"""recipes/compare.py as a user runs it, on run folders made here."""

import json

import numpy as np
import pytest

from rocl_transfer.evaluation.comparison.paired import mcnemar_p, tango_interval

KEYS = ("clean", "pgd-20 linf 0.0314")


@pytest.fixture
def runs(tmp_path):
    """Three classifiers of 200 samples: b is right where a is and on 30 more under attack; c is a but for 8 samples."""
    hard = np.random.default_rng(0).permutation(200)
    answers = {
        "a": {"clean": hard < 180, KEYS[1]: hard < 80},
        "b": {"clean": hard < 182, KEYS[1]: hard < 110},
        "c": {"clean": (hard < 176) | (hard >= 196), KEYS[1]: hard < 80},
    }
    for name, rights in answers.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        lines = [{"index": i, "label": i % 10, **{key: bool(rights[key][i]) for key in KEYS}, "margin": 0.5} for i in range(200)]
        (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        described = [{"name": "clean", "accuracy": float(rights["clean"].mean()), "n": 200}]
        dataset = {"name": "digits", "revision": None, "split": "test", "n": 200}
        record = {"model": {"name": f"net.{name}", "sha256": name * 64}, "dataset": dataset, "evaluations": described}
        (folder / "results.json").write_text(json.dumps(record))
    return answers


def compare(command, *words, check=0):
    done = command("compare.py", *words, check=check)
    assert "Traceback" not in done.stderr
    return done


def test_compare_writes_table_files_and_plot(command, runs, tmp_path):
    done = compare(command, "runs/a", "runs/b", "runs/c", "--output_dir", "out")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["A", "runs/a", "net.a", "sha256", "a" * 12]
    head, rows = lines[4], lines[5:9]
    assert head.split("  ")[0] == "evaluation"
    ends = {row.index("better" if "better" in row else "no difference shown") for row in rows}
    assert ends == {head.index("the second is")}  # aligned
    assert [row.split("  ")[0] for row in rows] == [KEYS[0]] * 2 + [KEYS[1]] * 2
    low, high = (100 * end for end in tango_interval(0, 30, 200))
    assert rows[2].split()[3:] == [
        "A,", "B", "200", "40.00", "55.00", "+15.00", f"[{low:+.2f},", f"{high:+.2f}]", "0", "30", "<0.0001", "<0.0001", "better",
    ]  # fmt: skip
    assert "adjusted for all 4 comparisons" in done.stdout

    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"comparison.json", "comparison.md"}
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {letter: run["model"]["sha256"] for letter, run in record["runs"].items()} == {"A": "a" * 64, "B": "b" * 64, "C": "c" * 64}
    under_attack = record["comparisons"][2]
    assert (under_attack["evaluation"], under_attack["first"], under_attack["second"]) == (KEYS[1], "A", "B")
    assert under_attack["samples_only_second"] == np.flatnonzero(runs["b"][KEYS[1]] & ~runs["a"][KEYS[1]]).tolist()
    assert under_attack["samples_only_first"] == []
    assert under_attack["p"] == mcnemar_p(0, 30)
    clean = record["comparisons"][1]
    assert (clean["only_first"], clean["only_second"], clean["p"], clean["conclusion"]) == (4, 4, 1, "no difference shown")
    page = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert len({line.count("|") for line in page if line.startswith("|")}) == 1
    assert f"| {KEYS[1]} | A, B | 200 | 40.00 | 55.00 | +15.00 |" in "\n".join(page)


def test_the_plot_has_a_panel_an_evaluation(command, runs, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    compare(command, "runs/b", "runs/a", "--output_dir", "two")
    compare(command, "runs/b", "runs/a", "runs/c", "--all_pairs", "true", "--output_dir", "three")
    two, three = (image.imread(tmp_path / name / "comparison.png") for name in ("two", "three"))
    assert three.shape[0] > two.shape[0]
    red = (two[..., 0] > 0.8) & (two[..., 2] < 0.2)
    assert red.any()  # a is worse under attack


def test_all_pairs_and_nothing_written_without_a_folder(command, runs, tmp_path):
    done = compare(command, "runs/a", "runs/b", "runs/c", "--all_pairs", "true")
    assert sum("B, C" in line for line in done.stdout.splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_notes_on_the_screen_and_in_the_page(command, runs, tmp_path):
    path = tmp_path / "runs" / "c" / "verdicts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:150]))
    record = tmp_path / "runs" / "c" / "results.json"
    record.write_text(record.read_text().replace("c" * 64, "a" * 64))
    done = compare(command, "runs/a", "runs/c", "--output_dir", "out")
    page = (tmp_path / "out" / "comparison.md").read_text()
    for note in (
        "A and C",
        "A and B are the same model (sha256 aaaaaaaaaaaa)",
        "A: 50 of 200 samples are left out, for not every run has them",
        "B: results.json has n = 200 under 'clean', verdicts.jsonl has 150 samples",
    ):
        assert (f"note: {note}" in done.stdout) == (f"- {note}" in page) == (note != "A and C")


def edit(tmp_path, name, file, change):
    path = tmp_path / "runs" / name / file
    path.write_text(change(path.read_text()))


MISTAKES = {
    "nothing": ([], None, "there are no runs: name run folders"),
    "one run": (["runs/a"], None, "there is one run and a comparison needs two"),
    "a run twice": (["runs/a", "runs/b", "./runs/a"], None, "runs/a is named twice"),
    "pairs of two": (["runs/a", "runs/b", "--all_pairs", "true"], None, "--all_pairs has no effect with two runs: leave it out"),
    "no such folder": (["runs/a", "runs/z"], None, "there is no folder runs/z: check the path"),
    "a folder that is no run": (["runs/a", "runs"], None, "runs has no results.json: name the run folder of an evaluated classifier"),
    "an output that cannot be": (["runs/a", "runs/b", "--output_dir", "runs/a/results.json/out"], None, "cannot be written"),
    "a damaged line": (
        ["runs/a", "runs/b"],
        ("verdicts.jsonl", lambda text: text[:-9]),
        "runs/b/verdicts.jsonl, line 200, is not a JSON object: evaluate the run again",
    ),
    "another split": (
        ["runs/a", "runs/b"],
        ("results.json", lambda text: text.replace('"test"', '"train"')),
        "runs/a and runs/b were measured on different data (the dataset's split: test and train)",
    ),
    "other labels": (
        ["runs/a", "runs/b"],
        ("verdicts.jsonl", lambda text: text.replace('"label": 3', '"label": 4', 1)),
        "(sample 3 has the labels 3 and 4): compare runs measured on the same images",
    ),
    "other samples": (
        ["runs/a", "runs/b"],
        ("verdicts.jsonl", lambda text: text.replace('"index": ', '"index": 1000')),
        "runs/a, runs/b have no sample in common",
    ),
    "other evaluations": (
        ["runs/a", "runs/b"],
        ("verdicts.jsonl", lambda text: text.replace('"clean"', '"blurred"').replace("0.0314", "0.05")),
        "the runs share no evaluation (runs/a: clean, pgd-20 linf 0.0314; runs/b: blurred, pgd-20 linf 0.05)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(command, runs, tmp_path, mistake):
    words, change, sentence = MISTAKES[mistake]
    if change:
        edit(tmp_path, "b", *change)
    done = compare(command, *words, check=2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr.splitlines()[-1]
    assert not done.stdout


def test_compare_writes_a_page_of_runs_on_different_data(command, runs, tmp_path):
    for name in ("a", "b"):
        edit(tmp_path, name, "results.json", lambda text: text.replace('"sha256"', '"title": "made here", "sha256"'))
    edit(tmp_path, "b", "results.json", lambda text: text.replace('"test"', '"validation"'))  # other data, which a comparison refuses
    (tmp_path / "runs" / "b" / "verdicts.jsonl").unlink()
    done = compare(command, "runs/a", "runs/b", "--page", "out/models.html")
    assert "| net.b | digits, validation | clean |" in done.stdout
    assert (tmp_path / "out" / "models.md").read_text() == done.stdout
    assert "net.a" in (tmp_path / "out" / "models.html").read_text()
    assert compare(command, "runs/a", "--page", "out/models.html").stdout == (tmp_path / "out" / "models.md").read_text()
    (tmp_path / "out" / "index.md").write_text("mine")
    for words, sentence in (
        (["--page", "models.txt"], "--page is models.txt: give the page's file, such as runs/models.html"),
        (["--page", "m.html", "--all_pairs", "true"], "--all_pairs has no effect with --page"),
        (["--page", "m.html", "--output_dir", "o"], "--output_dir has no effect with --page"),
        (["--page", "out/index.html"], "out/index.md is there, and the table of --page out/index.html would replace it: give another name"),
    ):
        assert sentence in compare(command, "runs/a", "runs/b", *words, check=2).stderr.splitlines()[-1]
