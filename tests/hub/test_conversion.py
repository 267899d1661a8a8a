"""Checkpoints written in each project's layout, from random weights and statistics: the export gives what an independent model gave.

The models are defined here from the layouts alone, or are torchvision's; nothing of timm's is used to make them.
"""

import json
import os
import pickle
import subprocess
import sys
from argparse import Namespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from rocl_transfer import UserError, load_backbone, load_classifier
from rocl_transfer.hub import export
from rocl_transfer.hub.conversion import ConversionOptions, check_folder, convert
from rocl_transfer.hub.conversion.families import translate
from rocl_transfer.hub.conversion.matching import find

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR = ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])


def norm_part(images, mean, std):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def shake(net, seed=0):
    """Random weights, and random statistics: an exchanged BatchNorm would not go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            ranges = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.5, 2)}
            for name, (low, high) in ranges.items():
                getattr(module, name).data.uniform_(low, high, generator=generator)
            module.num_batches_tracked.fill_(7)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
    return net.eval()


class Block(nn.Module):
    """A block as in kuangliu's CIFAR ResNets, which RoCL, MadryLab and RobustBench took over."""

    def __init__(self, wide, planes, stride, bottleneck):
        super().__init__()
        out = planes * (4 if bottleneck else 1)
        kernels = (
            ((1, wide, planes, 1), (3, planes, planes, stride), (1, planes, out, 1))
            if bottleneck
            else ((3, wide, planes, stride), (3, planes, planes, 1))
        )
        self.depth = len(kernels)
        for i, (kernel, source, target, step) in enumerate(kernels, 1):
            setattr(self, f"conv{i}", nn.Conv2d(source, target, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(target))
        self.shortcut = nn.Sequential()
        if stride != 1 or wide != out:
            self.shortcut = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        return F.relu(y + self.shortcut(x))


class Kuangliu(nn.Module):
    """By default as small as ``resnet8_cifar``."""

    def __init__(self, blocks=(1, 1, 1), widths=(16, 32, 64), bottleneck=False, classes=0):
        super().__init__()
        wide = widths[0]
        self.conv1, self.bn1, self.stages = nn.Conv2d(3, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide), len(blocks)
        for i, (count, planes) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for j in range(count):
                stage.append(Block(wide, planes, 2 if i and not j else 1, bottleneck))
                wide = planes * (4 if bottleneck else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        if classes:
            self.linear = nn.Linear(wide, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        x = x.mean((2, 3))
        return self.linear(x) if hasattr(self, "linear") else x


R18 = {"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512)}
R50 = {"blocks": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "bottleneck": True}


class OptionA(nn.Module):
    """Every other pixel, zeros on both sides of the channels."""

    def forward(self, x):
        zeros = torch.zeros(len(x), x.shape[1] // 2, *x[:, :, ::2, ::2].shape[2:])
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)


class TwoNorms(nn.Module):
    def __init__(self, width, kind=nn.BatchNorm2d):
        super().__init__()
        self.bn_list = nn.ModuleList([kind(width), kind(width)])


class ACLBlock(nn.Module):
    def __init__(self, wide, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide, planes, 3, stride, 1, bias=False), TwoNorms(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), TwoNorms(planes)
        if stride != 1:
            self.downsample = nn.Module()
            self.downsample.conv, self.downsample.bn = nn.Conv2d(wide, planes, 1, stride, bias=False), TwoNorms(planes)

    def forward(self, x, which):
        y = F.relu(self.bn1.bn_list[which](self.conv1(x)))
        y = self.bn2.bn_list[which](self.conv2(y))
        return F.relu(y + (self.downsample.bn.bn_list[which](self.downsample.conv(x)) if hasattr(self, "downsample") else x))


class ACL(nn.Module):
    """ACL's ResNet: two sets of statistics, ImageNet's normalisation in buffers, a projector in the place of the head."""

    def __init__(self, blocks=(1, 1, 1), widths=(16, 32, 64)):
        super().__init__()
        self.normalize = nn.Module()
        for name, value in zip(("mean", "std"), IMAGENET, strict=True):
            self.normalize.register_buffer(name, torch.tensor(value))
        wide = widths[0]
        self.conv1, self.bn1, self.stages = nn.Conv2d(3, wide, 3, 1, 1, bias=False), TwoNorms(wide), len(blocks)
        for i, (count, planes) in enumerate(zip(blocks, widths, strict=True)):
            rest = [ACLBlock(planes, planes, 1) for _ in range(count - 1)]
            setattr(self, f"layer{i + 1}", nn.ModuleList([ACLBlock(wide, planes, 2 if i else 1), *rest]))
            wide = planes
        self.fc = nn.Module()
        self.fc.fc1, self.fc.bn1, self.fc.fc2 = nn.Linear(wide, wide), TwoNorms(wide, nn.BatchNorm1d), nn.Linear(wide, wide, bias=False)

    def forward(self, x, which):
        x = F.relu(self.bn1.bn_list[which](self.conv1(norm_part(x, *IMAGENET))))
        for i in range(1, self.stages + 1):
            for block in getattr(self, f"layer{i}"):
                x = block(x, which)
        return x.mean((2, 3))


class Madry(nn.Module):
    """MadryLab's AttackerModel: the network twice, its normalisation twice."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.normalizer, self.attacker = nn.Module(), nn.Module()
        self.attacker.normalize = nn.Module()
        for part in (self.normalizer, self.attacker.normalize):
            part.register_buffer("new_mean", torch.tensor(mean)[..., None, None])
            part.register_buffer("new_std", torch.tensor(std)[..., None, None])
        self.model = self.attacker.model = net


def solo(seed=0, stem=2):
    """torchvision's ResNet-18 as solo-learn makes it for CIFAR."""
    net = torchvision.models.resnet18()
    net.conv1, net.maxpool, net.fc = nn.Conv2d(3, 64, 3, 1, stem, bias=False), nn.Identity(), nn.Identity()
    return shake(net, seed)


TRAINED = shake(Kuangliu(**R18, classes=3)).state_dict()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def rocl_file(net, **more):
    state = prefixed("module.", net.state_dict())
    return {"epoch": 999, "acc": torch.tensor(3.1), "model": state, "optimizer_state": {"state": {0: {"momentum_buffer": torch.rand(3)}}},
            "rng_state": torch.get_rng_state(), **more}  # fmt: skip


def exported(content, folder, wishes=None, writer=torch.save, **options):
    """A checkpoint through the converter and back from the folder it wrote: conversion, model and what config.json says."""
    file = folder / "weights.ckpt"
    writer(content, file, **options)
    conversion = convert(file, wishes)
    out = folder / "out"
    out.mkdir()
    export(conversion.model, out, {"converted_from": dict(conversion.facts)}, conversion.projector)
    facts = json.loads((out / "config.json").read_text())["rocl_transfer"]["converted_from"]
    name = str(out)
    return conversion, (load_classifier(name) if conversion.model.class_names else load_backbone(name)), facts


def same(model, images, expected):
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("form", "name"), [(R18, "resnet18_cifar"), (R50, "resnet50_cifar")])
def test_a_checkpoint_of_rocl_converts(tmp_path, form, name):
    net = shake(Kuangliu(**form))
    conversion, model, facts = exported(rocl_file(net), tmp_path)
    assert (model.architecture, model.input_size, model.mean, model.std) == (name, 32, (0, 0, 0), (1, 1, 1))
    same(model, IMAGES, net(IMAGES))
    same(timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval(), IMAGES, net(IMAGES))
    assert (facts["family"], facts["copy"]) == ("rocl", "model.module")
    assert facts["left_out"] == {"acc": 1, "optimizer_state": "training state", "rng_state": "training state"}
    assert conversion.mapping["model.module.layer2.0.shortcut.1.running_mean"] == "layer2.0.downsample.1.running_mean"
    assert len(facts["sha256"]) == 64
    assert facts["file"] == "weights.ckpt"


def test_rocl_with_its_head_and_projector(tmp_path):
    net, head = shake(Kuangliu(**R18)), nn.Sequential(nn.Linear(512, 10))
    projector = nn.ModuleDict({"linear_1": nn.Linear(512, 2048), "linear_2": nn.Linear(2048, 128)})
    torch.save(rocl_file(head), tmp_path / "head")
    torch.save(rocl_file(projector), tmp_path / "projector")
    names = [f"class {i}" for i in range(10)]
    wishes = ConversionOptions(head=str(tmp_path / "head"), projector=str(tmp_path / "projector"), label_names=names)
    _, model, facts = exported(rocl_file(net), tmp_path, wishes)
    same(model, IMAGES, head(net(IMAGES)))
    assert list(model.class_names) == names
    assert facts["head"].startswith("head, sha256 ")
    assert facts["projector"].startswith("projector, sha256 ")
    ours = load_file(tmp_path / "out" / "projector.safetensors")
    features = torch.rand(3, 512)
    expected = projector["linear_2"](projector["linear_1"](features).relu())
    torch.testing.assert_close(F.linear(F.linear(features, ours["0.weight"], ours["0.bias"]).relu(), ours["2.weight"], ours["2.bias"]), expected)


@pytest.mark.parametrize(("bn", "which", "form"), [(None, 1, R18), ("adversarial", 1, {}), ("clean", 0, {})])
def test_acl_takes_the_set_it_says(tmp_path, bn, which, form):
    net = shake(ACL(**form))
    content = {"epoch": 1000, "state_dict": net.state_dict(), "optim": {"state": {}}, "acc": 70.1}
    conversion, model, facts = exported(content, tmp_path, ConversionOptions(bn=bn))
    same(model, IMAGES, net(IMAGES, which))
    assert facts["family"] == "acl"
    assert facts["batch_norm"] == {"taken": ("clean", "adversarial")[which], "sets": 2}
    assert facts["normalization"] == "in the file (state_dict.normalize.mean, state_dict.normalize.std)"
    assert torch.tensor(model.mean).allclose(torch.tensor(IMAGENET[0]))
    assert conversion.projector is None
    assert facts["projector"].startswith("state_dict.fc: left out")
    assert facts["left_out"]["the other set of BatchNorm statistics"] == 5 * ((20 if form else 9) + 1)  # the projector's too
    assert any("BatchNorm" in note for note in conversion.notes)


def test_acl_before_its_lists(tmp_path):
    net = shake(ACL())
    state = {}
    for name, tensor in net.state_dict().items():
        state[name.replace(".bn_list.0.", ".").replace(".bn_list.1.", "_adv.")] = tensor
    assert "layer2.0.downsample.bn_adv.weight" in state
    for bn, which in (("adversarial", 1), ("clean", 0)):
        (tmp_path / bn).mkdir()
        _, model, _ = exported(state, tmp_path / bn, ConversionOptions(bn=bn))
        same(model, IMAGES, net(IMAGES, which))


def test_dynacl_takes_its_average(tmp_path):
    query, key = shake(ACL(), 1), shake(ACL(), 2)
    content = {"epoch": 1000, "state_dict": {**prefixed("encoder_q.", query.state_dict()), **prefixed("encoder_k.", key.state_dict())}}
    conversion, model, facts = exported(content, tmp_path)
    same(model, IMAGES, key(IMAGES, 1))
    assert (facts["copy"], facts["averaged"], facts["other_copies"]) == ("state_dict.encoder_k", True, ["state_dict.encoder_q"])
    assert any("--copy" in note for note in conversion.notes)
    same(convert(tmp_path / "weights.ckpt", ConversionOptions(copy="encoder_q", bn="clean")).model, IMAGES, query(IMAGES, 0))


@pytest.mark.parametrize("legacy", [False, True])
def test_madrylab(tmp_path, legacy):
    dill = pytest.importorskip("dill")
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    net = shake(Kuangliu(classes=10))
    wrapped = Madry(net, mean, std)
    wrapped.attacker.normalize.new_std *= 2  # the attack's own, and not the network's
    content = {
        "model": prefixed("module.", wrapped.state_dict()),
        "optimizer": {"state": {}},
        "schedule": None,
        "epoch": 150,
        "amp": "N/A",
    }
    _, model, facts = exported(content, tmp_path, None, torch.save, pickle_module=dill, _use_new_zipfile_serialization=not legacy)
    assert facts["family"] == "robustness"
    assert facts["copy"] == "model.module.model"
    assert model.std == pytest.approx(std)
    same(model, IMAGES, net(norm_part(IMAGES, mean, std)))
    assert len(model.class_names) == 10


def test_madrylab_imagenet(tmp_path):
    net = shake(torchvision.models.resnet34(num_classes=7))
    images = torch.rand(1, 3, 64, 64)
    _, model, _ = exported({"model": prefixed("module.", Madry(net, *IMAGENET).state_dict())}, tmp_path, ConversionOptions(image_size=64))
    assert (model.architecture, model.input_size) == ("resnet34", 64)
    same(model, images, net(norm_part(images, *IMAGENET)))


@pytest.mark.parametrize(("part", "classes"), [("backbone", 10), ("encoder", 100)])
def test_a_checkpoint_of_solo_learn_converts(tmp_path, part, classes):
    net, classifier, projector = solo(1), nn.Linear(512, classes), nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 128))
    parts = {part: net, "classifier": classifier, "projector": projector, f"momentum_{part}": solo(2), "momentum_projector": projector}
    state = {f"{place}.{name}": tensor for place, module in parts.items() for name, tensor in module.state_dict().items()}
    state |= {"queue": torch.rand(2, 128, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    content = {"pytorch-lightning_version": "1.6.4", "epoch": 999, "callbacks": {"x": {"best": 1}}, "lr_schedulers": [], "state_dict": state}
    conversion, model, facts = exported(content, tmp_path)
    mean, std = ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]) if classes == 100 else (CIFAR[0], [0.2470, 0.2435, 0.2616])
    same(model, IMAGES, classifier(net(norm_part(IMAGES, mean, std))))
    assert (model.architecture, facts["family"], facts["copy"]) == ("resnet18_cifar_pad2", "solo-learn", f"state_dict.{part}")
    assert facts["normalization"] == "assumed for solo-learn"
    assert any("pads by 2" in note for note in conversion.notes)
    assert facts["left_out"][f"state_dict.momentum_{part}"] == 120
    torch.testing.assert_close(load_file(tmp_path / "out" / "projector.safetensors")["2.weight"], projector[2].weight.data)
    wishes = ConversionOptions(head="none", mean=(0.0,) * 3, std=(1.0,) * 3)
    backbone = convert(tmp_path / "weights.ckpt", wishes)
    same(backbone.model, IMAGES, net(IMAGES))
    assert backbone.facts["normalization"] == "given"


def test_deacl_takes_the_student(tmp_path):
    net, teacher, classifier = solo(1), solo(2), nn.Linear(512, 10)
    for part in (net, teacher):
        part.normalize = nn.Module()
        part.normalize.register_buffer("mean", torch.tensor(CIFAR[0]))
        part.normalize.register_buffer("std", torch.tensor(CIFAR[1]))
    state = {
        **prefixed("backbone.", net.state_dict()), **prefixed("momentum_backbone.", teacher.state_dict()),
        **prefixed("classifier.", classifier.state_dict()), **prefixed("classifier_adv.", nn.Linear(512, 10).state_dict()),
    }  # fmt: skip
    _, model, facts = exported({"state_dict": state}, tmp_path)
    assert facts["family"] == "deacl"
    same(model, IMAGES, classifier(net(norm_part(IMAGES, *CIFAR))))
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.normalize")}
    torch.save(bare, tmp_path / "bare")
    same(convert(tmp_path / "bare").model, IMAGES, classifier(net(IMAGES)))  # the teacher's mean and std are its own


def test_deacl_after_its_linear_evaluation(tmp_path):
    net, classifier = shake(Kuangliu()), nn.Linear(64, 10)
    buffers = {"normalize.mean": torch.tensor(CIFAR[0]), "normalize.std": torch.tensor(CIFAR[1])}
    classified = prefixed("classifier.", classifier.state_dict())
    _, model, _ = exported(
        {"model": {**buffers, **net.state_dict()}, "classifier": classified, "epoch": 25, "rng_state": torch.get_rng_state()}, tmp_path
    )
    same(model, IMAGES, classifier(net(norm_part(IMAGES, *CIFAR))))


def test_robustbench_with_its_normalisation_in_buffers(tmp_path):
    net = shake(Kuangliu(classes=10))
    buffers = {"mu": torch.tensor(CIFAR[0]).view(1, 3, 1, 1), "sigma": torch.tensor(CIFAR[1]).view(1, 3, 1, 1)}
    _, model, facts = exported(
        {"last": {**buffers, **net.state_dict()}, "best": {**buffers, **shake(Kuangliu(classes=10), 5).state_dict()}}, tmp_path
    )
    same(model, IMAGES, net(norm_part(IMAGES, *CIFAR)))
    assert (facts["family"], facts["copy"]) == ("robustbench", "last")


def test_a_wrapped_model_of_robustbench_converts(tmp_path):
    net = shake(torchvision.models.resnet18(num_classes=5))
    state = {"normalize.mean": torch.tensor(IMAGENET[0]).view(1, 3, 1, 1), "normalize.std": torch.tensor(IMAGENET[1]).view(1, 3, 1, 1)}
    content = {"mean": torch.zeros(3), "std": torch.ones(3), "state_dict": {**state, **prefixed("model.", net.state_dict())}}
    _, model, _ = exported(content, tmp_path, ConversionOptions(image_size=64))  # the nearer mean and std are the network's
    images = torch.rand(1, 3, 64, 64)
    same(model, images, net(norm_part(images, *IMAGENET)))


@pytest.mark.parametrize(("name", "size"), [("resnet18", None), ("resnext50_32x4d", 64)])
def test_weights_of_torchvision_convert(tmp_path, name, size):
    net = shake(getattr(torchvision.models, name)(num_classes=6))
    images = torch.rand(1, 3, 64, 64)
    _, model, facts = exported(net.state_dict(), tmp_path, ConversionOptions(image_size=size))
    assert (model.architecture, model.input_size, facts["copy"], facts["family"]) == (name, size or 224, "", "torchvision")
    same(model, images, net(norm_part(images, *IMAGENET)))
    if size is not None:
        without = convert(tmp_path / "weights.ckpt", ConversionOptions(image_size=size, head="none"))
        assert (without.model.class_names, without.facts["projector"], without.facts["left_out"]) == ((), None, {"fc": 2})


NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d")


@pytest.mark.parametrize("name", NAMES)
def test_the_architecture_is_read_off_the_shapes(name):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    (fit,) = find(state, translate(state, None), None, None)
    assert (fit.architecture, fit.place, fit.missing) == (name, "", ())
    assert fit.unused == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("wrapping", ["module.", "_orig_mod.", "model._orig_mod.module.", "encoder.backbone.", "0."])
def test_prefixes_counters_half_precision_and_safetensors(tmp_path, wrapping):
    net = shake(Kuangliu(classes=6)).half().float()
    state = {name: tensor.half() for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(prefixed(wrapping, state), tmp_path / "weights.safetensors")
    model = convert(tmp_path / "weights.safetensors").model
    assert model.architecture == "resnet8_cifar"
    same(model, IMAGES, net(IMAGES))
    assert next(model.parameters()).dtype == torch.float32


def test_the_averaged_copy_of_a_checkpoint_is_preferred(tmp_path):
    trained, averaged = shake(Kuangliu(classes=4), 1), shake(Kuangliu(classes=4), 2)
    content = {"state_dict": trained.state_dict(), "state_dict_ema": {"n_averaged": torch.tensor(9), **prefixed("module.", averaged.state_dict())}}
    _, model, facts = exported(content, tmp_path)
    same(model, IMAGES, averaged(IMAGES))
    assert facts["averaged"]
    assert facts["other_copies"] == ["state_dict"]
    same(convert(tmp_path / "weights.ckpt", ConversionOptions(copy="state_dict")).model, IMAGES, trained(IMAGES))
    root = {**trained.state_dict(), "ema": averaged.state_dict()}
    (tmp_path / "root").mkdir()
    _, model, _ = exported(root, tmp_path / "root")
    same(model, IMAGES, averaged(IMAGES))
    same(convert(tmp_path / "root" / "weights.ckpt", ConversionOptions(copy=".")).model, IMAGES, trained(IMAGES))
    torch.save({"student": trained.state_dict(), "teacher": averaged.state_dict()}, tmp_path / "two")
    with pytest.raises(UserError, match=r"2 different networks: choose one with --copy \(student, teacher\)"):
        convert(tmp_path / "two")


def test_any_timm_network_by_name(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=4, img_size=32).eval()
    _, model, facts = exported(prefixed("model.", net.state_dict()), tmp_path, ConversionOptions(architecture="test_vit", image_size=32))
    same(model, IMAGES, net(norm_part(IMAGES, [0.5] * 3, [0.5] * 3)))
    assert (facts["family"], model.input_size) == ("timm", 32)


@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_thin_resnets_with_either_shortcut(tmp_path, depth, option):
    net = Kuangliu(blocks=((depth - 2) // 6,) * 3, classes=10)
    if option == "A":
        net.layer2[0].shortcut = net.layer3[0].shortcut = OptionA()
    net = shake(net)
    content = {"best_prec1": 91.7, "state_dict": prefixed("module.", net.state_dict())}
    wishes = ConversionOptions(mean=tuple(IMAGENET[0]), std=tuple(IMAGENET[1]))
    conversion, model, _ = exported(content, tmp_path, wishes)
    assert (model.architecture, model.input_size) == (f"resnet{depth}{'' if option == 'A' else 'b'}_cifar", 32)
    with torch.no_grad():
        expected = net.double()(norm_part(IMAGES.double(), *IMAGENET))
        torch.testing.assert_close(model.double()(IMAGES.double()), expected, atol=1e-6, rtol=1e-5)
    assert any("shortcuts without parameters" in note for note in conversion.notes) == (option == "A")


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def raw(content, path, **options):
    path.write_bytes(pickle.dumps(content, **options))


MALICE = {
    "zip": (torch.save, {}, "posix.system"),
    "legacy": (torch.save, {"_use_new_zipfile_serialization": False}, "posix.system"),
    "zip, protocol 4": (torch.save, {"pickle_protocol": 4}, "posix.system"),
    "pickle": (raw, {"protocol": 2}, "posix.system"),
    "pickle, protocol 4": (raw, {"protocol": 4}, "posix.system"),
}


@pytest.mark.parametrize("door", ["checkpoint", "head", "projector"])
@pytest.mark.parametrize("malice", MALICE)
def test_a_malicious_pickle_never_runs_and_is_named(tmp_path, malice, door, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # under which torch.load unpickles what it is not forbidden to
    writer, options, name = MALICE[malice]
    bad, good, marker = tmp_path / "bad.pt", tmp_path / "good.pt", tmp_path / "MARKER"
    writer({"model": {"conv1.weight": torch.rand(3, 3)}, "extra": Marker(marker)}, bad, **options)
    torch.save({"conv1.weight": torch.rand(3, 3)}, good)
    with pytest.raises(UserError) as caught:
        convert(bad if door == "checkpoint" else good, ConversionOptions(**({} if door == "checkpoint" else {door: str(bad)})))
    assert not marker.exists()
    assert name in str(caught.value)
    assert str(caught.value).startswith(f"{bad} is refused")
    assert "python -c" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_library_allowed_is_not_allowed_here(tmp_path):
    torch.save({"model": {}, "options": Namespace(a=1)}, tmp_path / "c.pt")
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([Namespace]):
        with pytest.raises(UserError, match=r"argparse\.Namespace"):
            convert(tmp_path / "c.pt")
        assert Namespace in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_the_code_that_a_refusal_proposes_makes_the_file_convertible(tmp_path):
    net = shake(Kuangliu())
    torch.save({"model": net.state_dict(), "args": Marker("nowhere/at/all"), "best": 1}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"is refused.*python -c") as caught:
        convert(tmp_path / "c.pt")
    code = str(caught.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    same(convert(tmp_path / "weights.pt").model, IMAGES, net(IMAGES))


def change(state, /, **changes):
    state = dict(state)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


WRONG = {
    "a key too many": (lambda s: change(s, layer9__weight=torch.rand(3)), {}, r"resnet18_cifar has no place for layer9\.weight: .*--drop \[layer9\]"),
    "a part of another block": (lambda s: change(s, layer1__0__se__fc__weight=torch.rand(3)), {}, r"has no place for layer1\.0\.se\.fc\.weight"),
    "a key too few": (lambda s: change(s, layer4__1__bn2__running_var=None), {}, r"lacks layer4\.1\.bn2\.running_var in the file"),
    "another shape": (lambda s: change(s, layer4__1__bn2__running_var=torch.rand(3)), {}, r"lacks layer4\.1\.bn2\.running_var in the file"),
    "weights that died": (lambda s: change(s, bn1__weight=torch.full((64,), float("nan"))), {}, r"bn1\.weight holds values that are not finite"),
    "another network": (lambda s: {"a.weight": torch.rand(3, 3)}, {}, "nothing in the file like a ResNet .* --architecture"),
    "another architecture": (lambda s: s, {"architecture": "resnet50"}, "nothing in the file like resnet50"),
    "no such architecture": (
        lambda s: s,
        {"architecture": "resnet18_cifr"},
        "timm has no architecture 'resnet18_cifr'; did you mean 'resnet18_cifar'",
    ),
    "a size it cannot have": (
        lambda s: s,
        {"architecture": "xcit_nano_12_p16_224", "image_size": 33},
        "timm cannot build xcit_nano_12_p16_224 for images of 33 px",
    ),
    "no such family": (lambda s: s, {"family": "rcol"}, "there is no family 'rcol'; did you mean 'rocl'"),
    "a sparse weight": (lambda s: change(s, bn1__bias=torch.zeros(64).to_sparse()), {}, r"lacks bn1\.bias in the file"),
    "no such copy": (lambda s: s, {"copy": "ema"}, "not have exactly one network at ema"),
    "one set of statistics": (lambda s: s, {"bn": "clean"}, "--bn clean has no effect"),
    "names without head": (lambda s: s, {"label_names": ["a"], "head": "none"}, "--label_names has no effect"),
    "names too few": (lambda s: s, {"label_names": ["a"]}, "names 1 classes, the head has 3"),
    "no mean and std": (lambda s: s, {"family": "robustness"}, "no mean and std, which robustness keeps in its files: give --mean and --std"),
    "a std of nothing": (lambda s: change(s, mu=torch.zeros(3), sigma=torch.zeros(3)), {}, "which cannot be the mean and std of pixels"),
    "a stem that may pad": (
        lambda s: prefixed("backbone.", {k.replace("shortcut", "downsample"): v for k, v in s.items()}),
        {},
        "--family solo-learn or --family timm",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_sentence(tmp_path, case):
    spoil, wishes, words = WRONG[case]
    torch.save(spoil(TRAINED), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=words) as caught:
        convert(tmp_path / "weights.pt", ConversionOptions(**wishes))
    assert str(caught.value).startswith(str(tmp_path / "weights.pt"))
    if case == "a key too many":
        convert(tmp_path / "weights.pt", ConversionOptions(drop=["layer9"]))


def test_files_that_are_no_checkpoints(tmp_path):
    state = shake(Kuangliu()).state_dict()
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "whole.safetensors")
    for name in ("zip.pt", "legacy.pt", "whole.safetensors"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"half-{name}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "text.pt").write_text("hello world\n")
    torch.save({"epoch": 3, "names": ["a"]}, tmp_path / "nothing.pt")
    loop = {}
    loop["self"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    cases = {
        "nowhere.pt": "there is no file",
        "": "is a folder",
        "half-zip.pt": "damaged or incomplete",
        "half-legacy.pt": "damaged or incomplete",
        "half-whole.safetensors": "is not a complete safetensors file",
        "empty.pt": "is empty",
        "page.pt": "is a web page",
        "text.pt": "is not a checkpoint",
        "nothing.pt": "holds no named tensors",
        "loop.pt": "holds no named tensors",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            convert(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_numpy_in_a_pickle_is_named(tmp_path):
    numpy = pytest.importorskip("numpy")
    torch.save({"model": {}, "best": numpy.float64(3)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"numpy\._core\.multiarray\.scalar.*weights_only=False"):
        convert(tmp_path / "c.pt")


def test_nothing_is_written_over(tmp_path):
    exported(solo(stem=1).state_dict(), tmp_path)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        check_folder(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
