"""What an adversary may do to an image: a ball in pixel space, intersected with [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rocl_transfer.errors import UserError

Radius = float | Tensor  # one for all images, or (N, 1, 1, 1): one for each


class ThreatModel(Protocol):
    """A ball of radius ``epsilon``; images are (N, C, H, W), float32, in [0, 1] pixel units."""

    norm: ClassVar[str]

    @property
    def epsilon(self) -> Radius:
        """Radius."""

    def random(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A uniform draw from the ball, each equal part of the batch from its own generator."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent step of length 1 in this norm."""

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the ball around ``images``."""


def _draw(images: Tensor, generators: Sequence[torch.Generator], normal: bool = False) -> Tensor:
    draw = torch.randn if normal else torch.rand
    parts = images.shape[0] // len(generators)
    return torch.cat([draw((parts, *images.shape[1:]), generator=g, device=images.device) for g in generators])


@dataclass(frozen=True)
class Linf:
    """Every pixel channel moves by at most ``epsilon``."""

    epsilon: Radius
    norm: ClassVar[str] = "linf"

    def random(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See :class:`ThreatModel`."""
        return images + (2 * _draw(images, generators) - 1) * self.epsilon

    def direction(self, gradient: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        return gradient.sign()

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        return torch.minimum(torch.maximum(adversarial, images - self.epsilon), images + self.epsilon)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the perturbation of one image is at most ``epsilon``."""

    epsilon: Radius
    norm: ClassVar[str] = "l2"

    def random(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See :class:`ThreatModel`: a normal direction, scaled by ``u ** (1 / dimensions)``."""
        radius = _draw(images[:, :1, :1, :1], generators) ** (1 / images[0].numel())
        return images + self.direction(_draw(images, generators, normal=True)) * radius * self.epsilon

    def direction(self, gradient: Tensor) -> Tensor:
        """See :class:`ThreatModel`: zero where the gradient is."""
        # Scaled by the largest entry first: squares of gradients below 1e-19 vanish in float32.
        scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        return scaled / _length(scaled).clamp_min(1e-12)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        delta = adversarial - images
        # a + (b - a) may miss b by a rounding and so leave [0, 1].
        return (images + delta * (self.epsilon / _length(delta).clamp_min(1e-12)).clamp_max(1.0)).clamp_(0, 1)


def _length(delta: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return length


def threat_model(norm: str, epsilon: Radius) -> ThreatModel:
    """The ball named ``norm`` (linf or l2) of radius ``epsilon``, or of a radius for each image.

    Raises:
        UserError: There is no such norm, or the radius is not above 0.
    """
    if not torch.as_tensor(epsilon).gt(0).all():
        raise UserError(f"epsilon is {epsilon}: give a radius above 0, such as 8/255")
    if norm == Linf.norm:
        return Linf(epsilon)
    if norm == L2.norm:
        return L2(epsilon)
    raise UserError(f"there is no threat model {norm!r}: give linf or l2")
