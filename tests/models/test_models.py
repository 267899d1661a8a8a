import pytest
import timm
import torch

from rocl_transfer import UserError
from rocl_transfer.models import PixelModel, add_head, create_backbone, projector
from rocl_transfer.models.folded import fold

FAMILIES = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet", "test_byobnet", "test_nfnet", "resnet8_cifar"]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "parameters", "width"), [("resnet18_cifar", 11_168_832, 512), ("resnet50_cifar", 23_500_352, 2048)])
def test_parameter_counts_of_the_paper(name, parameters, width):
    net = timm.create_model(name, num_classes=0)
    assert count(net) == parameters
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, width)


class HeBlock(torch.nn.Module):
    """A block of He et al.'s networks with their option A, written down for itself."""

    def __init__(self, wide, planes):
        super().__init__()
        self.grow = planes - wide
        self.conv1, self.bn1 = torch.nn.Conv2d(wide, planes, 3, 2 if self.grow else 1, 1, bias=False), torch.nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = torch.nn.Conv2d(planes, planes, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(planes)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.grow:
            x = x[:, :, ::2, ::2]
            zeros = torch.zeros(len(x), self.grow // 2, *x.shape[2:])
            x = torch.cat([zeros, x, zeros], 1)
        return (x + y).relu()


class He(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16)
        for i, (wide, planes) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            setattr(self, f"layer{i}", torch.nn.Sequential(HeBlock(wide, planes), *(HeBlock(planes, planes) for _ in range(n - 1))))
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(x.mean((2, 3)))


# He et al.'s layers, and the parameters with ten classes that the published implementations state.
@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
@pytest.mark.parametrize("size", [32, 15])
def test_thin_resnets_are_those_of_he_et_al(depth, parameters, size):
    torch.manual_seed(0)
    he, net = He((depth - 2) // 6).eval(), timm.create_model(f"resnet{depth}_cifar", num_classes=10).eval()
    assert count(he) == count(net) == parameters
    net.load_state_dict({name.replace("linear.", "fc."): tensor for name, tensor in he.state_dict().items()})
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(net(images), he(images))
    projected = timm.create_model(f"resnet{depth}b_cifar", num_classes=10)
    assert count(projected) - parameters == 16 * 32 + 32 * 64 + 2 * (32 + 64)


def test_padded_shortcuts_train_and_fold():
    model = create_backbone("resnet20_cifar", 16)
    images = torch.rand(4, 3, 16, 16)
    model(images).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    torch.testing.assert_close(fold(model)(images), model(images), atol=1e-4, rtol=1e-4)


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
