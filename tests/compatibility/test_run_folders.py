"""Run folders of earlier versions: still loaded, resumed, checked and published. The folders beside this file are never written again.

Each was made by ``python recipes/finetune.py --config run-VERSION/config.yaml`` of its version and cut short; its figures and card were left out.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import rocl_transfer as rt
from pretrain import PretrainConfig
from rocl_transfer.data import PretrainImageOptions
from rocl_transfer.hub import ModelOptions
from rocl_transfer.training.run import defaults

HERE = Path(__file__).parent
RUNS = sorted(path.name for path in HERE.glob("run-*"))


@pytest.fixture(params=RUNS)
def run_folder(request, tmp_path):
    pytest.importorskip("sklearn")
    return shutil.copytree(HERE / request.param, tmp_path / "run")


def test_a_run_folder_of_an_earlier_version_is_kept():
    assert RUNS


def test_the_classifier_of_an_earlier_run_folder_loads(run_folder):
    model = rt.load_classifier(str(run_folder))  # checked against the outputs that were recorded with it
    assert model.class_names == tuple("0123456789")
    with torch.no_grad():
        assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_a_run_of_an_earlier_version_resumes(command, run_folder, tmp_path):
    before = (run_folder / "metrics.jsonl").read_text().splitlines()
    steps = json.loads(before[-1])["step"]
    done = command("finetune.py", "--config", run_folder / "config.yaml", "--output_dir", run_folder, "--max_steps", steps + 1, check=0)
    assert f"resumed from {run_folder}/checkpoints/step-{steps}" in done.stderr
    kept = [line for line in before if '"last"' not in line]
    after = (run_folder / "metrics.jsonl").read_text().splitlines()
    assert after[: len(kept)] == kept
    assert json.loads(after[-1])["step"] == steps + 1
    assert json.loads((run_folder / "results.json").read_text())["training"]["steps"] == steps + 1


def test_a_run_folder_of_an_earlier_version_can_be_published(command, run_folder):
    done = command("publish.py", "--run", run_folder, "--repo_id", "user/old", "--dry_run", check=0)
    assert "nothing was sent" in done.stderr


def test_a_pretraining_of_the_first_version_may_be_resumed():
    """An option that is new, or has another default, must not stand between such a run and its checkpoints."""
    config = PretrainConfig(output_dir="runs/pre", data=PretrainImageOptions(name="digits"), model=ModelOptions(name="resnet18_cifar"))
    found = json.loads(json.dumps(config.identity(1)))
    before = json.loads((HERE / "pretraining-0.1.0.json").read_text())
    added = {name: found[name] for name in found.keys() - before.keys()}
    at_first = defaults(config)
    assert added == {name: at_first[name] for name in added}
    # A command line takes this null from the run, see tests/config/test_presets.py.
    assert {name: found[name] for name in before} == {**before, "objective.attack.step_size": "auto"}
    assert before["objective.attack.step_size"] is None
