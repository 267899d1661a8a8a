"""What trains, and that low-rank additions vanish into the weights."""

import copy

import pytest
import torch

from rocl_transfer import UserError
from rocl_transfer.models import add_head, create_backbone, family, merge_lora, select_trainable

FAMILIES = {
    "test_resnet": "batchnorm", "test_efficientnet": "batchnorm", "test_byobnet": "batchnorm", "resnet8_cifar": "batchnorm",
    "test_convnext": "plain", "test_nfnet": "plain", "test_vit": "attention",
}  # fmt: skip


def classifier(name):
    torch.manual_seed(0)
    return add_head(create_backbone(name, 32), "abc").eval()


def training(model):
    return {name for name, parameter in model.net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_trains_of_every_family_grows_from_head_to_all(name):
    model = classifier(name)
    assert family(model.net) == FAMILIES[name]
    head = {n for n, p in model.net.named_parameters() if any(p is q for q in model.head.parameters())}
    everything = {n for n, _ in model.net.named_parameters()}
    parts = {}
    for what in ("all", "head", "last-1", "last-2") + (("norm",) if name != "test_nfnet" else ()):
        select_trainable(model, what)
        parts[what] = training(model)
        assert head <= parts[what]
    assert parts["all"] == everything
    assert parts["head"] == head
    assert head < parts["last-1"] < parts["last-2"] < everything
    assert any(model.net.get_parameter(n).dim() > 1 for n in parts["last-1"] - head)
    if name == "test_nfnet":
        with pytest.raises(UserError, match="--train norm: test_nfnet has no normalisation layers"):
            select_trainable(model, "norm")
    else:
        assert parts["norm"] > head
        assert all(model.net.get_parameter(n).dim() == 1 for n in parts["norm"] - head)


def test_the_last_stage_of_a_resnet_is_layer_3():
    model = classifier("resnet8_cifar")
    select_trainable(model, "last-1")
    assert {name.split(".")[0] for name in training(model)} == {"layer3", "fc"}
    with pytest.raises(UserError, match=r"has 4 stages; give last-1 to last-4, or all"):
        select_trainable(model, "last-9")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_low_rank_additions_start_at_zero_train_and_merge(name):
    model = classifier(name).double()  # merged weights are sums that float32 rounds
    images = torch.rand(4, 3, 32, 32).double()
    with torch.no_grad():
        before, plain = model(images), set(model.net.state_dict())
        select_trainable(model, "lora", lora_rank=2)
        torch.testing.assert_close(model(images), before)
    names = training(model)
    head = {id(p) for p in model.head.parameters()}
    assert all(".parametrizations." in n or id(model.net.get_parameter(n)) in head for n in names)
    assert sum(model.net.get_parameter(n).numel() for n in names) < sum(p.numel() for p in model.parameters()) / 4
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    with torch.no_grad():
        trained, twin = model(images), copy.deepcopy(model)
        merge_lora(model)
        torch.testing.assert_close(model(images), trained)
        assert torch.equal(twin(images), trained)  # a copy is left alone
    assert not torch.allclose(trained, before, atol=1e-3)
    assert set(model.net.state_dict()) == plain
