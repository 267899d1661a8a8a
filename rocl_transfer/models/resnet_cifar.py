"""ResNets for small images, registered with timm, which has none: 3x3 stride-1 stem, no max-pool (He et al. 2016; RoCL's networks)."""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """He et al.'s option A, without parameters: every other pixel, and zeros for the channels that the input lacks.

    Half of the zeros go before the channels and half behind, as in the networks that are published; He et al. do not say where.

    Args:
        channels: How many zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + channels, H / 2, W / 2), rounded up."""
        before = self.channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.channels - before))


class CifarResNet(ResNet):  # type: ignore[misc]
    """A timm ResNet whose stem keeps the resolution.

    Convolutions start as PyTorch's default does and the last norm of a block at one: what the official networks do. timm's zero start of that
    norm would put it outside LARS (trust ratio 1 where the weight is zero), at a learning rate made for trust ratios of 0.001.

    Args:
        channels: Width of each stage.
        in_chans: Channels of the images.
        padded_shortcuts: Option A in place of a 1x1 convolution and its norm.
        stem_padding: 2 in the networks of solo-learn and DeACL, whose maps are 34 px wide for 32 px images; their weights have the same shapes.
        kwargs: timm's.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        in_chans: int = 3,
        stem_padding: int = 1,
        padded_shortcuts: bool = False,
        **kwargs: Any,
    ) -> None:
        # timm ties the stem's width to 64 unless the stem is "deep": ask for that, then put one convolution in its place.
        super().__init__(channels=channels, in_chans=in_chans, stem_type="deep", stem_width=channels[0] // 2, zero_init_last=False, **kwargs)
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, stride=1, padding=stem_padding, bias=False)
        self.maxpool = nn.Identity()
        if len(channels) < 4:  # timm's forward names four stages
            self.layer4 = nn.Identity()
        if padded_shortcuts:
            for i in range(1, len(channels)):
                getattr(self, f"layer{i + 1}")[0].downsample = PaddedShortcut(channels[i] - channels[i - 1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        for entry in self.feature_info:
            entry["reduction"] = max(1, entry["reduction"] // 4)


_cfg = {
    "input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0, "interpolation": "bilinear",
    "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "first_conv": "conv1", "classifier": "fc", "license": "apache-2.0",
}  # fmt: skip
_names = ("resnet8_cifar", "resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "resnet18_cifar_pad2", "resnet50_cifar_pad2")
DEPTHS = (20, 32, 44, 56, 110)
_thin = tuple(f"resnet{depth}{option}_cifar" for depth in DEPTHS for option in ("", "b"))
default_cfgs = generate_default_cfgs({f"{name}.untrained": dict(_cfg) for name in (*_names, *_thin)})


def _create(name: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, name, pretrained, **kwargs)  # type: ignore[no-any-return]


@register_model  # type: ignore[untyped-decorator]
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Three stages of one block, 16, 32 and 64 channels wide: 77 k parameters, for the quick start."""
    return _create("resnet8_cifar", pretrained, block=BasicBlock, layers=(1, 1, 1), channels=(16, 32, 64), **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """RoCL's ResNet-18: 11,168,832 parameters without a head."""
    return _create("resnet18_cifar", pretrained, block=BasicBlock, layers=(2, 2, 2, 2), **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-34 with the small stem."""
    return _create("resnet34_cifar", pretrained, block=BasicBlock, layers=(3, 4, 6, 3), **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """RoCL's ResNet-50: 23,500,352 parameters without a head."""
    return _create("resnet50_cifar", pretrained, block=Bottleneck, layers=(3, 4, 6, 3), **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet18_cifar_pad2(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """``resnet18_cifar`` with solo-learn's stem."""
    return _create("resnet18_cifar_pad2", pretrained, block=BasicBlock, layers=(2, 2, 2, 2), stem_padding=2, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet50_cifar_pad2(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """``resnet50_cifar`` with solo-learn's stem."""
    return _create("resnet50_cifar_pad2", pretrained, block=Bottleneck, layers=(3, 4, 6, 3), stem_padding=2, **kwargs)


def _register_thin(depth: int, padded: bool) -> None:
    """He et al.'s ResNet of 6n + 2 layers, n blocks in each of three stages, 16, 32 and 64 channels wide."""
    name = f"resnet{depth}{'' if padded else 'b'}_cifar"

    def network(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
        blocks = ((depth - 2) // 6,) * 3
        return _create(name, pretrained, block=BasicBlock, layers=blocks, channels=(16, 32, 64), padded_shortcuts=padded, **kwargs)

    network.__name__ = name
    network.__doc__ = f"""He et al.'s ResNet-{depth} for 32 px, shortcuts {"padded with zeros (option A)" if padded else "projected (option B)"}."""
    register_model(network)


for _depth in DEPTHS:
    _register_thin(_depth, padded=True)
    _register_thin(_depth, padded=False)
