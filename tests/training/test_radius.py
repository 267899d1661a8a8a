"""A radius that was chosen badly is told, and one that was not is not: planted measurements, and runs that earn the sentence."""

import json

import pytest
import torch

from rocl_transfer.hub import export
from rocl_transfer.models import create_backbone
from rocl_transfer.objectives.contrastive import recognised
from rocl_transfer.training import last_epoch, poor_radius

SMALL, LARGE = "--attack.epsilon 8/255 may be too small", "--attack.epsilon 8/255 may be too large"
MEASURED = {
    "digits, TRADES at 0.1": ((0.975, 0.735, 0.1, 360), None),
    "digits at 0.025, where an attack still changes 3 %": ((0.976, 0.947, 0.1, 360), None),
    "the attack changes nothing": ((0.95, 0.945, 0.1, 360), SMALL),
    "nor of the original": ((0.95, 0.90, 0.1, 360, 0.0), SMALL),
    "but much of the original: that is success": ((0.95, 0.945, 0.1, 360, 0.6), None),
    "too few images to say so": ((1.0, 1.0, 0.5, 40), None),
    "under attack no better than guessing": ((0.60, 0.10, 0.1, 360), LARGE),
    "worse than guessing": ((0.97, 0.02, 0.1, 360), LARGE),
    "nothing was learnt at all": ((0.10, 0.10, 0.1, 360), LARGE),
    "a little was": ((0.60, 0.20, 0.1, 360), None),
    "too few images to tell it from learning": ((0.5, 0.1, 0.1, 10), None),
    "views, recognised among 128": ((0.70, 0.30, 1 / 128, 1280), None),
    "views, none of which is": ((0.70, 0.008, 1 / 128, 1280), LARGE),
    "not a single one is right": ((0.0, 0.0, 0.1, 100), LARGE),
}


@pytest.mark.parametrize("case", MEASURED)
def test_the_sentence_is_earned(case):
    (clean, robust, chance, n, *changed), wanted = MEASURED[case]
    said = poor_radius("--attack.epsilon 8/255", clean, robust, chance, n, "the answers", *changed)
    assert (said is None) == (wanted is None)
    assert said is None or said.startswith(wanted)


def test_it_names_figures_option_and_remedy():
    assert poor_radius("--attack.epsilon 1/255", 0.95, 0.945, 0.1, 360, "the answers") == (
        "--attack.epsilon 1/255 may be too small: the attack changes 0.5 % of the answers at the end, so training against it brings little: raise it "
        "if you expect larger perturbations"
    )
    assert poor_radius("--attack.epsilon 0.5", 0.6, 0.1, 0.1, 360, "the answers") == (
        "--attack.epsilon 0.5 may be too large: under attack 10.0 % of the answers stay right at the end, guessing gives 10.0 %: lower it, or train "
        "longer (--epochs)"
    )


def test_views_are_recognised_within_their_group():
    keys = torch.eye(4)
    assert recognised(keys, keys, 1) == 1
    swapped = keys[[1, 0, 2, 3]]
    assert recognised(swapped, keys, 1) == 0.5
    astray = torch.cat([0.4 * keys[:1] + 0.9 * keys[2:3], keys[1:]])  # nearest to the third, which is of another group
    assert (recognised(astray, keys, 1), recognised(astray, keys, 2)) == (0.75, 1)
    assert recognised(torch.ones(8, 4), torch.ones(8, 4), 2) == 1 / 4  # collapsed: guessing


def test_the_last_whole_epoch_is_read(tmp_path):
    lines = [{"step": 2, "epoch_agreement": 0.1}, {"step": 4, "epoch_agreement": 0.2, "epoch_loss": 3}, {"step": 5, "agreement": 0.9, "last": True}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_epoch(tmp_path / "metrics.jsonl") == {"agreement": 0.2, "loss": 3}
    (tmp_path / "metrics.jsonl").write_text("")
    assert last_epoch(tmp_path / "metrics.jsonl") == {}


@pytest.fixture
def colours(tmp_path, noise_image):
    """Red against blue, and a backbone."""
    for i in range(500):
        (tmp_path / "data" / "br"[i % 2]).mkdir(parents=True, exist_ok=True)
        noise_image(i, size=(16, 16)).save(tmp_path / "data" / "br"[i % 2] / f"{i}.png")
    torch.manual_seed(0)
    (tmp_path / "pre").mkdir()
    export(create_backbone("resnet8_cifar", 16), tmp_path / "pre")
    return tmp_path


SHORT = ["--data.name", "data", "--data.image_size", "16", "--data.validation_fraction", "0.3", "--batch_size", "20", "--log_every", "100"]


def test_a_fine_tuning_earns_it(command, colours):
    words = [*SHORT, "--attack.epsilon", "1e-4", "--attack.steps", "2", "--evaluation.steps", "1", "--epochs", "2", "--optimizer.lr", "2e-3"]
    done = command("finetune.py", *words, "--model.name", "pre", "--output_dir", "ft", check=0)
    assert "--attack.epsilon 0.0001 may be too small: the attack changes " in done.stderr


def test_a_pretraining_earns_it(command, colours):
    still = [word for name in ("jitter", "grey", "flip") for word in (f"--views.{name}_probability", "0")]  # every view is recognised
    words = [*SHORT, "--model.name", "resnet8_cifar", *still, "--views.crop_area", "[1, 1]", "--objective.attack.steps", "1", "--epochs", "2"]
    words += ["--optimizer.warmup_epochs", "0", "--optimizer.lr", "1e-6"]
    done = command("pretrain.py", *words, "--objective.attack.epsilon", "1e-5", "--output_dir", "small", check=0)
    assert "--objective.attack.epsilon 1e-05 may be too small: the attack changes 0.0 % of the matches of an image's views" in done.stderr
    done = command("pretrain.py", *words, "--objective.attack.epsilon", "1", "--output_dir", "large", check=0)
    assert "--objective.attack.epsilon 1 may be too large: under attack " in done.stderr


def test_a_twin_earns_it_by_what_its_original_stands(command, colours):
    words = [*SHORT, "--epochs", "3", "--optimizer.lr", "2e-3", "--evaluation.steps", "1"]
    command("finetune.py", *words, "--method", "standard", "--model.name", "pre", "--output_dir", "standard", check=0)
    words = [*SHORT, "--model.name", "standard", "--attack.steps", "1", "--evaluation.steps", "1", "--epochs", "1"]
    done = command("robustify.py", *words, "--attack.epsilon", "1e-5", "--output_dir", "small", check=0)
    assert "may be too small: the attack changes 0.0 % of the teacher's answers before the training" in done.stderr
