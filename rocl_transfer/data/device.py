"""From the host to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without the host's waiting for what the device has still to do.

    From ordinary memory a copy to a GPU waits for its earlier work; from pinned memory it runs in the background while the host continues.
    """
    source = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return source.to(device, non_blocking=True)
