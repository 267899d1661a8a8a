"""recipes/publish.py as a user runs it, and what others then do with what was published."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from rocl_transfer import UserError
from rocl_transfer.hub import card, export
from rocl_transfer.hub.publish import PublishOptions, prepare
from rocl_transfer.models import create_backbone
from tests.support.stand_in_hub import OWNER, User

TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"
CARD = Path(__file__).parents[2] / "model_cards" / "resnet8_cifar.r_le_digits"


@pytest.fixture
def run_folder(tmp_path):
    return shutil.copytree(CARD, tmp_path / "run")


def test_a_dry_run_says_what_would_be_sent(command, run_folder):
    done = command("publish.py", "--run", "run", "--repo_id", "user/digits", "--dry_run", "--license", "cc0-1.0", check=0)
    assert "nothing was sent" in done.stderr
    for path in (run_folder / "model.safetensors", run_folder / "figures" / "robustness.png"):
        assert f"{path.stat().st_size:,}  {path.relative_to(run_folder)}" in done.stderr
    shown = ModelCard(done.stdout)
    assert shown.data.license == "cc0-1.0"
    assert shown.data.eval_results[0].metric_args["n"] == 360
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
def test_mistakes_in_publishing_are_one_sentence(command, run_folder, words, sentence):
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


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".json", ".yaml") and path.name != "config.yaml"}


def test_where_things_lie_stays_on_this_machine(command, class_folder, tmp_path):
    """Absolute names everywhere; nothing of the path is in what a user may send, by publish or by hand."""
    home = tmp_path / "home of ada"
    home.mkdir()
    photos = class_folder.rename(home / "my photos")
    (photos / "b" / "0.png").write_bytes(b"no image")  # named in notes and lists
    torch.manual_seed(0)
    export(create_backbone("resnet8_cifar", 16), home)
    words = ("--model.name", home, "--data.name", photos, "--data.image_size", 16, "--data.max_unreadable", 0.2, "--epochs", 1, "--batch_size", 8)
    run = tmp_path / "runs of ada" / "le"
    command("linear_probe.py", *words, "--evaluation.steps", 1, "--output_dir", run, "--resume", "auto", check=0)
    record = json.loads((run / "results.json").read_text())
    assert record["dataset"]["name"] == "my photos"
    assert record["model"]["backbone"]["name"] == "home of ada"
    for name, text in texts(run).items():
        assert str(tmp_path) not in text, name
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["name"] == str(photos)  # the run can be repeated here
    done = command("publish.py", "--run", run, "--repo_id", "user/name", "--dry_run", check=0)
    assert str(tmp_path) not in done.stdout
    publication = prepare(run, PublishOptions(repo_id="user/name"))
    for name, what in publication.files.items():
        content = what if isinstance(what, bytes) else what.read_bytes()
        assert str(tmp_path).encode() not in content, name
    # A later evaluation, of the same data by another spelling, is added to the card.
    asked = ("--data.name", photos, "--data.max_unreadable", 0.2, "--attacks", "fast", "--epsilon", "1/255", "--samples", 4)
    command("evaluate.py", "--model.name", run, *asked, "--output_dir", tmp_path / "eval", check=0)
    for name, text in {**texts(run), **texts(tmp_path / "eval")}.items():
        assert str(tmp_path) not in text, name
    assert str(tmp_path) not in (tmp_path / "eval" / "report.html").read_text()
    done = command("publish.py", "--run", run, "--repo_id", "user/name", "--dry_run", check=0)
    assert "AutoAttack was not evaluated" not in done.stderr
    assert "AutoAttack's first two parts alone (autoattack-fast)" in done.stderr
    assert "AutoAttack: its first two parts alone (autoattack-fast, below)" in done.stdout
    assert "AutoAttack: not evaluated" not in done.stdout
    command("compare.py", run, tmp_path / "eval", check=0)


def test_a_title_stands_for_the_name(command, class_folder, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "pre").mkdir()
    export(create_backbone("resnet8_cifar", 16), tmp_path / "pre")
    words = ("--model.name", "pre", "--data.name", class_folder, "--data.title", "Red and blue", "--data.image_size", 16, "--epochs", 1)
    done = command("linear_probe.py", *words, "--batch_size", 8, "--evaluation.steps", 1, "--output_dir", "le", check=0)
    held = sum(path.stat().st_size for path in (tmp_path / "le" / "checkpoints").rglob("*") if path.is_file())
    assert f"le/checkpoints holds {held / 1e6:,.1f} MB that only a training that is resumed or repeated needs" in done.stderr
    record = json.loads((tmp_path / "le" / "results.json").read_text())
    assert record["dataset"]["name"] == "Red and blue"
    assert record["model"]["name"] == "resnet8_cifar.le_Red-and-blue"
    assert "on Red and blue (20% of train" in (tmp_path / "le" / "README.md").read_text()
    assert json.loads((tmp_path / "le" / "config.json").read_text())["rocl_transfer"]["trained_on"]["data"] == "Red and blue"
    done = command("linear_probe.py", *words, "--data.title", "two\nlines", "--output_dir", "x", check=2)
    assert "--data.title is 'two\\nlines'" in done.stderr.splitlines()[-1]


def test_what_older_runs_say_is_corrected_and_what_cannot_be_is_refused(run_folder, tmp_path, monkeypatch):
    run = run_folder
    record = json.loads((run / "results.json").read_text())
    record["dataset"]["name"], record["dataset"]["notes"] = "/home/ada/my digits", ["left out: /home/ada/my digits/3.png, ~/x/y.png"]
    record["config"]["data"]["name"] = "/home/ada/my digits"
    (run / "results.json").write_text(json.dumps(record))
    options = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(options.replace("name: digits", "name: /home/ada/my digits"))
    (run / "README.md").unlink()
    publication = prepare(run, PublishOptions(repo_id="user/name"))
    assert "/home/ada" not in publication.card
    sent = json.loads(publication.files["results.json"])
    assert sent["dataset"]["notes"] == ["left out: my digits/3.png, y.png"]
    assert hashlib.sha256(publication.files["results.json"]).hexdigest() in publication.card  # the card names the record that is sent
    assert b"name: my digits" in publication.files["config.yaml"]
    (run / "config.yaml").write_text(options + "\n# as in /home/ada/notes\n")
    assert b"/home/ada" not in prepare(run, PublishOptions(repo_id="user/name")).files["config.yaml"]
    template = tmp_path / "template.md"
    template.write_text(TEMPLATE.read_text() + "\nMade in /home/ada/work.\n")
    monkeypatch.setattr(card, "template", lambda name: template)
    with pytest.raises(UserError, match="README.md of .* would show /home/ada/work[.], a place on this machine"):
        prepare(run, PublishOptions(repo_id="user/name"))


def test_a_class_that_is_called_like_a_path_is_published_as_it_is_called(run_folder):
    record, config = (json.loads((run_folder / name).read_text()) for name in ("results.json", "config.json"))
    names = ["/home/cat", "~dog", "../up", "C:\\x", *config["label_names"][4:]]
    config["label_names"] = record["dataset"]["class_names"] = names
    record["robustness"]["report"] |= {"classes": [{"name": name} for name in names], "worst_class": {"name": names[0], "robust": 0.1}}
    for name, content in (("results.json", record), ("config.json", config)):
        (run_folder / name).write_text(json.dumps(content))
    (run_folder / "README.md").unlink()
    publication = prepare(run_folder, PublishOptions(repo_id="user/name"))
    assert "Worst class: /home/cat, 10.00 % robust" in publication.card
    assert [entry["name"] for entry in json.loads(publication.files["results.json"])["robustness"]["report"]["classes"]] == names
