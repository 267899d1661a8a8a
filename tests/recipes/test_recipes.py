"""The recipes as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import rocl_transfer as rt
from rocl_transfer.data import load_images
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
TINY = [
    "--model.name", "resnet8_cifar", "--data.image_size", "16", "--batch_size", "8", "--objective.attack.steps", "2", "--optimizer.name", "adamw",
    "--optimizer.lr", "1e-3", "--epochs", "2", "--log_every", "1", "--optimizer.warmup_epochs", "1", "--monitor_every", "1",
]  # fmt: skip
EVERY_STEP = ["--checkpoint_every", "1", "--keep_checkpoints", "9"]


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in lines]


def assert_same_course(one, two, steps):
    """Two runs took the same steps, as far as rounding lets them be compared; both with ``EVERY_STEP``.

    Shapes choose kernels, kernels round, and a sign step turns a rounding of a pixel's gradient into twice its length. So the first step, which
    begins with equal weights, is compared closely, and later ones loosely: relative differences on CPUs with AVX-512, AVX2 and neither were at most
    2e-7 in the first step's numbers, 2e-4 in the later ones', and 5e-5 in what three steps did to the weights.
    """
    first, *later = zip(metrics(one), metrics(two), strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    for mine, other in later:
        assert mine == pytest.approx(other, rel=1e-2)
    moved = []
    for run in (one, two):
        begun, ended = (load_file(run / "checkpoints" / f"step-{step}" / "objective.safetensors") for step in (0, steps))
        moved.append(torch.cat([(ended[key] - value).double().flatten() for key, value in begun.items() if value.is_floating_point()]))
    assert (moved[0] - moved[1]).norm() < 1e-2 * moved[0].norm()


def test_a_flat_folder_of_images_is_pretrained_on_without_labels(command, flat_folder, tmp_path):
    done = command("pretrain.py", *TINY, "--data.name", flat_folder, "--output_dir", "runs/pre", check=0)
    run = tmp_path / "runs" / "pre"
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "config.json", "results.json", "README.md"} <= {
        p.name for p in run.iterdir()
    }
    assert "kNN monitor is off" in done.stderr
    assert "no labels" in done.stderr
    assert [line["step"] for line in metrics(run) if "lr" in line] == list(range(1, 11))
    assert rt.load_backbone(str(run))(torch.rand(2, 3, 16, 16)).shape == (2, 64)
    assert "not evaluated" in (run / "README.md").read_text()
    pickled = [path for path in run.rglob("*") if path.is_file() and path.suffix not in (".yaml", ".jsonl", ".json", ".safetensors", ".md", ".png")]
    assert not pickled


def test_pretrain_then_probe_then_load(command, class_folder, tmp_path):
    command("pretrain.py", *TINY, "--data.name", class_folder, "--output_dir", "runs/pre", check=0)
    assert "knn_accuracy" in metrics(tmp_path / "runs" / "pre")[-1]
    before = load_file(tmp_path / "runs" / "pre" / "model.safetensors")
    probe = [
        "--model.name",
        "runs/pre",
        "--data.name",
        class_folder,
        "--epochs",
        "5",
        "--batch_size",
        "8",
        "--evaluation.epsilons",
        "[4/255, 0.5]",
    ]
    for robust in ("false", "true"):
        folder = tmp_path / "runs" / robust
        command("linear_probe.py", *probe, "--robust", robust, "--output_dir", folder, check=0)
        record = json.loads((folder / "results.json").read_text())
        clean, small, huge = record["evaluations"]
        assert clean["accuracy"] >= 0.9  # red against blue
        assert clean["accuracy"] >= small["accuracy"] >= huge["accuracy"]
        assert huge["accuracy"] < 0.6
        assert record["dataset"]["n"] == 8
        model = rt.load_classifier(str(folder))
        assert model.class_names == ("b", "r")
        assert model.input_size == 16
        # What was frozen left bit for bit as it came, BatchNorm's buffers included.
        after = load_file(folder / "model.safetensors")
        assert set(after) == {*before, "fc.weight", "fc.bias"}
        assert all(torch.equal(after[name], value) for name, value in before.items())
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(plain(images), model(images))
        card = (folder / "README.md").read_text()
        assert f"{100 * small['accuracy']:.2f}" in card
        assert {path.name for path in (folder / "figures").iterdir()} == {"training.png", "robustness.png", "adversarial.png"}


def test_pretraining_continues_from_a_classifier_or_a_backbone(command, class_folder, flat_folder, tmp_path):
    probe = ["--model.name", "resnet8_cifar", "--data.name", class_folder, "--epochs", "1", "--data.image_size", "16", "--output_dir", "le"]
    command("linear_probe.py", *probe, check=0)
    first = [*TINY, "--model.name", "le", "--data.name", class_folder, "--max_steps", "1"]
    command("pretrain.py", *first, "--output_dir", "one", check=0)
    again = [*TINY, "--model.name", "one", "--data.name", flat_folder, "--max_steps", "1", "--objective.shared_regularizer", "true"]
    done = command("pretrain.py", *again, "--output_dir", "two", check=0)
    assert "begins with the projector of one" in done.stderr
    before, after = (load_file(tmp_path / name / "projector.safetensors") for name in ("one", "two"))
    assert all((before[name] - after[name]).abs().max() < 0.01 for name in before)  # one step of AdamW away, not drawn anew
    facts = json.loads((tmp_path / "two" / "config.json").read_text())["rocl_transfer"]
    assert (facts["continued"], facts["backbone"]["name"]) == (True, "one")
    assert facts["trained_on"]["data"] == facts["pretrained_before_on"]["data"] == class_folder.name
    assert facts["pretrained_on"]["data"] == flat_folder.name
    card = (tmp_path / "two" / "README.md").read_text()
    assert "pre-trained further without labels by RoCL" in card
    assert "Begun with the weights of `one`" in card
    assert "frozen" not in card
    # What the start saw with its labels is still known to whoever probes it on another cut.
    done = command("linear_probe.py", *probe[2:-1], "two_le", "--model.name", "two", "--data.split_seed", "1", check=0)
    assert "may have seen test images (with their labels)" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]


def test_a_card_is_what_its_record_renders(command, class_folder, tmp_path):
    from rocl_transfer.hub import render_card

    probe = ["--model.name", "resnet8_cifar", "--data.name", class_folder, "--epochs", "1", "--data.image_size", "16"]
    command("linear_probe.py", *probe, "--output_dir", "runs/le", check=0)
    run = tmp_path / "runs" / "le"
    card = (run / "README.md").read_text()
    assert render_card(run).read_text() == card
    record = json.loads((run / "results.json").read_text())
    record["evaluations"][0]["accuracy"] = 0.123456
    (run / "results.json").write_text(json.dumps(record))
    assert "12.35" in render_card(run).read_text()
    from huggingface_hub import ModelCard

    loaded = ModelCard.load(run / "README.md")
    assert loaded.data.to_dict()["library_name"] == "timm"
    assert loaded.data.eval_results[0].metric_value == 0.123456
    assert loaded.data.eval_results[1].metric_args["steps"] == 20


def test_resumed_training_equals_the_uninterrupted(command, class_folder, tmp_path):
    words = [*TINY, "--data.name", class_folder]
    command("pretrain.py", *words, "--output_dir", "whole", check=0)
    command("pretrain.py", *words, "--output_dir", "parts", "--max_steps", "2", check=0)
    done = command("pretrain.py", *words, "--output_dir", "parts", check=0)
    assert "resumed from parts/checkpoints/step-2" in done.stderr
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_stream_of_shards_is_trained_on_and_resumed(command, noise_image, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        rows = datasets.Dataset.from_dict(
            {"image": [noise_image(10 * shard + number) for number in range(10)]}, datasets.Features(image=datasets.Image())
        )
        rows.to_parquet(tmp_path / "shards" / f"train-{shard}.parquet")
    watched = TINY.index("--monitor_every")
    words = [*TINY[:watched], *TINY[watched + 2 :], "--data.name", "shards", "--data.streaming"]
    unknown = command("pretrain.py", *words, "--output_dir", "whole")
    assert "does not say how many images its split 'train' has: give their number with --data.images" in unknown.stderr.splitlines()[-1]
    words += ["--data.images", "40"]
    command("pretrain.py", *words, "--output_dir", "whole", check=0)
    command("pretrain.py", *words, "--output_dir", "parts", "--max_steps", "3", check=0)
    refused = command("pretrain.py", *words, "--output_dir", "parts", "--data.workers", "1")
    assert "--data.workers was 2 in the run" in refused.stderr.splitlines()[-1]
    command("pretrain.py", *words, "--output_dir", "parts", check=0)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert "the images are streamed" in (tmp_path / "whole" / "README.md").read_text()
    for other, sentence in (
        ("--data.check=false", "--data.check has no effect with --data.streaming true"),
        ("--data.images=0", "give 1 or more"),
        ("--monitor_every=1", "--monitor_every has no effect with --data.streaming true"),
    ):
        assert sentence in command("pretrain.py", *words, "--output_dir", "c", other).stderr.splitlines()[-1]


def test_its_own_config_repeats_a_run(command, class_folder, tmp_path):
    command("pretrain.py", *TINY, "--data.name", class_folder, "--output_dir", "a", "--max_steps", "3", check=0)
    command("pretrain.py", "--config", "a/config.yaml", "--output_dir", "b", check=0)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_two_processes_equal_one_with_the_whole_batch(command, class_folder, tmp_path, name):
    words = ["--model.name", name, "--data.name", class_folder, "--data.image_size", "32", "--data.validation_fraction", "0", "--max_steps", "3",
             "--objective.group_size", "8", "--objective.attack.steps", "3", "--log_every", "1", *EVERY_STEP]  # fmt: skip
    command("pretrain.py", *words, "--batch_size", "16", "--output_dir", "one", check=0)
    command("pretrain.py", *words, "--batch_size", "8", "--output_dir", "two", processes=2, check=0)
    assert_same_course(tmp_path / "one", tmp_path / "two", 3)
    # and one process can resume where the two stood
    command("pretrain.py", *words, "--batch_size", "16", "--output_dir", "two", "--max_steps", "4", check=0)


def test_a_probe_says_when_its_backbone_may_have_seen_the_test_images(command, class_folder, tmp_path):
    command("pretrain.py", *TINY, "--data.name", class_folder, "--max_steps", "1", "--output_dir", "pre", check=0)
    for seed, said in (("0", False), ("1", True)):
        words = ["--model.name", "pre", "--data.name", class_folder, "--epochs", "1", "--data.split_seed", seed]
        done = command("linear_probe.py", *words, "--output_dir", seed, check=0)
        for text in (done.stderr, (tmp_path / seed / "README.md").read_text()):
            assert ("pre-trained with another cut" in text) == said


def test_trackers_log_what_the_metrics_say(command, class_folder, tmp_path):
    pytest.importorskip("tensorboard")
    command("pretrain.py", *TINY, "--data.name", class_folder, "--max_steps", "1", "--log_with", "tensorboard", "--output_dir", "a", check=0)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert tracked(tmp_path / "a")["loss"] == pytest.approx([line["loss"] for line in lines if "loss" in line])
    words = ("--attacks", "paper", "--epsilon", "0.1", "--samples", "20", "--log_with", "tensorboard", "--output_dir", "eval")
    command("evaluate.py", "--model.name", ROOT / "model_cards" / "resnet8_cifar.r_le_digits", "--data.name", "digits", *words, check=0)
    clean, pgd = json.loads((tmp_path / "eval" / "results.json").read_text())["evaluations"]
    assert tracked(tmp_path / "eval") == {"clean": [pytest.approx(clean["accuracy"])], "pgd-20_linf_0.1": [pytest.approx(pgd["accuracy"])]}
    for folder, name, value in (("a", "objective.method", "rocl"), ("eval", "attacks", "paper"), ("eval", "data.name", "digits")):
        (options,) = (tmp_path / folder).rglob("hparams.yml")
        assert yaml.safe_load(options.read_text())[name] == value


def tracked(folder):
    """The scalars that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(path)).Reload()
        found |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found


def test_a_diverging_run_stops_and_says_so(command, class_folder, tmp_path):
    words = [*TINY, "--data.name", class_folder, "--optimizer.warmup_epochs", "0", "--optimizer.lr", "1e30", "--output_dir", "a"]
    done = command("pretrain.py", *words)
    assert done.returncode == 2
    assert "not finite" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a" / "model.safetensors").exists()


MISTAKES = {
    "a wrong column": (
        "linear_probe.py",
        ["--data.name", "{parquet}", "--data.label_column", "lable"],
        "no label column 'lable'; did you mean 'label'?",
    ),
    "an unknown model": (
        "pretrain.py",
        ["--model.name", "resnet18_cifr"],
        "timm has no model 'resnet18_cifr'; did you mean 'resnet18_cifar'?",
    ),
    "an empty folder": ("pretrain.py", ["--data.name", "{empty}"], "has no images"),
    "one class": ("linear_probe.py", ["--data.name", "{one}"], "only one class (cat)"),
    "fewer images than a batch": (
        "pretrain.py",
        ["--batch_size", "64"],
        "28 images are fewer than a batch of 64: give a smaller --batch_size",
    ),
    "a label without images": ("linear_probe.py", ["--data.name", "{hole}"], "class 'green' has no image to train on"),
    "a missing file": ("pretrain.py", ["--config", "nowhere.yaml"], "there is no file"),
    "a missing folder": ("pretrain.py", ["--data.name", "./nowhere"], "there is no folder ./nowhere"),
    "a missing run": ("linear_probe.py", ["--model.name", "runs/nowhere"], "there is no folder runs/nowhere"),
    "a Hub dataset without network": ("pretrain.py", ["--data.name", "someone/something"], "someone/something"),
    "an unknown option": ("pretrain.py", ["--epoch", "3"], "unknown option --epoch; did you mean 'epochs'?"),
    "an unknown tracker": ("pretrain.py", ["--log_with", "tensorbord"], "there is no tracker 'tensorbord'; did you mean 'tensorboard'?"),
    "an image too small for the network": (
        "pretrain.py",
        ["--model.name", "test_convnext"],
        "smallest size that works is --data.image_size",
    ),
    "a file where the run folder should be": ("pretrain.py", ["--output_dir", "{file}"], "cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(command, class_folder, tmp_path, noise_image, mistake):
    import datasets

    places = {name: tmp_path / name for name in ("empty", "one", "hole", "parquet", "file")}
    (places["empty"]).mkdir()
    places["file"].write_text("")
    for folder in (places["one"] / "cat", places["hole"] / "red", places["hole"] / "blue", places["hole"] / "green", places["parquet"]):
        folder.mkdir(parents=True)
    for i in range(10):
        noise_image(i).save(places["one"] / "cat" / f"{i}.png")
        noise_image(i).save(places["hole"] / ("blue", "red")[i % 2] / f"{i}.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [noise_image(i) for i in range(8)], "label": [i % 2 for i in range(8)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(places["parquet"] / "train.parquet")

    recipe, words, sentence = MISTAKES[mistake]
    base = TINY if recipe == "pretrain.py" else ["--model.name", "resnet8_cifar"]
    words = [word.format(**places) for word in words]
    done = command(recipe, *base, "--data.name", class_folder, "--output_dir", "runs/x", *words)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("error: ")
    assert sentence in last
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_an_unreadable_training_image_is_left_out_and_said(command, class_folder, tmp_path):
    data = load_images(str(class_folder))
    truncated, copied = Path(data.train.where(3)), Path(data.test.where(0))
    shutil.copy(copied, data.train.where(5))
    truncated.write_bytes(truncated.read_bytes()[:300])
    words = ["--model.name", "resnet8_cifar", "--data.name", class_folder, "--epochs", "1", "--data.image_size", "16", "--evaluation.steps", "2"]
    for in_memory in ("true", "false"):
        folder = tmp_path / in_memory
        done = command("linear_probe.py", *words, "--data.in_memory", in_memory, "--output_dir", folder, check=0)
        lines = [line for line in done.stderr.splitlines() if line.startswith("data: ")]
        assert len(set(lines)) == len(lines) == 4
        assert sum(f"1 of 28 images of train cannot be read and is left out: {truncated} (" in line for line in lines) == 1
        assert sum("1 of 8 images of test (12.5%) is also an image of train" in line for line in lines) == 1
        dataset = json.loads((folder / "results.json").read_text())["dataset"]
        assert [entry.split(" (")[0] for entry in dataset["unreadable"]] == [f"train: {truncated.relative_to(class_folder.parent)}"]
        # Where the data lies stays out of records.
        assert [f"data: {note}" for note in dataset["notes"]] == [line.replace(f"{class_folder.parent}/", "") for line in lines]
        assert dataset["n"] == 8
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("true", "false"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    done = command("pretrain.py", *TINY, "--data.name", class_folder, "--output_dir", "pre", check=0)
    assert done.stderr.count("1 of 28 images of train cannot be read and is left out") == 1
    assert max(line["step"] for line in metrics(tmp_path / "pre")) == 8  # two epochs of 8 + 8 + 8 + 3 images


def test_an_unreadable_test_image_ends_the_run_with_its_name(command, class_folder, tmp_path):
    broken = Path(load_images(str(class_folder)).test.where(2))
    broken.write_text("this is no image")
    done = command("linear_probe.py", "--model.name", "resnet8_cifar", "--data.name", class_folder, "--data.image_size", "16", "--output_dir", "x")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {broken} (of no format that Pillow reads) cannot be read, and no test image")
    assert not list((tmp_path / "x").rglob("config.yaml"))


@pytest.mark.slow
def test_quickstart_shows_robustness_without_labels(tmp_path):
    done = subprocess.run(
        [BIN / "accelerate", "launch", ROOT / "recipes" / "quickstart.py", "--output_dir", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RoCL    r-LE" in done.stdout
    results = {
        (method, probe): json.loads((tmp_path / method / probe / "results.json").read_text())["evaluations"]
        for method in ("rocl", "simclr") for probe in ("le", "r-le")
    }  # fmt: skip
    at = {key: {entry.get("epsilon", 0): entry["accuracy"] for entry in value} for key, value in results.items()}
    assert at["rocl", "r-le"][0] >= 0.95
    assert at["rocl", "r-le"][0.1] >= 0.5
    assert at["simclr", "r-le"][0.1] <= 0.15
