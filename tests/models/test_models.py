import pytest
import timm
import torch

from rocl_transfer import UserError
from rocl_transfer.models import PixelModel, add_head, create_backbone, projector

FAMILIES = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet", "test_byobnet", "test_nfnet", "resnet8_cifar"]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "parameters", "width"), [("resnet18_cifar", 11_168_832, 512), ("resnet50_cifar", 23_500_352, 2048)])
def test_parameter_counts_of_the_paper(name, parameters, width):
    net = timm.create_model(name, num_classes=0)
    assert count(net) == parameters
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, width)


def test_projector_of_the_paper():
    assert count(projector(512)) == 1_312_896
    assert projector(512)(torch.rand(2, 512)).shape == (2, 128)


def test_small_stem_keeps_the_resolution_and_starts_as_pytorch_does():
    net = timm.create_model("resnet18_cifar", num_classes=0)
    assert net.layer1(net.maxpool(net.conv1(torch.rand(1, 3, 32, 32)))).shape[-1] == 32
    assert all(module.weight.eq(1).all() for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
    bound = (3 * 9) ** -0.5
    assert 0.9 * bound < net.conv1.weight.abs().max() <= bound
    assert [entry["reduction"] for entry in net.feature_info] == [1, 1, 2, 4, 8]


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_is_a_backbone_and_takes_a_linear_head(name):
    model = create_backbone(name, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    features = model(images)
    assert features.shape == (2, model.num_features)
    torch.testing.assert_close(features, model.features(images))
    add_head(model, ["a", "b", "c"])
    assert model(images).shape == (2, 3)
    torch.testing.assert_close(model(images), model.head(features))


def test_normalisation_is_inside_once():
    net = timm.create_model("test_resnet", num_classes=0).eval()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    model = PixelModel(net, "test_resnet", 32, mean, std).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = net((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.features(images), expected)
    assert set(model.state_dict()) == {f"net.{name}" for name in net.state_dict()}


def test_unknown_models_and_sizes_are_one_sentence():
    with pytest.raises(UserError, match="did you mean 'resnet18_cifar'"):
        create_backbone("resnet18_cifr", 32)
    with pytest.raises(UserError, match=r"test_convnext cannot take images of 16 px: the smallest size that works is --data.image_size \d+"):
        create_backbone("test_convnext", 16)
    with pytest.raises(UserError, match="no published weights"):
        create_backbone("resnet18_cifar", 32, pretrained=True)


def test_a_linear_head_needs_a_linear_classifier():
    model = create_backbone("resnet8_cifar", 16)
    model.net.reset_classifier = lambda n: setattr(model.net, "fc", torch.nn.Conv2d(64, n, 1))
    with pytest.raises(UserError, match="linear"):
        add_head(model, ["a", "b"])
