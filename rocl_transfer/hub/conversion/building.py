"""The network with the foreign weights in it, and its head."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rocl_transfer.errors import UserError
from rocl_transfer.hub.conversion.families import Normalization
from rocl_transfer.hub.conversion.head_and_normalization import Linear
from rocl_transfer.models import PixelModel


def build(
    architecture: str,
    options: Mapping[str, Any],
    image_size: int,
    weights: Mapping[str, Tensor],
    normalization: Normalization,
    classes: Sequence[str],
) -> PixelModel:
    """A timm network with ``weights`` in it, in float32, behind its normalisation, in eval mode.

    Args:
        architecture: Its timm name.
        options: What ``timm.create_model`` needs besides it.
        image_size: Side in pixels.
        weights: One tensor for each of timm's names; BatchNorm's counters may be absent.
        normalization: Mean and std of images in [0, 1].
        classes: Names, one a logit; empty for a backbone.

    Raises:
        UserError: The network cannot take such images, or a weight is not finite.
    """
    import timm

    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{broken[0]} holds values that are not finite: the training had died, take an earlier file")
    try:
        net = timm.create_model(architecture, num_classes=len(classes), **options)
        counters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("num_batches_tracked")}
        net.load_state_dict({**counters, **weights})
        return PixelModel(net, architecture, image_size, *normalization, dict(options), classes).eval()
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"{architecture} cannot take images of {image_size} px ({str(error).splitlines()[0][:100]}): change --image_size") from error


def name_classes(names: Sequence[str] | None, head: Linear | None) -> list[str]:
    """One name a logit: those given, or 0, 1, ...; none without a head.

    Raises:
        UserError: There are more names or fewer than classes.
    """
    if head is None:
        if names is not None:
            raise UserError("--label_names has no effect without a linear head: leave it out, or give --head")
        return []
    count = len(head.bias)
    if names is not None and len(names) != count:
        raise UserError(f"--label_names names {len(names)} classes, the head has {count}: name each, in order")
    return [str(i) for i in range(count)] if names is None else list(names)
