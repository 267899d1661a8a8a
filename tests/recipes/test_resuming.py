"""What a run is resumed with, and where: other data or weights of the same name, another folder, nothing left to train."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from rocl_transfer.hub import export, render_card
from rocl_transfer.models import create_backbone

SHORT = ["--data.image_size", "16", "--epochs", "2", "--batch_size", "8"]
RECIPES = {
    "pretrain.py": ["--objective.attack.steps", "1", "--optimizer.warmup_epochs", "0"],
    "linear_probe.py": ["--evaluation.steps", "1"],
    "finetune.py": ["--attack.steps", "1", "--evaluation.steps", "1"],
    "robustify.py": ["--attack.steps", "1", "--evaluation.steps", "1", "--samples", "8", "--teacher.name", "teacher"],
}


def backbone(folder, seed):
    """Export an untrained one, in place of what is there."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    export(create_backbone("resnet8_cifar", 16), folder)


def without_sources(checkpoints):
    """What checkpoints were before they said what data and weights a run was made from."""
    for path in checkpoints.iterdir():
        state = json.loads((path / "state.json").read_text())
        state["identity"] = {name: value for name, value in state["identity"].items() if "(its " not in name}
        (path / "state.json").write_text(json.dumps(state))
        manifest, content = json.loads((path / "manifest.json").read_text()), (path / "state.json").read_bytes()
        manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("recipe", RECIPES)
def test_other_data_or_weights_of_the_same_name_are_another_run(command, class_folder, noise_image, tmp_path, recipe):
    for name in ("start", "teacher"):
        backbone(tmp_path / name, 0)
    words = ["--model.name", "start", "--data.name", class_folder, "--output_dir", "run", *SHORT, *RECIPES[recipe]]
    command(recipe, *words, "--max_steps", 1, check=0)

    def files():
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}

    left = files()

    def refused():
        done = command(recipe, *words)
        assert done.returncode == 2
        assert files() == left
        return done.stderr.splitlines()[-1]

    for name in ("start", "teacher") if recipe == "robustify.py" else ("start",):
        backbone(tmp_path / name, 1)
        part = "model" if name == "start" else name
        assert f"error: --{part}.name (its weights) was sha256 " in refused()
        backbone(tmp_path / name, 0)
    noise_image(50).save(class_folder / "b" / "50.png")
    assert "error: --data.name (its images) was " in (sentence := refused())
    assert sentence.endswith(" now: set it back, choose another --output_dir, or --overwrite true to begin again")
    without_sources(tmp_path / "run" / "checkpoints")
    done = command(recipe, *words, "--max_steps", 2, check=0)
    assert "resumed from run/checkpoints/step-1" in done.stderr
    assert "run/checkpoints/step-1 does not say which images and weights its run was made from" in done.stderr


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in lines]


def assert_same_export(one, two):
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert metrics(one) == metrics(two)
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert a["model"]["sha256"] == b["model"]["sha256"]
    assert (a["training"]["best"], a["training"]["last"]) == (b["training"]["best"], b["training"]["last"])


def test_a_fine_tuning_resumed_in_another_folder_exports_the_uninterrupted_ones_best(command, class_folder, tmp_path):
    backbone(tmp_path / "start", 0)
    words = [
        "--model.name",
        "start",
        "--data.name",
        class_folder,
        *SHORT,
        *RECIPES["finetune.py"],
        "--epochs",
        5,
        "--rollbacks",
        0,
        "--ramp",
        "[0,0]",
    ]
    words += ["--optimizer.lr", "5e-3", "--head_epochs", 1]
    command("finetune.py", *words, "--output_dir", "whole", check=0)
    best = json.loads((tmp_path / "whole" / "results.json").read_text())["training"]["best"]
    assert best["step"] < 12  # neither the last before the other folder, nor the one before that
    command("finetune.py", *words, "--output_dir", "a", "--max_steps", 16, check=0)
    done = command("finetune.py", *words, "--output_dir", "b", "--resume", "a", check=0)
    assert "a/checkpoints/step-16 is copied to b, with step-" in done.stderr
    assert "the head is trained first" not in done.stderr  # what it gave is in the checkpoint
    assert_same_export(tmp_path / "whole", tmp_path / "b")
    assert (tmp_path / "b" / "head" / "start.json").read_bytes() == (tmp_path / "a" / "head" / "start.json").read_bytes()


@pytest.mark.parametrize("left", ["metrics.jsonl", None])
def test_a_finished_pretraining_is_exported_into_another_folder(command, class_folder, tmp_path, left):
    words = ["--model.name", "resnet8_cifar", "--data.name", class_folder, *SHORT, *RECIPES["pretrain.py"]]
    command("pretrain.py", *words, "--output_dir", "a", check=0)
    if left is None:
        (tmp_path / "a" / "metrics.jsonl").unlink()
    done = command("pretrain.py", *words, "--output_dir", "b", "--resume", "a", check=0)
    assert "nothing is left to train: 8 of 8 steps are taken already" in done.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    if left is not None:
        assert_same_export(tmp_path / "a", tmp_path / "b")


def test_a_card_says_that_a_better_epoch_was_lost(command, class_folder, tmp_path):
    words = ["--model.name", "resnet8_cifar", "--model.pretrained", "false", "--data.name", class_folder, *SHORT, *RECIPES["finetune.py"]]
    command("finetune.py", *words, "--max_steps", 4, "--output_dir", "run", check=0)
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["training"]["lost"] is None
    assert "was better" not in render_card(tmp_path / "run").read_text()
    found = {"epoch": 7, "step": 28, "validation_accuracy": 0.875, "validation_robust_accuracy": 0.625}
    for kind in (found, {"epoch": 7, "step": 28, "validation_displacement": 0.25}):
        record["training"] |= {"best": {**kind, "epoch": 8}, "last": kind, "lost": kind}
        (tmp_path / "run" / "results.json").write_text(json.dumps(record))
        said = "(0.25), but its checkpoint was not there any more." if kind is not found else ": 87.50 % and 62.50 %."
        assert f"Epoch 7 was better{' ' if kind is not found else ''}{said}" in render_card(tmp_path / "run").read_text()


@pytest.mark.slow
def test_two_processes_resume_in_another_folder(command, class_folder, tmp_path):
    words = ["--model.name", "resnet8_cifar", "--data.name", class_folder, *SHORT, *RECIPES["pretrain.py"], "--batch_size", 4]
    command("pretrain.py", *words, "--output_dir", "whole", processes=2, check=0)
    command("pretrain.py", *words, "--output_dir", "a", "--max_steps", 2, processes=2, check=0)
    command("pretrain.py", *words, "--output_dir", "b", "--resume", "a", processes=2, check=0)
    assert_same_export(tmp_path / "whole", tmp_path / "b")
