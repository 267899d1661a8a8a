"""Fine-tuning on clusters in place of classes: label-free, resumed bit for bit, the same clusters in two processes, a backbone with its card."""

import json

import pytest
import torch
from safetensors.torch import load_file

import rocl_transfer as rt

SHORT = ["--data.image_size", "32", "--epochs", "4", "--batch_size", "4", "--optimizer.lr", "2e-3", "--attack.steps", "2", "--ramp", "[0, 0]"]
SHORT += ["--pseudo_labels", "2"]


def clusters(folder):
    return load_file(folder / "head" / "pseudo_labels.safetensors")


def test_a_backbone_leaves_and_a_killed_run_resumes_bit_for_bit(command, pretrained, class_folder, tmp_path):
    words = ["--model.name", pretrained, "--data.name", class_folder, *SHORT]
    done = command("finetune.py", *words, "--output_dir", "whole", check=0)
    assert "k-means: 2 clusters of " in done.stderr
    command("finetune.py", *words, "--output_dir", "parts", "--max_steps", "5", check=0)
    done = command("finetune.py", *words, "--output_dir", "parts", check=0)
    assert "resumed from parts/checkpoints/step-5" in done.stderr
    a, b, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", tmp_path / "parts", pretrained))
    assert a.keys() == before.keys()  # the head stays behind
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert not all(torch.equal(value, before[name]) for name, value in a.items())
    assert rt.load_backbone(str(tmp_path / "whole")).num_features == 64
    # red against blue is what there is to find, and the classes play no part in it
    train = clusters(tmp_path / "whole")["train"]
    assert sorted(train.bincount().tolist()) == [14, 14]
    record = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert (record["evaluations"], record["model"]["pseudo_labels"]) == ([], 2)
    assert "trained_on" not in record["model"]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "pre-trained further without labels by TRADES against linf" in card
    assert "on 2 clusters of the features that it had in place of classes" in card
    assert "by clusters in place of classes" in card
    assert "Nothing was measured" in card
    command("linear_probe.py", "--model.name", "whole", "--data.name", class_folder, "--epochs", "2", "--output_dir", "probe", check=0)


def test_images_without_labels_and_two_processes(command, pretrained, flat_folder, tmp_path):
    words = ["--model.name", pretrained, "--data.name", flat_folder, *SHORT, "--max_steps", "2"]
    command("finetune.py", *words, "--output_dir", "one", check=0)
    command("finetune.py", *words, "--batch_size", "2", "--output_dir", "two", processes=2, check=0)
    one, two = clusters(tmp_path / "one"), clusters(tmp_path / "two")
    assert one.keys() == two.keys() == {"train"}
    assert torch.equal(one["train"], two["train"])
    assert len(one["train"]) == 40
    assert json.loads((tmp_path / "two" / "results.json").read_text())["training"]["processes"] == 2


REFUSED = {
    "random weights": (["--model.name", "resnet8_cifar"], "resnet8_cifar has random weights, whose clusters mean nothing: give a trained backbone"),
    "one cluster": (["--pseudo_labels", "1"], "--pseudo_labels is 1: give 2 or more clusters"),
    "the head alone": (["--train", "head"], "--train head leaves the backbone as it is, which alone --pseudo_labels exports"),
    "a measurement": (["--evaluation.steps", "3"], "--evaluation has no effect with --pseudo_labels, which leaves nothing to measure"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(command, pretrained, class_folder, tmp_path, case):
    words, sentence = REFUSED[case]
    done = command("finetune.py", "--model.name", pretrained, "--data.name", class_folder, *SHORT, *words, "--output_dir", "no", check=2)
    assert sentence in done.stderr.splitlines()[-1]
    assert not (tmp_path / "no" / "config.yaml").exists()
