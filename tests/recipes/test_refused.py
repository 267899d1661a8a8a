"""A run that was refused leaves nothing in its folder that stands in the way of the next one with the mistakes corrected."""

import json
import shutil

import pytest

SHORT = ["--data.image_size", "16", "--epochs", "1", "--max_steps", "1", "--batch_size", "8"]
RECIPES = {
    "pretrain.py": ["--objective.attack.steps", "1", "--optimizer.warmup_epochs", "0"],
    "linear_probe.py": ["--evaluation.steps", "1"],
    "finetune.py": ["--attack.steps", "1", "--evaluation.steps", "1", "--model.pretrained", "false"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_refused_run_does_not_block_the_next(command, class_folder, tmp_path, recipe):
    shutil.copytree(class_folder, tmp_path / "broken")
    for path in (tmp_path / "broken").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.yaml").write_text("epochs: [")
    words = ["--model.name", "resnet8_cifar", "--data.name", class_folder, "--output_dir", "run", *SHORT, *RECIPES[recipe]]
    mistakes = {
        "an unknown option": ["--epoch", "3"],
        "a file that is no YAML": ["--config", "c.yaml"],
        "no such model": ["--model.name", "resnet8_cifer"],
        "no images": ["--data.name", "empty"],
        "no readable image": ["--data.name", "broken"],
        "an optimiser that needs other options": ["--optimizer.name", "kron", "--optimizer.lr", "1"],
        "no such checkpoint": ["--resume", "elsewhere"],
    }
    for mistake, wrong in mistakes.items():
        done = command(recipe, *words, *wrong)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2, f"{mistake}: {done.stderr[-2000:]}"
        assert last.startswith("error: "), mistake
        assert "Traceback" not in done.stderr, mistake
        left = [path.name for path in (tmp_path / "run").rglob("*")] if (tmp_path / "run").exists() else []
        assert not set(left) & {"config.yaml", "metrics.jsonl", "results.json", "model.safetensors"}, mistake
    command(recipe, *words, "--resume", "none", check=0)  # which a folder that held a run would refuse
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["steps"] == 1
