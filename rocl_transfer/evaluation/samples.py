"""The samples of an evaluation: which images, and their pixels."""

import torch
from torch import Tensor

from rocl_transfer.errors import UserError


def positions(samples: Tensor | None, count: int) -> Tensor:
    """(N,) int64 positions of those of ``count`` images that are measured; None stands for all.

    Raises:
        UserError: They are no different whole numbers from 0 to ``count`` - 1.
    """
    if samples is None:
        return torch.arange(count)
    samples = torch.as_tensor(samples).cpu()
    whole = samples.ndim == 1 and len(samples) and samples.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not whole or samples.min() < 0 or samples.max() >= count or len(samples.unique()) < len(samples):
        raise UserError(f"samples are not positions among {count} images: give different whole numbers from 0 to {count - 1}")
    return samples.long()


def evenly(samples: Tensor, most: int) -> Tensor:
    """At most ``most`` of the positions ``samples`` (N,), from the first to the last at equal distances."""
    return samples[torch.linspace(0, len(samples) - 1, min(most, len(samples))).long()]


def pixels_of(batch: Tensor) -> Tensor:
    """A store's batch (N, 3, H, W), uint8 or floats, as float32 in [0, 1].

    Raises:
        UserError: Pixels lie outside [0, 1].
    """
    images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
    if not (images.min() >= 0 and images.max() <= 1):
        raise UserError("images have pixels outside [0, 1]: leave the normalisation to the model, epsilon is in pixel units")
    return images
