"""recipes/evaluate.py and its neighbours as a user runs them."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

CARD = ROOT / "model_cards" / "resnet8_cifar.r_le_digits"
DIGITS = ("--data.name", "digits", "--data.image_size", 16)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def booleans(path):
    return [{k: v for k, v in line.items() if isinstance(v, bool) or k == "index"} for line in lines(path / "verdicts.jsonl")]


@pytest.fixture
def run_folder(tmp_path):
    """A run of ours as a probe leaves it: without the AutoAttack of later, which nothing weaker would replace."""
    run = shutil.copytree(CARD, tmp_path / "run")
    record = json.loads((run / "results.json").read_text())
    del record["robustness"]
    (run / "results.json").write_text(json.dumps(record))
    return run


def test_a_run_is_evaluated_and_its_card_says_so(command, run_folder, tmp_path):
    command("evaluate.py", "--model.name", "run", *DIGITS, "--attacks", "paper", "--epsilon", 0.1, "--samples", 50, "--output_dir", "out", check=0)
    out = tmp_path / "out"
    record = json.loads((out / "results.json").read_text())
    assert [entry["name"] for entry in record["evaluations"]] == ["clean", "pgd-20"]
    assert record["dataset"]["n"] == len(lines(out / "verdicts.jsonl")) == 50
    labels = [line["label"] for line in lines(out / "verdicts.jsonl")]
    assert all(4 <= labels.count(label) <= 6 for label in range(10))  # in proportion to the classes
    card = (run_folder / "README.md").read_text()
    assert "AutoAttack: not evaluated" in card  # PGD is not it
    assert f"| pgd-20 | linf | 0.1 | {100 * record['evaluations'][1]['accuracy']:.2f} |" in card
    assert "Gradient masking: not evaluated" in card
    assert "<html" in (out / "report.html").read_text()
    # What is done is not done again, and another model is not mistaken for it.
    before = (out / "verdicts.jsonl").read_bytes()
    command("evaluate.py", "--model.name", "run", *DIGITS, "--attacks", "paper", "--epsilon", 0.1, "--samples", 50, "--output_dir", "out", check=0)
    assert (out / "verdicts.jsonl").read_bytes() == before
    done = command("evaluate.py", "--model.name", "run", *DIGITS, "--epsilon", 0.1, "--samples", 49, "--output_dir", "out")
    assert done.returncode == 2
    assert "holds another evaluation (labels differ)" in done.stderr.splitlines()[-1]
    assert "samples: 50" in (out / "config.yaml").read_text()  # what is refused has written nothing


def test_an_evaluation_is_not_written_over_a_run(command, run_folder):
    before = {path.name: path.read_bytes() for path in run_folder.iterdir() if path.is_file()}
    done = command("evaluate.py", "--model.name", "run", *DIGITS, "--samples", 5, "--attacks", "paper", "--epsilon", 0.1, "--output_dir", "run")
    assert done.returncode == 2
    assert "--output_dir run holds a run (model.safetensors)" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in run_folder.iterdir() if path.is_file()} == before


def test_all_images_are_evaluated_with_split_all(command, tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for number in range(50):
        folder = tmp_path / "digits of mine" / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).round().astype(np.uint8)).save(folder / f"{number}.png")
    words = ("--model.name", CARD, "--data.name", "digits of mine", "--attacks", "paper", "--epsilon", 0.1, "--samples", 45)
    command("evaluate.py", *words, "--split", "all", "--update_card", "false", "--output_dir", "out", check=0)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (record["dataset"]["n"], record["dataset"]["split"]) == (45, "all images")  # more than the 10 held out, or the 36 trained on


def test_a_users_own_network(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 10), torch.nn.Softmax(1)).train()\n"
        "def broken():\n    raise ValueError('no')\n"
    )
    words = ("--attacks", "fast", "--epsilon", "4/255", "--samples", 12, "--update_card", "true", "--search_precision", "bf16", "--output_dir", "out")
    done = command("evaluate.py", "--model.callable", "mine:build", *DIGITS, *words, check=0)
    assert "came in training mode" in done.stderr
    assert "outputs are probabilities" in done.stderr
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(record["report"]["warnings"]) == 2
    assert record["model"]["name"] == "mine:build"
    assert record["evaluations"][-1]["version"] == "APGD-CE and APGD-T alone, searched in bf16"
    assert "searched in bf16" in (tmp_path / "out" / "report.html").read_text()
    for name, sentence in (("mine:broken", "failed (ValueError"), ("mine:nothing", "cannot be imported"), ("mine", "write module:function")):
        done = command("evaluate.py", "--model.callable", name, *DIGITS, "--output_dir", "other")
        assert done.returncode == 2
        assert sentence in done.stderr.splitlines()[-1]


def test_a_network_that_mixes_its_batch_is_said_and_can_be_measured_one_way(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mixes(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 10))\n"
        "    def forward(self, images):\n"
        "        return self.model(images - 0.5 * images.mean(0))\n"
        "def build():\n"
        "    return Mixes().eval()\n"
    )
    words = ("--model.callable", "mine:build", *DIGITS, "--attacks", "paper", "--epsilon", "4/255", "--samples", 12)
    done = command("evaluate.py", *words, "--output_dir", "together", check=0)
    page = (tmp_path / "together" / "report.html").read_text()
    warnings = json.loads((tmp_path / "together" / "results.json").read_text())["report"]["warnings"]
    for said in (done.stderr, page, *warnings[:1]):
        assert "depends on the images beside it" in said
    for size in (12, 5):
        alone = ("--one_at_a_time", "--batch_size", size, "--output_dir", f"alone{size}")
        done = command("evaluate.py", *words, *alone, check=0)
        assert "depends on the images beside it" not in done.stderr
        assert "one image a pass, on purpose" in done.stderr
        assert "one image a pass, on purpose" in (tmp_path / f"alone{size}" / "report.html").read_text()
    assert booleans(tmp_path / "alone12") == booleans(tmp_path / "alone5")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model.name", CARD, "--norm", "l2"), "give a radius with l2"),
        (("--model.name", CARD, "--epsilon", 8), "write 8/255 rather than 8"),
        (("--model.name", CARD, "--report", "full", "--attacks", "paper"), "--report full is built around"),
        (("--model.name", CARD, "--surrogates", "[x]"), "without --report full"),
        (("--model.name", CARD, "--engine", "reference", "--attacks", "fast"), "--engine reference has no attacks fast"),
        (("--model.name", "resnet18"), "cannot be fetched"),
        (("--model.name", "resnet8_cifar"), "timm has no published weights"),
        ((), "give either --model.name"),
        (("--model.name", CARD, "--model.callable", "a:b"), "give either --model.name"),
    ],
)
def test_mistakes_in_evaluating_are_one_sentence(command, words, sentence):
    done = command("evaluate.py", *words, *DIGITS, "--output_dir", "out")
    assert done.returncode == 2
    assert sentence in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing(command, fork, tmp_path):
    words = ("--model.name", CARD, *DIGITS, "--attacks", "fast", "--epsilon", 0.1, "--samples", 8, "--batch_size", 4, "--update_card", "false")
    command("evaluate.py", *words, "--output_dir", "whole", check=0)
    killed = 0
    for lines_before in (2, 5, 9):
        process = fork(tmp_path, ROOT / "recipes" / "evaluate.py", *words, "--output_dir", "killed")
        journal = tmp_path / "killed" / "journal" / "attacks" / "0.jsonl"
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines_before:
                process.send_signal(signal.SIGKILL)
                killed += process.communicate().returncode == -signal.SIGKILL
                break
            time.sleep(0.02)
    assert killed == 3
    command("evaluate.py", *words, "--output_dir", "killed", check=0)
    assert booleans(tmp_path / "killed") == booleans(tmp_path / "whole")


def test_two_processes_evaluate_as_one(command, tmp_path):
    words = ("--model.name", CARD, *DIGITS, "--attacks", "fast", "--epsilon", 0.1, "--samples", 7, "--batch_size", 4, "--update_card", "false")
    command("evaluate.py", *words, "--output_dir", "one", check=0)
    command("evaluate.py", *words, "--output_dir", "two", processes=2, check=0)
    one, two = (booleans(tmp_path / name) for name in ("one", "two"))
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    # Those of both processes; a sample whose verdict hangs on rounding may cost a few more or fewer.
    assert [one["passes"] for one in second["evaluations"]] == pytest.approx([one["passes"] for one in first["evaluations"]], rel=0.1)
    unsure = first["report"]["borderline"]["indices"]
    assert [line["index"] for line in two] == [line["index"] for line in one]
    assert [line for line in two if line["index"] not in unsure] == [line for line in one if line["index"] not in unsure]


@pytest.mark.slow
def test_a_full_report_has_every_section(command, run_folder, tmp_path):
    words = ("--attacks", "fast", "--epsilon", 0.1, "--samples", 30, "--report", "full", "--surrogates", f"[{CARD}]", "--output_dir", "out")
    done = command("evaluate.py", "--model.name", "run", *DIGITS, *words, check=0)
    report = json.loads((tmp_path / "out" / "results.json").read_text())["report"]
    assert {"classes", "curve", "corruptions", "smoothed", "transfer", "masking", "worst_class", "expected_robustness"} <= set(report)
    assert len(report["corruptions"]) == 15
    # The same weights: what breaks the surrogate breaks the model.
    assert report["transfer"][0]["accuracy"] < 1
    assert "smoothed inference:" in done.stderr
    assert "Smoothed inference: not evaluated" not in (run_folder / "README.md").read_text()
