"""timm networks in pixel space: images in [0, 1] go in, the normalisation the weights were trained with stands inside, once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from rocl_transfer.errors import UserError, did_you_mean

_SIZES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 336, 384, 448, 512)


class PixelModel(nn.Module):
    """A timm network behind its own normalisation: an epsilon means the same for every model.

    Without classes it is a backbone, images (N, 3, H, W) in [0, 1] -> features (N, D); with classes a classifier -> logits (N, K).

    Args:
        net: The timm network.
        architecture: Its timm name, without a tag.
        input_size: Side of the images in pixels that it was made for.
        mean: Per channel, subtracted first.
        std: Per channel, divided by next.
        model_args: What ``timm.create_model`` needs besides the name to build ``net`` again.
        class_names: One a logit; empty for a backbone.
    """

    net: Any  # timm's networks share methods that nn.Module does not know
    _shift: Tensor
    _scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        architecture: str,
        input_size: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        model_args: dict[str, Any] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.architecture = architecture
        self.input_size = input_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.model_args = dict(model_args or {})
        self.class_names = tuple(class_names)
        self.value_range: dict[str, list[float]] | None = None  # of the images that it was trained on, where they have more than 8 bits
        self.register_buffer("_shift", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_scale", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        self._normalizes = self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0)
        self.num_features = self._width()

    def _width(self) -> int:
        """D, read off one forward pass: timm's ``num_features`` is not the width before the head in every family."""
        mode = self.net.training
        self.net.eval()
        with torch.no_grad():
            width = self.features(torch.zeros(1, 3, self.input_size, self.input_size)).shape[1]
        self.net.train(mode)
        return int(width)

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self._shift) / self._scale if self._normalizes else images

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, D) of a backbone, logits (N, K) of a classifier."""
        output: Tensor = self.net(self._normalized(images))
        return output

    def features(self, images: Tensor) -> Tensor:
        """What the head sees: (N, D)."""
        return self.maps_and_features(images)[1]

    def maps_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last maps (N, C, H, W) or tokens (N, T, D), and what is pooled from them for the head, (N, D)."""
        maps: Tensor = self.net.forward_features(self._normalized(images))
        pooled: Tensor = self.net.forward_head(maps, pre_logits=True)
        return maps, pooled

    @property
    def head(self) -> nn.Module:
        """The last, linear layer of a classifier."""
        head: nn.Module = self.net.get_classifier()
        return head


def _build(name: str, image_size: int, pretrained: bool, head: bool = False) -> PixelModel:
    import timm

    cfg = timm.get_pretrained_cfg(name)
    model_args = {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}
    net = timm.create_model(name, pretrained=pretrained, **({} if head else {"num_classes": 0}), **model_args)
    own = net.pretrained_cfg
    mean, std = (own["mean"], own["std"]) if pretrained else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return PixelModel(net, own["architecture"], image_size, mean, std, model_args, _names(net, own) if head else ())


def _names(net: Any, cfg: Mapping[str, Any]) -> list[str]:
    return list(cfg.get("label_names") or [str(label) for label in range(net.num_classes)])


def _fits(name: str, image_size: int) -> bool:
    try:
        _build(name, image_size, pretrained=False)
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError):
        return False
    return True


def has_weights(name: str) -> bool:
    """Whether timm knows published weights for ``name``."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return False
    return cfg is not None and cfg.has_weights


def create_backbone(name: str, image_size: int, pretrained: bool = False, head: bool = False) -> PixelModel:
    """Any timm network without its head, for square RGB images of ``image_size`` pixels.

    Args:
        name: timm's.
        image_size: In pixels.
        pretrained: With its published weights.
        head: With its published head, if it has one.

    Raises:
        UserError: timm has no such network, or no weights for it, or it cannot take images this small.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}; if a local folder is meant, it does not exist")
    tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
    if "." in name and name not in tagged:
        raise UserError(f"timm has no weights {name!r}{did_you_mean(name, tagged)}; without a tag the default ones are taken")
    if pretrained and not has_weights(name):
        raise UserError(f"timm has no published weights for {name!r}: leave out --model.pretrained true")
    try:
        return _build(name, image_size, pretrained, head)
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"the weights of {name} cannot be fetched ({reason}): check your network, or give --model.pretrained false") from error
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
        larger = next((size for size in _SIZES if size > image_size and _fits(name, size)), None)
        if larger is None:
            raise
        raise UserError(f"{name} cannot take images of {image_size} px: the smallest size that works is --data.image_size {larger}") from error


def create_classifier(name: str) -> PixelModel:
    """A timm network with its published weights and head, behind its own normalisation, at the image size it was made for.

    Raises:
        UserError: timm has no such network or no weights for it, or they cannot be fetched.
    """
    import timm

    if not timm.is_model(name) or not has_weights(name):
        near = did_you_mean(name, timm.list_models(pretrained=True))
        raise UserError(f"{name} is not a classifier: timm has no published weights for {name!r}{near}")
    try:
        net = timm.create_model(name, pretrained=True)
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"the weights of {name} cannot be fetched ({reason}): check your network") from error
    cfg = net.pretrained_cfg
    return PixelModel(net, cfg["architecture"], cfg["input_size"][-1], cfg["mean"], cfg["std"], None, _names(net, cfg))


def drop_head(model: PixelModel) -> PixelModel:
    """Take the head off ``model``, in place; a backbone stays as it is."""
    if model.class_names:
        model.net.reset_classifier(0)
        model.class_names = ()
    return model


def add_head(model: PixelModel, class_names: Sequence[str]) -> PixelModel:
    """Give ``model`` a new linear head, in place, in timm's own position so that the export is timm's classifier.

    Raises:
        UserError: The family's classifier is not one linear layer on the pooled features.
    """
    net = model.net
    net.reset_classifier(len(class_names))
    model.class_names = tuple(class_names)
    head = net.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(f"{model.architecture} has no linear classifier ({type(head).__name__}): choose a model whose head is one linear layer")
    head.reset_parameters()
    device = next(net.parameters()).device
    head.to(device)
    probe = torch.rand(2, 3, model.input_size, model.input_size, device=device)
    training = model.training
    model.eval()
    with torch.no_grad():
        same = torch.allclose(model(probe), head(model.features(probe)), atol=1e-4)
    model.train(training)
    if not same:
        raise UserError(f"{model.architecture} does more than a linear layer after its pooled features: choose another model for a linear head")
    return model
