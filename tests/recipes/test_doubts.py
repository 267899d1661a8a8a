"""Wrong models as a user meets them: an accuracy that is no better than guessing is never printed with a straight face."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import export_untrained


@pytest.fixture
def noise(tmp_path):
    """900 images of noise whose two labels were drawn by lot."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (900, 3, 16, 16), dtype=torch.uint8, generator=generator)
    save_file({"images": images, "labels": torch.randint(2, (900,), generator=generator)}, tmp_path / "noise.safetensors")
    return tmp_path / "noise.safetensors"


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """An exported backbone that was never trained."""
    return export_untrained(tmp_path_factory.mktemp("pre"), 16)


PROBE = ("--epochs", 3, "--batch_size", 64, "--optimizer.lr", "0.01", "--monitor_every", 1, "--rollbacks", 1, "--evaluation.steps", 1)


def test_a_probe_at_chance_ends_in_a_sentence(command, noise, backbone, tmp_path):
    done = command("linear_probe.py", "--model.name", backbone, "--data.name", noise, *PROBE, "--output_dir", "le", check=2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: training is dead at step ")
    assert "of 72 validation images" in last or "accuracy is at chance" in last
    assert "take another backbone. Training went back 1 times" in last
    assert not (tmp_path / "le" / "model.safetensors").exists()


def test_where_there_is_no_validation_training_images_are_watched(command, noise, backbone, tmp_path):
    words = ("--model.name", backbone, "--data.name", noise, "--data.validation_fraction", 0)
    done = command("linear_probe.py", *words, *PROBE, "--optimizer.lr", "1e-9", "--output_dir", "le", check=2)
    assert "there are no validation images: 512 training images are watched" in done.stderr
    assert "training images is given" in done.stderr.splitlines()[-1] or "accuracy is at chance" in done.stderr.splitlines()[-1]


def test_a_probe_on_few_images_says_what_its_guard_cannot_see(command, class_folder, backbone, tmp_path):
    words = ("--model.name", backbone, "--data.name", class_folder, "--data.image_size", 16, *PROBE, "--batch_size", 8)
    done = command("linear_probe.py", *words, "--output_dir", "le", check=0)
    assert "4 validation images are too few to tell accuracy at chance from learning" in done.stderr
    assert (tmp_path / "le" / "model.safetensors").exists()


def test_a_classifier_with_one_answer_for_all_is_doubted_wherever_its_accuracy_stands(command, class_folder, backbone, tmp_path):
    words = ("--model.name", backbone, "--data.name", class_folder, "--data.image_size", 16, "--batch_size", 8, "--max_steps", 1, "--head_epochs", 0)
    command("finetune.py", *words, "--evaluation.steps", 1, "--optimizer.lr", "1e-9", "--output_dir", "ft")
    record = json.loads((tmp_path / "ft" / "results.json").read_text())
    (doubt,) = record["doubts"]
    assert re.match("every image gets class '[br]': 50.00 %, interval 21.5-78.5 % of 8 images, guessing 50.00 %, is that class's share", doubt)
    assert f"**Doubtful**: {doubt}." in (tmp_path / "ft" / "README.md").read_text()
    assert json.loads((tmp_path / "ft" / "config.json").read_text())["rocl_transfer"]["doubts"] == [doubt]
    asked = ("--data.name", class_folder, "--attacks", "paper", "--output_dir", "eval")
    for done in (
        command("predict.py", "--model.name", "ft", "--robustness", "false", class_folder, check=0),
        command("evaluate.py", "--model.name", "ft", *asked, check=0),
        command("publish.py", "--run", "ft", "--repo_id", "user/name", "--dry_run", check=0),
    ):
        assert doubt in done.stderr
    assert doubt in (tmp_path / "eval" / "report.html").read_text().replace("&#39;", "'")
    assert doubt in command("compare.py", "ft", "eval", check=0).stdout


def test_an_untrained_network_given_as_callable_is_doubted(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(4)\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.BatchNorm1d(48), torch.nn.Linear(48, 10))\n"
    )
    words = ("--data.name", "digits", "--data.image_size", 16, "--samples", 60, "--attacks", "fast", "--epsilon", "1/255")
    done = command("evaluate.py", "--model.callable", "mine:build", *words, "--output_dir", "out", check=0)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    clean = record["evaluations"][0]
    assert record["doubts"]
    assert "guessing 10.00 %" in record["doubts"][0] or record["doubts"][0].startswith("every image gets class")
    assert f"{100 * clean['accuracy']:.2f} %" in record["doubts"][0]
    assert f"doubt: {record['doubts'][0]}" in done.stderr
    assert record["doubts"][0].split(":")[0] in (tmp_path / "out" / "report.html").read_text()


def test_equal_weights_are_one_model_only_with_equal_code(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, scale):\n"
        "        super().__init__()\n"
        "        self.scale, self.fc = scale, torch.nn.Linear(768, 10)\n"
        "        torch.nn.init.eye_(self.fc.weight); torch.nn.init.zeros_(self.fc.bias)\n"
        "    def forward(self, x):\n"
        "        return self.scale * self.fc(x.flatten(1))\n"
        "def one(): return Net(1)\n"
        "def two(): return Net(-1)\n"
    )
    words = ("--data.name", "digits", "--data.image_size", 16, "--samples", 20, "--attacks", "paper", "--epsilon", "1/255")
    for name, folder in (("one", "a"), ("two", "b"), ("one", "c")):
        command("evaluate.py", "--model.callable", f"mine:{name}", *words, "--output_dir", folder, check=0)
    said = command("compare.py", "a", "b", check=0).stdout
    assert "A and B have equal weights" in said
    assert "are different models: their code" in said
    assert "the same model" not in said
    assert "A and B are the same model" in command("compare.py", "a", "c", check=0).stdout
