"""recipes/publish.py as a user runs it, and what others then do with what was published."""

import io
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.stand_in_hub import OWNER, User

CARD = Path(__file__).parents[2] / "model_cards" / "resnet8_cifar.r_le_digits"


@pytest.fixture
def run_folder(tmp_path):
    return shutil.copytree(CARD, tmp_path / "run")


def test_a_dry_run_says_what_would_be_sent(command, run_folder):
    done = command("publish.py", "--run", "run", "--repo_id", "user/digits", "--dry_run", "--license", "cc0-1.0", check=0)
    assert "nothing was sent" in done.stderr
    for path in (run_folder / "model.safetensors", run_folder / "figures" / "robustness.png"):
        assert f"{path.stat().st_size:,}  {path.relative_to(run_folder)}" in done.stderr
    card = ModelCard(done.stdout)
    assert card.data.license == "cc0-1.0"
    assert card.data.eval_results[0].metric_args["n"] == 360
    assert "no verdict on gradient masking" in done.stderr
    assert "AutoAttack was not evaluated" not in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--run", "nowhere", "--repo_id", "user/x"), "there is no folder nowhere"),
        (("--run", ".", "--repo_id", "user/x"), "has no config.json"),
        (("--run", "run", "--repo_id", "x"), "write USER/NAME"),
        (("--run", "run", "--repo_id", "user/x", "--dry_run", "true", "--tag", "v1"), "--tag has no effect with --dry_run"),
        (("--run", "run", "--repo_id", "user/x"), "offline mode is on"),
        (("--run", "run", "--repo_id", "user/x", "--token", "hf_x"), "unknown option --token"),
    ],
)
def test_mistakes_are_one_sentence(command, run_folder, words, sentence):
    done = command("publish.py", *words)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.splitlines()[-1]


def test_published_then_fine_tuned_by_another_on_a_dataset_of_the_hub(command, hub, run_folder, tmp_path, noise_image):
    done = command("publish.py", "--run", "run", "--repo_id", "user/digits", check=0, environment=hub.environment(tmp_path / "mine", OWNER))
    commit = hub.repo("user/digits").at("main").id
    assert f"load it with hf-hub:user/digits@{commit}" in done.stderr
    assert OWNER not in done.stdout + done.stderr
    pictures = {}
    for number in range(40):
        file = io.BytesIO()
        noise_image(number).save(file, "PNG")
        pictures[f"train/{'ab'[number % 2]}/{number}.png"] = file.getvalue()
    hub.add_repo("user/pictures", pictures, type="dataset")
    revision = hub.repo("user/pictures", "dataset").at("main").id
    words = ("--model.name", f"hf-hub:user/digits@{commit}", "--data.name", "user/pictures", "--method", "at", "--epochs", 1, "--max_steps", 1)
    sizes = ("--batch_size", 16, "--attack.steps", 1, "--evaluation.steps", 1, "--head_epochs", 1)
    command("finetune.py", *words, *sizes, "--output_dir", "theirs", check=0, environment=hub.environment(tmp_path / "yours"))
    record = json.loads((tmp_path / "theirs" / "results.json").read_text())
    assert record["dataset"]["revision"] == revision
    sha = json.loads((CARD / "results.json").read_text())["model"]["sha256"]
    assert record["model"]["backbone"] == {"name": f"hf-hub:user/digits@{commit}", "sha256": sha}
    card = ModelCard.load(tmp_path / "theirs" / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("user/digits", ["user/pictures"])


def test_a_token_is_written_nowhere(command, hub, run_folder, class_folder, tmp_path):
    token = "hf_" + "Secret" * 5
    hub.users[token] = User("user", True)
    environment = hub.environment(tmp_path / "home", token)
    said = []
    for more in (("--dry_run",), ("--private", "true")):
        said.append(command("publish.py", "--run", "run", "--repo_id", "user/secret", *more, check=0, environment=environment))
    words = ("--model.name", "hf-hub:user/secret", "--data.name", class_folder, "--epochs", 1, "--evaluation.steps", 1, "--log_with", "tensorboard")
    said.append(command("linear_probe.py", *words, "--output_dir", "le", check=0, environment=environment))
    assert hub.repo("user/secret").private
    assert any(request.token for request in hub.seen(path="model.safetensors"))  # without it, there would have been no model
    hub.users.pop(token)
    said.append(command("publish.py", "--run", "run", "--repo_id", "user/other", check=2, environment=environment))
    said.append(command("publish.py", "--run", "run", "--repo_id", "user/other", "--tag", token + "!", check=2, environment=environment))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert not [path for path in files if token.encode() in path.read_bytes()]
    assert not [done.args for done in said[:-1] if token in done.stdout + done.stderr]
    assert all(token.encode() not in content for content in hub.files("user/secret").values())
