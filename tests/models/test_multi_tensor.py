"""Many tensors in few calls are, bit for bit, what a call for each is: NaN, signed zeros, odd layouts and types that are no floats among them."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rocl_transfer.models import create_backbone
from rocl_transfer.models.folded import _follow, _without_norms, hold_bf16
from rocl_transfer.models.multi_tensor import choose, copies, put
from tests.support.elsewhere import DEVICE, elsewhere


def tensors(seed):
    draw = torch.Generator().manual_seed(seed)
    plain = torch.randn(5, 3, 4, 4, generator=draw)
    odd = plain.clone()
    odd.view(-1)[:6] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-42])
    return [
        plain, odd.flip(0).to(memory_format=torch.channels_last), torch.randn(7, generator=draw).double(),
        torch.randn(3, generator=draw).bfloat16(), torch.tensor(seed), torch.tensor([True, False, bool(seed)]),
        nn.Parameter(torch.randn(2, generator=draw)), torch.randn(6, 4, generator=draw).T,
    ]  # fmt: skip


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8) if tensor.dim() else tensor.detach().reshape(1).view(torch.uint8)


def same(found, wanted):
    return all(a.dtype == b.dtype and torch.equal(bits(a), bits(b)) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("place", ["cpu", "elsewhere"])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("copied", [True, False], ids=["of copies", "of tensors"])
def test_the_device_chooses_bit_by_bit(place, held, copied):
    with elsewhere() if place == "elsewhere" else contextlib.nullcontext() as opened:
        device = DEVICE if opened else torch.device("cpu")
        new, old = ([tensor.detach().to(device) for tensor in tensors(seed)] for seed in (0, 1))
        layouts = [tensor.stride() for tensor in new]
        condition, before = torch.tensor(held).to(device), len(opened.waits) if opened else 0
        others = copies(old) if copied else [tensor.clone() for tensor in old]
        choose(condition, new, others)
        assert [tensor.stride() for tensor in new] == layouts
        assert opened is None or opened.waits[before:] == []
        assert same([tensor.cpu() for tensor in new], tensors(0 if held else 1))


@pytest.mark.parametrize("held", [True, False])
def test_without_others_what_is_not_chosen_is_zero(held):
    found = tensors(0)
    choose(torch.tensor(held), found)
    assert same(found, tensors(0) if held else [torch.zeros_like(tensor) for tensor in tensors(0)])


def test_values_are_put_into_other_layouts_and_types():
    sources = [torch.randn(4, 3, 2, 2), torch.randn(9), torch.arange(3), nn.Parameter(torch.randn(2))]
    targets = [torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.empty(9, dtype=torch.bfloat16), torch.zeros(3), torch.empty(2)]
    put(targets, sources)
    assert same(targets, [source.detach().to(target.dtype) for source, target in zip(sources, targets, strict=True)])


@pytest.mark.parametrize("name", ["resnet8_cifar", "test_resnet", "test_efficientnet", "unaffine"])
@pytest.mark.parametrize("rough", [False, True], ids=["float32", "held in bf16"])
def test_folding_all_layers_at_once_is_folding_each(name, rough):
    torch.manual_seed(0)
    if name == "unaffine":  # what torch's fuse takes for ones and zeros; and a convolution with a bias of its own
        last = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), *last)
    else:
        model = create_backbone(name, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, -0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
    twin, pairs = _without_norms(model)
    if rough:
        hold_bf16(twin)
    _follow(model, twin, pairs)
    assert pairs
    for convolution, norm in pairs.items():
        layer, behind, found = model.get_submodule(convolution), model.get_submodule(norm), twin.get_submodule(convolution)
        mean, variance = behind.running_mean, behind.running_var
        weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, mean, variance, behind.eps, behind.weight, behind.bias)
        assert same([found.weight, found.bias], [weight.to(found.weight.dtype), bias.to(found.bias.dtype)]), convolution
