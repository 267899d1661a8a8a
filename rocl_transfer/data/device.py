"""From the host to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without the host's waiting for what the device has still to do.

    From ordinary memory a GPU copies only once it has got there; from pinned memory by itself, while the host goes on.
    """
    source = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return source.to(device, non_blocking=True)
