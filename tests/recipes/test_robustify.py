"""A network made robust without labels, as a user does it: any family, a classifier with its head, other teachers, resumed, streamed, refused."""

import json
import math

import pytest
import timm
import torch
from safetensors.torch import load_file

import rocl_transfer as rt
from rocl_transfer.data import Resident
from rocl_transfer.evaluation import Watched
from rocl_transfer.hub import export
from rocl_transfer.models import add_head, create_backbone
from rocl_transfer.training.guard import Collapse, StudentGuard
from tests.conftest import ROOT

SHORT = ["--data.image_size", "32", "--batch_size", "8", "--attack.steps", "2", "--evaluation.steps", "1", "--samples", "8"]


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def model(tmp_path):
    """Export a network under a name; trained enough to have statistics."""

    def make(name="resnet8_cifar", classes=(), folder="start", seed=0, size=32):
        torch.manual_seed(seed)
        net = create_backbone(name, size)
        for _ in range(5):
            net.train()(torch.rand(8, 3, size, size))
        net = add_head(net.eval(), classes) if classes else net.eval()
        (tmp_path / folder).mkdir()
        export(net, tmp_path / folder)
        return folder

    return make


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_byobnet", "resnet20_cifar"])
def test_every_family_goes_through_one_path(command, flat_folder, model, tmp_path, name):
    words = ["--model.name", model(name), "--data.name", flat_folder, "--max_steps", "3", "--output_dir", "out", *SHORT]
    command("robustify.py", *words, check=0)
    twin = rt.load_backbone(str(tmp_path / "out"))
    assert twin(torch.rand(2, 3, 32, 32)).shape == (2, twin.num_features)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "out")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["model"]["teacher"]["name"] == "start"
    assert len(record["report"]["before_after"]["displacement"]) == 2
    assert "made robust without labels by FARE" in (tmp_path / "out" / "README.md").read_text()


def test_a_classifier_is_exported_with_its_head_bit_for_bit_and_works_in_every_recipe(command, class_folder, model, tmp_path):
    words = ["--data.name", class_folder, "--epochs", "2", "--output_dir", "out", *SHORT]
    command("robustify.py", "--model.name", model(classes=("b", "r")), *words, check=0)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "out")
    assert torch.equal(before["fc.weight"], after["fc.weight"])
    assert torch.equal(before["fc.bias"], after["fc.bias"])
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    found = record["report"]["before_after"]
    assert found["n"] == 8
    assert found["agreement"][0][0]["accuracy"] == 1  # the teacher agrees with itself
    assert [entry["name"] for entry in record["evaluations"]] == ["clean", "pgd-1", "pgd-1", "pgd-1"]
    assert len(found["accuracy"]) == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Before and after" in card
    assert "the teacher's answer, clean | 100.00 |" in card
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation_robust_agreement" in line for line in lines)
    more = ["--model.name", "out", "--data.name", class_folder]
    command("evaluate.py", *more, "--attacks", "paper", "--output_dir", "eval", check=0)
    command("predict.py", class_folder / "b" / "0.png", "--model.name", "out", "--robustness", "false", check=0)
    shorter = ["--max_steps", "1", "--batch_size", "8", "--evaluation.steps", "1", "--attack.steps", "1"]
    done = command("linear_probe.py", *more, "--robust", "true", *shorter, "--output_dir", "probe", check=0)
    done = command("finetune.py", *more, "--method", "at", *shorter, "--output_dir", "ft", check=0)
    assert "its own head is kept" in done.stderr
    done = command("publish.py", "--run", "out", "--repo_id", "user/twin", "--dry_run", check=0)
    assert "nothing was sent" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "lore"],
        ["--method", "deacl", "--ema_decay", "0.9", "--ramp", "[0, 0.5]"],
        ["--train", "lora", "--lora_rank", "2", "--clean_weight", "0.3"],
        ["--train", "first-1", "--match", "tokens"],
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(command, flat_folder, model, tmp_path, options):
    words = ["--model.name", model("test_vit"), "--data.name", flat_folder, *SHORT, *options]
    command("robustify.py", *words, "--max_steps", "4", "--output_dir", "whole", check=0)
    command("robustify.py", *words, "--max_steps", "2", "--output_dir", "parts", check=0)
    done = command("robustify.py", *words, "--max_steps", "4", "--output_dir", "parts", check=0)
    assert "resumed from" in done.stderr
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_first_stages_alone_train(command, flat_folder, model, tmp_path):
    words = ["--data.name", flat_folder, "--max_steps", "2", "--train", "first-1", "--output_dir", "out", *SHORT]
    command("robustify.py", "--model.name", model("test_vit"), *words, check=0)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "out")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("patch_embed") for key in moved)
    last = max(int(key.split(".")[1]) for key in before if key.startswith("blocks."))
    assert not any(key.startswith(f"blocks.{last}.") for key in moved)


def test_another_teacher_of_another_width(command, flat_folder, model, tmp_path):
    model("resnet18_cifar", folder="big")
    words = ["--model.name", "resnet8_cifar", "--model.pretrained", "false", "--teacher.name", "big", "--data.name", flat_folder]
    command("robustify.py", *words, "--max_steps", "2", "--output_dir", "out", *SHORT, check=0)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["model"]["teacher"]["name"] == "big"
    assert record["model"]["teacher"]["sha256"]
    assert not any("bridge" in key for key in weights(tmp_path / "out"))


def test_a_classifier_whose_teacher_is_another_network(command, class_folder, model, tmp_path):
    model("test_vit", folder="other", seed=1)
    words = ["--model.name", model("test_vit", ("b", "r")), "--teacher.name", "other", "--data.name", class_folder, "--epochs", "3", *SHORT]
    done = command("robustify.py", *words, "--optimizer.lr", "1e-4", "--output_dir", "out", check=0)
    assert "the features of start move to where other has them, and its head stays: unless that head belongs there" in done.stderr
    seen = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    drifts = [line["validation_drift"] for line in seen if "validation_drift" in line]
    assert drifts[0] > 1  # a network that begins so far away is not dead
    assert drifts == sorted(drifts, reverse=True)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["report"]["before_after"]["accuracy"] == []  # of a teacher that has no classes
    assert [entry["name"] for entry in record["evaluations"]] == ["clean", "pgd-1", "pgd-1", "pgd-1"]


def test_two_processes_robustify_together(command, flat_folder, model, tmp_path):
    words = ["--model.name", model(), "--data.name", flat_folder, "--max_steps", "2", "--output_dir", "out", *SHORT]
    command("robustify.py", *words, processes=2, check=0)
    assert (tmp_path / "out" / "model.safetensors").is_file()


SCALE = f"""
import sys
from types import SimpleNamespace
import torch
from accelerate import Accelerator
sys.path.insert(0, {str(ROOT / "recipes")!r})
from robustify import scale_of
accelerator = Accelerator(cpu=True)
own = SimpleNamespace(inputs=torch.full((4, 3), 255 * accelerator.process_index, dtype=torch.uint8))
teacher = torch.nn.Identity()
teacher.features = lambda images: images * 1e-3
print(scale_of(SimpleNamespace(accelerator=accelerator), None, teacher, SimpleNamespace(epoch=lambda number: iter([own]))))
"""


def test_processes_that_stream_divide_by_one_scale(together, tmp_path):
    (tmp_path / "scale.py").write_text(SCALE)
    done = together(tmp_path, tmp_path / "scale.py")
    assert float(done.stdout) == pytest.approx(1.5e-6), done.stderr  # the mean of 0 in the first and 3e-6 in the second


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model.name", "resnet8_cifar", "--model.pretrained", "false"], "resnet8_cifar has random weights, and nothing in it is worth keeping"),
        (["--model.name", "start", "--train", "head"], "--train head would leave the features as they are"),
        (["--model.name", "start", "--teacher.sha256", "0" * 64], "--teacher.sha256 has no effect without --teacher.name"),
        (["--model.name", "start", "--rho", "0.2"], "--rho has no effect with --method fare"),
        (["--model.name", "start", "--attack.epsilon", "4"], "write 8/255 rather than 8"),
        (["--model.name", "start", "--teacher.name", "start", "--match", "tokens"], "--match tokens needs a teacher of the same shape"),
        (["--model.name", "start", "--output_dir", "start"], "start is what this run is made from"),
    ],
)
def test_mistakes_in_robustifying_are_one_sentence(command, flat_folder, model, words, sentence):
    model()
    base = ["--data.name", flat_folder, "--output_dir", "out", *SHORT]
    done = command("robustify.py", *base, *words, check=2)
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def look(epoch, **values):
    seen = {"drift": 0.3, "displacement": 0.5, "spread": 1.0, "agreement": 0.9, **values}
    return {"step": epoch, "epoch": epoch, **{f"validation_{name}": value for name, value in seen.items() if value is not None}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"spread": 0.001}, "have become nearly constant"),
        ({"agreement": 0.1}, "the teacher's answers are lost"),
        ({"agreement": None, "drift": 1.4}, "farther from its teacher"),
    ],
)
def test_a_dead_student_is_called_dead(values, sentence):
    classes = 0 if values.get("agreement", 1) is None else 10
    well = look(1) if classes else look(1, agreement=None)
    guard = StudentGuard(200, classes)
    with pytest.raises(Collapse, match=sentence):
        guard.judge([look(epoch, **values) for epoch in (1, 2, 3)], ended=False)
    guard.judge([look(1, **values), look(2, **values)], ended=False)
    with pytest.raises(Collapse, match=sentence):
        guard.judge([well, look(2, **values)], ended=True)
    guard.judge([look(1, **values), well], ended=True)


def test_a_student_that_begins_far_from_another_teacher_is_dead_where_it_comes_no_nearer():
    guard = StudentGuard(200, 0, start=5.0)
    guard.judge([look(epoch, agreement=None, drift=drift) for epoch, drift in ((1, 5.2), (2, 4.9), (3, 4.5))], ended=True)
    with pytest.raises(Collapse, match=r"\(5.10 of the spread\) than images are from each other, and no nearer than at the start \(5.00\): lower"):
        guard.judge([look(epoch, agreement=None, drift=5.1) for epoch in (1, 2, 3)], ended=False)


def test_the_best_student_is_the_one_an_adversary_moves_least():
    looks = [look(1, displacement=0.6), look(2, displacement=0.4), look(3, displacement=0.2, spread=0.0)]
    assert StudentGuard(100, 10).best(looks)["epoch"] == 2


def test_displacements_are_in_units_of_the_teachers_spread():
    torch.manual_seed(0)
    teacher = create_backbone("resnet8_cifar", 16).eval()
    images = Resident(torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8))
    watched = Watched(teacher, images, torch.arange(12), 0)
    features = teacher(images.inputs / 255)
    assert watched.spread == pytest.approx(float((features - features.mean(0)).square().sum(1).mean().sqrt()), rel=1e-5)
    from rocl_transfer.attacks import AttackOptions

    found = watched.measure(teacher, AttackOptions(epsilon=8 / 255, steps=3))
    assert found["drift"] == 0
    assert found["spread"] == pytest.approx(1)
    assert found["displacement"] > 0
    assert math.isfinite(found["displacement"])


@pytest.mark.parametrize(
    ("kind", "options", "width"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "init_values": 1e-5}, "cls"),  # DINOv2: the class token
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "pre_norm": True, "act_layer": "quick_gelu"}, "cls"),  # CLIP
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "class_token": False, "global_pool": "map"}, "map"),  # SigLIP
    ],
)
def test_the_right_vector_of_transformers_is_matched(kind, options, width):
    from rocl_transfer.models import PixelModel
    from rocl_transfer.objectives.distillation import Embedder

    torch.manual_seed(0)
    net = timm.create_model(kind, num_classes=0, **options).eval()
    model = PixelModel(net, kind, 32, model_args=options)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        (pooled,) = Embedder(model)(images)
        tokens = net.forward_features(images)
        expected = net.fc_norm(tokens[:, 0]) if width == "cls" else net.fc_norm(net.attn_pool(tokens))
    torch.testing.assert_close(pooled, expected)


def test_the_configuration_of_the_digits_is_read():
    from robustify import RobustifyConfig
    from rocl_transfer.config import parse

    file = ROOT / "recipes" / "configs" / "digits_robustify.yaml"
    config = parse(RobustifyConfig, ["--config", str(file), "--model.name", "x", "--output_dir", "y"])
    assert (config.epochs, config.attack.epsilon, config.optimizer.schedule) == (10, 0.1, "cosine_per_step")


@pytest.mark.slow  # 93 s: a classifier, its twin and two heads
def test_the_quick_starts_second_part_needs_the_first_and_prints_its_table(command, tmp_path):
    pytest.importorskip("sklearn")
    done = command("quickstart_robustify.py", check=2)
    assert "start recipes/quickstart.py first" in done.stderr.splitlines()[-1]
    # A classifier that has learned: of one that has not, the guard may stop the twin's head.
    words = ["--model.name", "resnet8_cifar", "--model.pretrained", "false", "--data.name", "digits", "--data.image_size", "16"]
    words += ["--method", "standard", "--epochs", "4", "--batch_size", "32", "--optimizer.name", "adamw", "--optimizer.lr", "1e-2"]
    words += ["--evaluation.epsilons", "[0.025,0.05,0.1]", "--output_dir", "runs/quickstart/simclr/le"]
    command("finetune.py", *words, check=0)
    done = command("quickstart_robustify.py", "--epochs", "2", check=0)
    shown = done.stdout.splitlines()
    assert shown[3].split() == ["clean", "0.025", "0.05", "0.1"]
    assert [line[2:26].strip() for line in shown[4:7]] == ["SimCLR, its LE head", "its twin, the same head", "its twin, an r-LE head"]
    assert "Without a label:" in done.stdout


def test_images_may_be_streamed(command, flat_folder, model, tmp_path):
    import datasets

    (tmp_path / "shards").mkdir()
    files = sorted(str(path) for path in flat_folder.glob("*.png"))
    rows = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    for shard in range(2):
        rows.shard(2, shard).to_parquet(str(tmp_path / "shards" / f"train-{shard}.parquet"))
    words = ["--model.name", model(), "--data.name", tmp_path / "shards", "--data.streaming", "true", "--data.images", "40", "--data.workers", "1"]
    words += ["--data.image_size", "32"]
    for idle in (["--samples", "8"], ["--evaluation.steps", "1"], ["--monitor_every", "7"]):
        refused = command("robustify.py", *words, *idle, "--output_dir", "out", check=2)
        sentence = (
            f"{idle[0].split('.')[0]} has no effect with --data.streaming true, which leaves nothing to watch and nothing to measure: leave it out"
        )
        assert sentence in refused.stderr.splitlines()[-1]
    short = ["--batch_size", "8", "--attack.steps", "2"]
    done = command("robustify.py", *words, "--max_steps", "2", "--output_dir", "out", *short, check=0)
    assert "the images are streamed: the twin is not watched in training, and nothing is measured of it" in done.stderr
    assert rt.load_backbone(str(tmp_path / "out"))(torch.rand(1, 3, 32, 32)).isfinite().all()
