"""A device of its own: the host does not wait for it in a step, and it computes what the CPU does.

On every machine this is tried on a stand-in, ``tests/support/elsewhere.py``; with ``--gpu``, on a GPU.
"""

import contextlib
import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

import rocl_transfer as rt
from rocl_transfer.attacks import APGD, FAB, L2, PGD, AttackOptions, Linf, Square
from rocl_transfer.data import Augmentation, Batch, Batches, Resident, Sampler
from rocl_transfer.evaluation import FlipOptions, compute_features, knn_accuracy, smallest_epsilon
from rocl_transfer.evaluation.protocols import Ensemble
from rocl_transfer.models import add_head, create_backbone, projector
from rocl_transfer.objectives import AdversarialTraining, LinearProbe, RobustProbe, RoCL
from rocl_transfer.training import OptimizerOptions
from rocl_transfer.training.runtime import arithmetic, synchronised
from rocl_transfer.training.update import Update
from tests.conftest import ROOT
from tests.support.elsewhere import DEVICE, elsewhere, run_recipe

SIZE = 32


class Gpu:
    device = torch.device("cuda", 0)

    @contextlib.contextmanager
    def unwaiting(self):
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class StandIn:
    device = DEVICE

    def __init__(self, opened):
        self.opened = opened

    @contextlib.contextmanager
    def unwaiting(self):
        before = len(self.opened.waits)
        yield
        assert self.opened.waits[before:] == []


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    if request.param == "gpu":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield Gpu()
        AcceleratorState._reset_state(reset_partial_state=True)  # other tests want the CPU
    else:
        with elsewhere() as opened:
            yield StandIn(opened)


def network(name="resnet8_cifar"):
    return create_backbone(name, SIZE)


def rocl(name="resnet8_cifar", **options):
    encoder = network(name)
    attack = options.pop("attack", AttackOptions(epsilon=8 / 255, step_size=2 / 255, steps=2))
    return RoCL(encoder, projector(encoder.num_features), Augmentation(), RoCL.Options(attack=attack, **options))


def tuning(method, name="resnet8_cifar", counts=None, **options):
    views = Augmentation(crop_area=(1, 1), shift=0.1)
    own = AdversarialTraining.Options(method=method, attack=AttackOptions(epsilon=8 / 255, step_size=2 / 255, steps=2), augmentation=views, **options)
    other = projector(network(name).num_features) if own.ss_weight else None
    return AdversarialTraining(add_head(network(name), "abc"), own, counts=counts, projector=other)


CASES = {
    "rocl": (lambda: rocl(), "lars"),
    "rocl, shared": (lambda: rocl(shared_regularizer=True), "momentum"),
    "rocl, l2, vit": (lambda: rocl("test_vit", attack=AttackOptions(norm="l2", epsilon=0.5, step_size=0.1, steps=2)), "adamw"),
    "rocl, convnext": (lambda: rocl("test_convnext"), "lamb"),
    "standard": (lambda: tuning("standard", "test_efficientnet", counts=torch.tensor([20, 10, 5]), class_balanced=True), "adamw"),
    "at, everything": (lambda: tuning("at", ss_weight=1.0, awp_gamma=0.005, ema_decay=0.9), "momentum"),
    "trades": (lambda: tuning("trades", label_smoothing=0.1), "adamw"),
    "mart": (lambda: tuning("mart", "test_vit"), "adamw"),
    "r-le": (lambda: RobustProbe(add_head(network(), "abc"), PGD(8 / 255, steps=2)), "momentum"),
    "le": (lambda: LinearProbe(add_head(network(), "abc")), "momentum"),
}


@pytest.fixture
def started_alike(monkeypatch):
    """Attacks begin at the images: a GPU's generators draw other numbers."""
    for ball in (Linf, L2):
        monkeypatch.setattr(ball, "random", lambda self, images, generators: images + self.direction(images - 0.5) * self.epsilon / 2)


def flat(objective):
    return torch.cat([parameter.detach().reshape(-1) for parameter in objective.parameters()]).cpu()


def steps(case, device, unwaiting=contextlib.nullcontext, count=3):
    """Losses of each step, and how far the weights went; from the second step on, in ``unwaiting``."""
    make, optimizer = CASES[case]
    torch.manual_seed(0)
    objective = make().to(device).to(memory_format=torch.channels_last)
    start, optimizer = flat(objective), OptimizerOptions(name=optimizer, lr=0.01, weight_decay=1e-4).create(objective)
    accelerator = Accelerator(device_placement=device.type != "cpu")
    inputs = torch.randint(0, 256, (16 * count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = inputs.flatten(1)[:, :64] / 255 if case == "le" else inputs
    batches = Batches(Resident(inputs.to(device)), torch.arange(len(inputs)) % 3, Sampler(len(inputs), 16, seed=0, group_size=8))
    means, stream = [], batches.epoch(0)
    for step in range(count):
        if step < 2:  # as when a run begins, and when it is resumed
            update = Update(accelerator, objective, optimizer, clip_grad=10.0)
            update.prepared.train()
            update.learn_at(0.01)
        with unwaiting() if step else contextlib.nullcontext():
            names, values = update.compute(next(stream), step, 10, (0, 0))
            update.apply_where(torch.isfinite(values).all())
        means.append(values)
    return names, torch.stack(means).cpu(), flat(objective) - start


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_cpus_and_the_host_does_not_wait_for_it(place, case, started_alike):
    names, there, moved = steps(case, place.device, place.unwaiting)
    again, here, went = steps(case, torch.device("cpu"))
    assert names == again
    losses = [number for number, name in enumerate(names) if "accuracy" not in name]  # a rounding may turn an image
    torch.testing.assert_close(there[0, losses], here[0, losses], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(there[1:, losses], here[1:, losses], rtol=0.1, atol=1e-4)  # after sign steps of the attack and of Adam
    assert (moved - went).norm() < 0.3 * went.norm()
    assert not torch.equal(here[0], here[-1])


def test_views_are_the_cpus(place):
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    views = Augmentation(rotation=(-20, 20), shift=0.2)
    here, there = (views(x, [torch.Generator().manual_seed(seed) for seed in (1, 2)]) for x in (images, images.to(place.device)))
    assert there.device.type == place.device.type
    if place.device.type == "meta":  # whose arithmetic is the CPU's: groups one by one, in pieces, or resampled all at once
        assert torch.equal(there.cpu(), here)
    assert (there.cpu() - here).abs().mean() < 1e-5


def digits(n):
    from sklearn.datasets import load_digits

    data = load_digits()
    images = nn.functional.interpolate(torch.tensor(data.images[-n:], dtype=torch.float32)[:, None] / 16, size=16)
    return images.expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target[-n:])


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.12), ("l2", 1.5), ("l1", 10.0)])
def test_verdicts_are_the_cpus(place, norm, epsilon):
    model, (images, labels) = rt.load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits")), digits(12)
    climbs = APGD(epsilon, norm, steps=10), APGD(epsilon, norm, steps=5, targets=3)
    parts = (*climbs, FAB(epsilon, norm, steps=5, targets=2), Square(epsilon, norm, queries=60))
    attacks = [Ensemble("short", parts, "short")]
    here = rt.evaluate(model, images, labels, attacks=attacks)
    there = rt.evaluate(copy.deepcopy(model).to(place.device), images.to(place.device), labels.to(place.device), attacks=attacks)
    assert [e.name for e in there.evaluations] == [e.name for e in here.evaluations]
    assert here["clean"].accuracy > here["short"].accuracy > 0
    for one, other in zip(here.evaluations, there.evaluations, strict=True):
        assert abs(one.accuracy - other.accuracy) <= (0 if place.device.type == "meta" else 1.01 / 12), one.name


def test_distances_and_neighbours_are_the_cpus(place, started_alike):
    model, (images, labels) = rt.load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits")), digits(10)
    moved = copy.deepcopy(model).to(place.device)
    here, there = (smallest_epsilon(net, images, labels, FlipOptions(steps=5)).cpu() for net in (model, moved))
    torch.testing.assert_close(there, here, rtol=0.25, atol=0)
    pixels = (images * 255).byte()
    banks = [compute_features(net, Resident(pixels.to(device))) for net, device in ((model, "cpu"), (moved, place.device))]
    torch.testing.assert_close(banks[1].cpu(), banks[0], rtol=1e-3, atol=1e-4)
    assert knn_accuracy(banks[1], labels, banks[1], labels) == knn_accuracy(banks[0], labels, banks[0], labels)


@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recipes_are_the_cpus(command, forks, tmp_path, measured):
    """One after another, the last with a full report; on a GPU, ``benchmarks/on_a_gpu.sh train`` runs them."""
    data = ("--data.name", "digits", "--data.image_size", 16)
    short = ("--batch_size", 64, "--epochs", 1, "--max_steps", 3)
    judged = ("--model.name", "{}/pre", "--evaluation.steps", 2, "--evaluation.epsilons", "[0.02]")
    rows = {"pre": ("pretrain.py", *data, *short, "--model.name", "resnet8_cifar")}
    if measured:
        rows["ft"] = ("finetune.py", *data, *short, *judged, "--ema_decay", 0.9, "--ss_weight", 1)
        rows["r-le"] = ("linear_probe.py", *data, *short, *judged, "--robust", "true")
        rows["eval"] = ("evaluate.py", *data, "--model.name", "{}/ft", "--attacks", "fast", "--epsilon", "0.02", "--samples", 6, "--report", "full")
    for name, (recipe, *words) in rows.items():
        for where in ("here", "there"):
            filled = [str(word).format(where) for word in (*words, "--output_dir", f"{where}/{name}")]
            if where == "here":
                command(recipe, *filled, check=0)
                continue
            process = forks.Process(target=run_recipe, args=(str(tmp_path), [str(ROOT / "recipes" / recipe), *filled]))
            process.start()
            process.join(600)
            assert process.exitcode == 0, name
        here, there = (json.loads((tmp_path / where / name / "results.json").read_text()) for where in ("here", "there"))
        told = [[(e["name"], e.get("epsilon"), e["accuracy"]) for e in record["evaluations"]] for record in (here, there)]
        assert told[0] == told[1], name


def gradients(kind, compiled=False, precision=torch.float32):
    """The losses and the gradient of one step."""
    torch.manual_seed(0)
    objective = rocl(compile=compiled, shared_regularizer=True).to(kind).to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (16, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).to(kind)
    with torch.autocast(kind, precision, enabled=precision != torch.float32):
        losses = objective(Batch(images, None, (1, 2)))
    losses["loss"].backward()
    return torch.stack(list(losses.values())).detach(), torch.cat([p.grad.reshape(-1) for p in objective.parameters()])


@pytest.mark.parametrize(
    ("kind", "options", "least"),
    [
        pytest.param("cpu", {"compiled": True}, 0.98, marks=pytest.mark.slow, id="compiled-cpu"),  # kernels for a CPU take a compiler a minute
        pytest.param("cpu", {"precision": torch.bfloat16}, 0.9, id="bf16-cpu"),
        pytest.param("cuda", {"compiled": True}, 0.98, marks=pytest.mark.gpu, id="compiled-cuda"),
        pytest.param("cuda", {"precision": torch.bfloat16}, 0.9, marks=pytest.mark.gpu, id="bf16-cuda"),
    ],
)
def test_a_fast_step_is_near_the_exact_one(monkeypatch, kind, options, least):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    losses, gradient = gradients(kind)
    fast, found = gradients(kind, **options)
    assert not torch.equal(found, gradient)
    torch.testing.assert_close(fast, losses, rtol=2e-3, atol=0)
    assert nn.functional.cosine_similarity(found, gradient, dim=0) > least


@pytest.fixture
def quickly_compiled(monkeypatch):
    """Traced and guarded by torch.compile, but without kernels."""
    compiles = nn.Module.compile
    torch._dynamo.reset()
    torch._dynamo.utils.counters["stats"]["unique_graphs"] = 0
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiles(self, backend="eager", **options))


def test_each_number_of_images_has_kernels_of_its_own(quickly_compiled):
    objective = rocl(compile=True)
    for number in (8, 8, 6, 5, 6):
        losses = objective(Batch(torch.zeros(number, 3, SIZE, SIZE, dtype=torch.uint8), None, (1,)))
        losses["loss"].backward()
    # Of each number: the target, a step of the attack, the pair, all views; and nothing for the look at whether the folded network is the same.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3 * 4


def test_over_several_gpus_the_attacked_network_alone_is_compiled(quickly_compiled):
    objective = synchronised(rocl(compile=True))
    objective(Batch(torch.zeros(8, 3, SIZE, SIZE, dtype=torch.uint8), None, (1,)))["loss"].backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the target, a step of the attack


@pytest.mark.parametrize(
    ("kind", "autocast", "allowed", "generation", "word"),
    [
        ("cuda", "no", True, (9, 0), "tf32"), ("cuda", "no", True, (7, 0), "no"), ("cuda", "no", False, (9, 0), "no"),
        ("cuda", "bf16", True, (9, 0), "bf16"), ("cpu", "no", True, None, "no"),
    ],
)  # fmt: skip
def test_the_record_says_what_a_gpu_makes_of_float32(monkeypatch, kind, autocast, allowed, generation, word):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
    assert arithmetic(SimpleNamespace(mixed_precision=autocast, device=torch.device(kind))) == word


def test_a_gpu_is_hidden_from_tests_that_are_not_made_for_one():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "--gpu", "tests/test_device.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False).stdout.splitlines()
    names = [line for line in listed if "::" in line]
    assert any("test_views_are_the_cpus[gpu]" in name for name in names)
    assert any("test_a_fast_step" in name for name in names)
    assert all("gpu" in name or "cuda" in name for name in names)
    assert not any("stand-in" in name for name in names)
