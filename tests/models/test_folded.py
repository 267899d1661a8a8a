"""The network that attacks climb on says what the model says, now and after every step."""

import logging

import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from rocl_transfer.models import Folded, PixelModel, create_backbone, fold, hold_bf16, merge_lora, select_trainable
from rocl_transfer.models.backbone import add_head

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lived_in(name: str) -> PixelModel:
    """A backbone whose norms have seen something: at the start, folding changes nothing and could be wrong unseen."""
    torch.manual_seed(0)
    model = create_backbone(name, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def gradient(network: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    leaf = images.clone().requires_grad_(True)
    return torch.autograd.grad(network(leaf).square().sum(), leaf)[0]


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


@pytest.mark.parametrize("name", ["resnet8_cifar", "test_resnet", "test_efficientnet", "test_nfnet"])
def test_outputs_and_gradients_are_the_models(name):
    model, images = lived_in(name).double(), IMAGES.double()
    twin = Folded(model).current(images)
    model.eval()
    for mine, theirs in ((twin(images), model(images)), (gradient(twin, images), gradient(model, images))):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * theirs.abs().max().item())
    if norms(model):
        assert norms(twin) == 0


def test_a_network_without_batchnorm_is_attacked_itself():
    model = lived_in("test_vit")
    assert Folded(model).current(IMAGES) is model


def test_follows_training_and_leaves_the_model_alone():
    model = lived_in("resnet8_cifar").train()
    follower, before = Folded(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    follower.current(IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(IMAGES).square().mean().backward()  # moves the statistics as well
    optimizer.step()
    twin = follower.current(IMAGES)
    torch.testing.assert_close(twin(IMAGES), model.eval()(IMAGES), rtol=1e-3, atol=1e-5)


def test_follows_a_model_whose_norms_were_synchronised_since():
    model = lived_in("resnet8_cifar")
    follower = Folded(model)
    expected = model.eval()(IMAGES)
    convert_sync_batchnorm(model)
    torch.testing.assert_close(follower.current(IMAGES)(IMAGES), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8_cifar", "test_vit", "test_nfnet"])  # weights, transformers, weights standardised in every pass
def test_weights_held_in_bf16_are_what_autocast_makes_of_them(name):
    model = fold(lived_in(name)) if name == "resnet8_cifar" else lived_in(name).eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected, slope = model(IMAGES), gradient(model)
        hold_bf16(model)
        assert torch.equal(model(IMAGES), expected)
        assert torch.equal(gradient(model), slope)
    assert any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_under_autocast_attacks_see_weights_in_bf16_that_follow():
    model = lived_in("resnet8_cifar")
    follower = Folded(model)
    with torch.autocast("cpu", torch.bfloat16):
        twin = follower.current(IMAGES)
        assert {parameter.dtype for parameter in twin.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        torch.testing.assert_close(follower.current(IMAGES)(IMAGES).float(), fold(model)(IMAGES).float(), rtol=0, atol=0)


def test_low_rank_additions_are_part_of_the_function():
    model = add_head(lived_in("test_resnet"), ["a", "b"])
    select_trainable(model, "lora", 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("up"):
                nn.init.normal_(parameter, std=0.1)
    twin = Folded(model).current(IMAGES)
    found = twin(IMAGES)
    torch.testing.assert_close(found, model.eval()(IMAGES), rtol=1e-3, atol=1e-5)
    merge_lora(model)
    torch.testing.assert_close(fold(model)(IMAGES), found, rtol=1e-3, atol=1e-4)


class Branching(nn.Module):
    """Which way it goes depends on the images, which a trace cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images) if images.sum() > 0 else -self.body(images)


class ModeBlind(nn.Sequential):
    """Forgets about eval mode, so that folding changes what it says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch._assert(images.ndim == 4, "a batch")
        return self[1](self[0](images)).flatten(1)


@pytest.mark.parametrize(("network", "why"), [(Branching(), "traced"), (ModeBlind(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "differ by")])
def test_what_cannot_be_folded_is_attacked_itself_and_said(network, why, caplog):
    if isinstance(network, ModeBlind):
        network[1].eval = lambda: network[1]
        network[1].train = lambda mode=True: network[1]
        network[1].__dict__["training"] = True
    with caplog.at_level(logging.INFO, "rocl_transfer"):
        assert Folded(network).current(IMAGES) is network
    assert "attacks continue with BatchNorm apart" in caplog.text
    assert why in caplog.text
