"""How many images are evaluated at once: as many as pixels and memory allow, not a number fixed for small ones."""

from collections.abc import Sequence

import torch

# Of all images of a batch together. On a CPU larger batches are no faster, and a pass with gradient of vit_tiny holds 26 MB for each image of 224 px.
_PIXELS, _PIXELS_ON_A_GPU = 2**18, 2**22


def images_at_once(shape: Sequence[int], device: torch.device) -> int:
    """Images of ``shape`` (..., H, W) of one pass with its gradient: 256 up to 32 px, on a CPU 64 at 64 px and 5 at 224 px, on a GPU 83 there."""
    pixels = _PIXELS if device.type == "cpu" else _PIXELS_ON_A_GPU
    return max(4, min(256, pixels // (shape[-2] * shape[-1])))
