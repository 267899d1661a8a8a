"""What a run is resumed with, and where: other data or weights of the same name, another folder, nothing left to train."""

import hashlib
import json

import pytest
import torch

from rocl_transfer.hub import export
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
