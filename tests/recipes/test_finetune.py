"""Fine-tuning as a user runs it: every family from one path, every start, deaths planted from outside, resuming."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

import rocl_transfer as rt

SHORT = ["--data.image_size", "32", "--epochs", "6", "--batch_size", "4", "--optimizer.lr", "2e-3", "--evaluation.steps", "2", "--log_every", "1"]
QUICK = ["--attack.steps", "2", "--ramp", "[0, 0]"]


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in lines]


def record(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "name",
    ["test_vit", "test_efficientnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("test_resnet", "test_convnext", "test_byobnet"))],
)
def test_every_family_from_one_path(command, class_folder, tmp_path, name):
    words = ["--model.name", name, "--model.pretrained", "false", "--data.name", class_folder, *SHORT, *QUICK, "--method", "trades"]
    words += ["--epochs", "15"]  # six leave an EfficientNet at chance with every other seed
    done = command("finetune.py", *words, "--output_dir", "ft", check=0)
    run = tmp_path / "ft"
    clean, *robust = record(run)["evaluations"]
    assert clean["accuracy"] >= 0.7  # red against blue
    assert [entry["epsilon"] for entry in robust] == pytest.approx([4 / 255, 8 / 255, 16 / 255], abs=1e-6)
    model = rt.load_classifier(str(run))
    plain = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(plain(images), model(images))
    card = (run / "README.md").read_text()
    assert "fine-tuned by TRADES against linf 0.03137" in card
    assert ("BatchNorm statistics of the training images" in card) == (name in ("test_resnet", "test_efficientnet", "test_byobnet"))
    assert "the best on validation images" in card
    assert "optimizer:\n  name: adamw" in (run / "config.yaml").read_text()  # what was chosen is written down
    assert "a new linear head is trained" in done.stderr


OPTIONS = {
    "standard, frozen statistics": ["--method", "standard", "--train", "last-1", "--batchnorm", "frozen"],
    "at, l2, ss": [*QUICK, "--method", "at", "--attack.norm", "l2", "--attack.epsilon", "0.5", "--ss_weight", "0.5", "--optimizer.schedule", "steps"],
    "mart, awp, ema": [*QUICK, "--method", "mart", "--awp_gamma", "0.005", "--ema_decay", "0.9", "--label_smoothing", "0.1", "--class_balanced=true"],
    "lora, average": [*QUICK, "--train", "lora", "--lora_rank", "2", "--ema_decay", "0.5"],
}  # fmt: skip


@pytest.mark.parametrize("options", ["mart, awp, ema", "lora, average", *(pytest.param(name, marks=pytest.mark.slow) for name in [*OPTIONS][:2])])
def test_every_option_from_a_pretrained_run_resumes_bit_for_bit(command, pretrained, class_folder, tmp_path, options):
    words = ["--model.name", pretrained, "--data.name", class_folder, *SHORT, *OPTIONS[options], "--head_epochs", "1"]
    command("finetune.py", *words, "--output_dir", "whole", check=0)
    command("finetune.py", *words, "--output_dir", "parts", "--max_steps", "5", check=0)
    done = command("finetune.py", *words, "--output_dir", "parts", check=0)
    assert "resumed from parts/checkpoints/step-5" in done.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert set(a) == {*load_file(pretrained / "model.safetensors"), "fc.weight", "fc.bias"}  # nothing of the additions is left
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert record(tmp_path / "whole")["evaluations"][0]["accuracy"] >= 0.7


def test_the_head_first_then_the_best_and_the_last(command, pretrained, class_folder, tmp_path):
    words = ["--model.name", pretrained, "--data.name", class_folder, *SHORT, *QUICK, "--method", "at"]
    done = command("finetune.py", *words, "--output_dir", "ft", check=0)
    assert "the head is trained first" in done.stderr
    assert "the start is " in done.stderr
    start = json.loads((tmp_path / "ft" / "head" / "start.json").read_text())
    assert start["head"] == "new"
    assert (tmp_path / "ft" / "head" / "robust").is_dir() == start["robust"]
    training = record(tmp_path / "ft")["training"]
    looks = [line["validation_robust_recall"] for line in metrics(tmp_path / "ft") if "validation_robust_recall" in line]
    assert training["best"]["validation_robust_recall"] == max(looks)
    assert training["last"]["validation_robust_recall"] == looks[-1]
    assert (tmp_path / "ft" / "last" / "model.safetensors").is_file() == (training["best"]["step"] != training["last"]["step"])
    # a classifier of the same classes keeps its head
    done = command("finetune.py", *words[2:], "--model.name", "ft", "--output_dir", "again", check=0)
    assert "its own head is kept" in done.stderr
    assert "the head is trained first" not in done.stderr


def test_two_processes_train_one_classifier(command, class_folder, tmp_path):
    words = [
        "--model.name",
        "test_vit",
        "--model.pretrained",
        "false",
        "--data.name",
        class_folder,
        *SHORT,
        *QUICK,
        "--batch_size",
        "4",
        "--awp_gamma",
        "0.005",
    ]
    command("finetune.py", *words, "--output_dir", "two", processes=2, check=0)
    assert record(tmp_path / "two")["training"]["processes"] == 2
    assert record(tmp_path / "two")["evaluations"][0]["accuracy"] >= 0.7


def test_a_rate_of_a_million_ends_in_a_sentence(command, class_folder, tmp_path):
    words = ["--model.name", "test_resnet", "--model.pretrained", "false", "--data.name", class_folder, *SHORT, *QUICK, "--optimizer.lr", "1e6"]
    done = command("finetune.py", *words, "--output_dir", "ft")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: training ")
    assert "lower --optimizer.lr" in last
    assert "Training went back 2 times" in last
    assert "Nothing is exported" in last
    assert not (tmp_path / "ft" / "model.safetensors").exists()
    assert command("finetune.py", *words, "--output_dir", "ft").stderr.splitlines()[-1] == last  # and again, at once


def test_a_single_class_and_a_broken_file_are_told(command, noise_image, tmp_path):
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for i in range(10):
        noise_image(i).save(tmp_path / "one" / "cat" / f"{i}.png")
    words = ["--model.name", "test_vit", "--model.pretrained", "false", *SHORT, *QUICK]
    done = command("finetune.py", *words, "--data.name", "one", "--output_dir", "a")
    assert (done.returncode, "only one class (cat)" in done.stderr.splitlines()[-1]) == (2, True)
    for split, count in (("train", 30), ("test", 6)):
        for i in range(count):
            (tmp_path / "splits" / split / "br"[i % 2]).mkdir(parents=True, exist_ok=True)
            noise_image(i).save(tmp_path / "splits" / split / "br"[i % 2] / f"{i}.png")
    broken = tmp_path / "splits" / "train" / "b" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    command("finetune.py", *words, "--data.name", "splits", "--data.validation_fraction", "0", "--output_dir", "b", check=0)
    (entry,) = record(tmp_path / "b")["dataset"]["unreadable"]
    assert entry.startswith("train: splits/train/b/0.png (")
    broken.write_bytes(whole)
    (tmp_path / "splits" / "test" / "r" / "1.png").write_bytes(whole[:200])
    done = command("finetune.py", *words, "--data.name", "splits", "--output_dir", "c")
    assert done.returncode == 2
    assert "splits/test/r/1.png" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "c" / "metrics.jsonl").exists()


def test_without_validation_images_the_last_epoch_is_exported(command, class_folder, tmp_path):
    words = ["--model.name", "test_resnet", "--model.pretrained", "false", "--data.name", class_folder, *SHORT, *QUICK]
    done = command("finetune.py", *words, "--data.validation_fraction", "0", "--output_dir", "ft", check=0)
    assert "there are no validation images: 32 training images are watched, and the last epoch is exported" in done.stderr
    assert not (tmp_path / "ft" / "last").exists()
    assert "validation" not in (tmp_path / "ft" / "README.md").read_text().split("```yaml")[0].split("## Training")[1]


MISTAKES = {
    "an unknown part": (["--train", "last"], "--train is last: give all, head, last-2, norm or lora"),
    "too many stages": (["--train", "last-9"], "--train last-9: resnet8_cifar has 4 stages"),
    "a rank without lora": (["--lora_rank", "4"], "--lora_rank has no effect with --train all"),
    "a ramp without an adversary": (["--method", "standard", "--ramp", "[0, 0.5]"], "--ramp has no effect with --method standard"),
    "l2 without a radius": (["--attack.norm", "l2"], "is meant for linf: give a radius with l2, such as 0.5 at 32 px"),
    "statistics that stay anyway": (["--train", "lora", "--batchnorm", "frozen"], "--batchnorm has no effect with --train lora"),
    "features that stay anyway": (["--train", "head", "--ss_weight", "1"], "--ss_weight has no effect with --train head"),
    "beta without its term": (["--method", "at", "--beta", "3"], "--beta has no effect with --method at"),
    "an optimiser without a rate": (["--optimizer.name", "sgd"], "--optimizer.lr is missing"),
    "a ramp backwards": (["--ramp", "[0.5, 0.1]"], "--ramp is [0.5, 0.1]: give two rising shares"),
    "frozen statistics without any": (["--model.name", "test_vit", "--model.pretrained", "false", "--batchnorm", "frozen"], "has no BatchNorm"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(command, pretrained, class_folder, tmp_path, mistake):
    words, sentence = MISTAKES[mistake]
    done = command("finetune.py", "--model.name", pretrained, "--data.name", class_folder, "--data.image_size", "32", "--output_dir", "ft", *words)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ft" / "metrics.jsonl").exists()
