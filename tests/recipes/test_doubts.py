"""Wrong models as a user meets them: an accuracy that is no better than guessing is never printed with a straight face."""

import pytest
import torch
from safetensors.torch import save_file


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
    from rocl_transfer.hub import export
    from rocl_transfer.models import create_backbone

    folder = tmp_path_factory.mktemp("pre")
    torch.manual_seed(0)
    export(create_backbone("resnet8_cifar", 16), folder)
    return folder


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
