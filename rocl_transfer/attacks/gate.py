"""The gate between a user and the attacks: network, images and labels are checked once, and what cannot be meant is refused in one sentence."""

import itertools
import re
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.attacks.frozen import frozen
from rocl_transfer.errors import UserError

# Sides that networks are made for; tried only to find out whether a failure comes from the size.
_SIZES = (28, 32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)
_FLOATS = "give floats in [0, 1], so divide bytes by 255, and leave the normalisation to the model"


class Untouched(nn.Module):
    """A network that is shown copies: one that writes into its input, as an in-place normalisation does, changes nobody's images.

    Args:
        model: Images (N, C, H, W) in [0, 1] -> logits (N, K). One whose parameters are all float64 is shown float64.
        one_at_a_time: Show it one image a pass, whose answer then cannot depend on the images beside it.
    """

    def __init__(self, model: nn.Module, one_at_a_time: bool = False) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.one_at_a_time, self.training = one_at_a_time, model.training
        floating = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
        self.dtype = torch.float64 if floating == {torch.float64} else torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        copies = images.to(self.dtype, copy=True)
        logits: Tensor = torch.cat([self.model(image) for image in copies.split(1)]) if self.one_at_a_time else self.model(copies)
        return logits


def untouched(model: nn.Module, one_at_a_time: bool | None = None) -> Untouched:
    """``model`` as :class:`Untouched`; one that is so already is left as it is, unless ``one_at_a_time`` says otherwise.

    Raises:
        UserError: It is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module from images in [0, 1] to logits")
    if isinstance(model, Untouched):
        return model if one_at_a_time in (None, model.one_at_a_time) else Untouched(model.model, bool(one_at_a_time))
    return Untouched(model, bool(one_at_a_time))


def device_of(model: nn.Module, otherwise: torch.device) -> torch.device:
    """Where the first parameter or buffer of ``model`` lies."""
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), otherwise)


def check_images(images: Any, bytes_too: bool = False) -> Tensor:
    """``images`` (N, C, H, W), detached, floats as float32.

    Args:
        images: What was given.
        bytes_too: Whether uint8 is taken, and left as it is.

    Raises:
        UserError: They are no such tensor, there are none, or, where they are floats, pixels lie outside [0, 1].
    """
    if not isinstance(images, Tensor):
        raise UserError(f"images are a {type(images).__name__}: give a torch tensor (N, C, H, W), such as torch.from_numpy makes")
    if images.ndim != 4 or not len(images):
        hint = "; images[None] makes one image a batch" if images.ndim == 3 else ""
        raise UserError(f"images have the shape {tuple(images.shape)}: give (N, C, H, W) with at least one image{hint}")
    if bytes_too and images.dtype == torch.uint8:
        return images.detach()
    if not images.is_floating_point():
        raise UserError(f"images are {_plain(images.dtype)}: {'give uint8, or floats in [0, 1]' if bytes_too else _FLOATS}")
    lowest, highest = images.min().item(), images.max().item()
    if not (lowest >= 0 and highest <= 1):
        raise UserError(f"images have pixels outside [0, 1] (from {lowest:.4g} to {highest:.4g}): {_FLOATS}")
    return images.detach().float()


def check_labels(labels: Any, count: int) -> Tensor:
    """``labels`` (N,) as int64.

    Raises:
        UserError: They are no whole class numbers, or not one per image.
    """
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"labels are not class numbers ({_first_line(error)}): give a tensor (N,) of whole numbers, 0 and up") from error
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        hint = "; labels.argmax(1) makes them of one-hot rows" if labels.ndim == 2 and labels.shape[1] > 1 else ""
        raise UserError(f"labels are {_plain(labels.dtype)} of shape {tuple(labels.shape)}: give whole class numbers of shape (N,), 0 and up{hint}")
    if len(labels) != count or not count:
        raise UserError(f"{count} images and {len(labels)} labels were given: give one label per image, and at least one")
    numbers: Tensor = labels.long()
    return numbers


def check_classes(labels: Tensor, classes: int, name: str = "the model") -> None:
    """Refuse labels that the network has no logit for.

    Raises:
        UserError: There are some.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise UserError(f"labels run from {lowest} to {highest}, {name} has {classes} classes, 0 and up")


def ask(model: nn.Module, images: Tensor, name: str = "the model") -> Tensor:
    """Logits (N, K), float32, of a network in the state that attacks see it in.

    Raises:
        UserError: It fails, gives no logits (N, K) of two classes or more, or they are not finite.
    """
    try:
        logits = model(images)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a user's network may fail in any way
        raise UserError(_failure(error, model, images, name)) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2 or not logits.is_floating_point():
        number = f"{len(images)} image{'s' if len(images) > 1 else ''}"
        raise UserError(f"{name} gives {_described(logits)} for {number}: it must give logits ({len(images)}, classes) alone")
    if not logits.isfinite().all():
        raise UserError(f"{name}'s logits are not finite on clean images: nothing can be measured of it")
    return logits.float()


@torch.no_grad()
def admit(model: nn.Module, images: Any, labels: Any, move: bool = True) -> tuple[Untouched, Tensor, Tensor]:
    """A user's network, images and labels, checked: the network sees copies, images are float32, labels int64.

    Args:
        model: Images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: (N, C, H, W), floats in [0, 1].
        labels: (N,), whole numbers.
        move: Bring images and labels to the network's device.

    Raises:
        UserError: The network gives no logits for such images, images are no floats in [0, 1], or labels are not its classes.
    """
    network, images = untouched(model), check_images(images)
    labels = check_labels(labels, len(images))
    device = device_of(network, images.device)
    with frozen(network):
        check_classes(labels, ask(network, images[:2].to(device)).shape[1])
    return (network, images.to(device), labels.to(device)) if move else (network, images, labels)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def _described(output: Any) -> str:
    """A network's output in words."""
    if isinstance(output, Tensor):
        return f"{tuple(output.shape)}" if output.is_floating_point() else f"{_plain(output.dtype)} {tuple(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(map(_described, output)) or 'nothing'}"
    if isinstance(output, dict):
        return f"a {type(output).__name__} of {', '.join(map(str, output)) or 'nothing'}"
    return type(output).__name__


def _failure(error: Exception, model: nn.Module, images: Tensor, name: str) -> str:
    """What failed, why in the network's own words, and a remedy where the cause is known."""
    reason = _first_line(error)
    said = f"{name} does not take images of {tuple(images.shape[1:])} ({reason})"
    if isinstance(error, TypeError) and re.search(r"positional argument|required argument|keyword", str(error)):
        return f"{said}: its forward must take images alone, so wrap it in a module that adds the rest"
    if re.search(r"dtype|scalar type|Input type \(|data type", str(error)):
        odd = sorted({_plain(tensor.dtype) for tensor in model.parameters() if tensor.is_floating_point()} - {"float32"})
        return f"{said}: its weights are {' and '.join(odd)} and images come in float32, so give model.float(), or convert them in its forward" \
            if odd else said  # fmt: skip
    if re.search(r"same device|device type|on device", str(error)):
        return f"{said}: its parts lie on different devices, so move all of it with model.to(device)"
    if found := re.search(r"to have (\d+) channels, but got (\d+)", str(error)):
        return f"{said}: it takes {found[1]} channels and was given {found[2]}, so convert the images in its forward"
    if isinstance(error, NotImplementedError):
        return said
    works = next((size for size in _SIZES if size != images.shape[-1] and _takes(model, images, size)), None)
    return said if works is None else f"{said}: it takes {works} px, so give images of that size (recipes: --data.image_size {works})"


def _takes(model: nn.Module, images: Tensor, size: int) -> bool:
    try:
        with torch.no_grad():
            model(images.new_zeros(2, images.shape[1], size, size))
    except Exception:
        return False
    return True
