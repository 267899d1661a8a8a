"""What an adversary may do to an image: a ball in pixel space, intersected with [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rocl_transfer.errors import UserError, did_you_mean

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
        """An ascent step of length 1 in this norm."""

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the ball around ``images``."""

    def length(self, delta: Tensor) -> Tensor:
        """(N, 1, 1, 1): the norm."""

    def shortest(self, weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
        """The shortest move on a slope, (N, D), all 0 or more.

        Args:
            weight: (N, D): what a unit of each coordinate's move gains, 0 or more.
            room: (N, D): how far each coordinate can move.
            need: (N,): what is to be gained; where it cannot be had, every coordinate that gains moves all the way.
        """


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
        """See :class:`ThreatModel`: the steepest."""
        return gradient.sign()

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        return adversarial.clamp(images - self.epsilon, images + self.epsilon)

    def length(self, delta: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        return delta.abs().amax((1, 2, 3), keepdim=True)

    def shortest(self, weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
        """See :class:`ThreatModel`: all coordinates move alike."""
        return _until_gained(weight, torch.ones_like(weight), room, need)


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
        """See :class:`ThreatModel`: the steepest; zero where the gradient is."""
        # Scaled by the largest entry first: squares of gradients below 1e-19 vanish in float32.
        scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        return scaled / self.length(scaled).clamp_min(1e-12)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        delta = adversarial - images
        # a + (b - a) may miss b by a rounding and so leave [0, 1].
        return (images + delta * (self.epsilon / self.length(delta).clamp_min(1e-12)).clamp_max(1.0)).clamp_(0, 1)

    def length(self, delta: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        length: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
        return length

    def shortest(self, weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
        """See :class:`ThreatModel`: coordinates move in proportion to what they gain."""
        return _until_gained(weight, weight, room, need)


@dataclass(frozen=True)
class L1:
    """The absolute changes of one image's pixel channels sum to at most ``epsilon``."""

    epsilon: Radius
    norm: ClassVar[str] = "l1"

    def random(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See :class:`ThreatModel`: signs and exponential sizes, scaled by ``u ** (1 / dimensions)``."""
        radius = _draw(images[:, :1, :1, :1], generators) ** (1 / images[0].numel())
        signed = 2 * _draw(images, generators) - 1
        sizes = -torch.log1p(-signed.abs().clamp(max=1 - 2**-24))
        return images + signed.sign() * sizes / self.length(sizes) * radius * self.epsilon

    def direction(self, gradient: Tensor) -> Tensor:
        """See :class:`ThreatModel`: equal steps along the largest hundredth of the entries (SLIDE, Tramer & Boneh 2019).

        The steepest step would move one entry alone, and soon spend it.
        """
        return sparse_sign(gradient, torch.full((len(gradient),), 0.01, device=gradient.device))

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """See :class:`ThreatModel`: the nearest point of the ball *and* of [0, 1] (Croce & Hein 2021, proposition 2.1).

        Projecting on one after the other leaves most of the radius unused: L1 perturbations are large where they are.
        """
        delta = (adversarial - images).flatten(1)
        start = images.flatten(1)
        room, size = torch.where(delta > 0, 1 - start, start), delta.abs()
        radius = (delta.new_ones(len(delta), 1, 1, 1) * self.epsilon).flatten(1)
        low, high = torch.zeros_like(radius), size.amax(1, keepdim=True)  # of the threshold that all sizes are lowered by
        for _ in range(32):
            threshold = (low + high) / 2
            much = torch.minimum((size - threshold).clamp_min(0), room).sum(1, keepdim=True) > radius
            low, high = torch.where(much, threshold, low), torch.where(much, high, threshold)
        fits = torch.minimum(size, room).sum(1, keepdim=True) <= radius
        kept = torch.minimum((size - torch.where(fits, 0, high)).clamp_min_(0), room)
        return (start + delta.sign() * kept).clamp_(0, 1).view_as(images)

    def length(self, delta: Tensor) -> Tensor:
        """See :class:`ThreatModel`."""
        return delta.abs().sum((1, 2, 3), keepdim=True)

    def shortest(self, weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
        """See :class:`ThreatModel`: the coordinates that gain most move all the way, the last one as far as is needed."""
        order = weight.argsort(1, descending=True)
        gains = (weight * room).gather(1, order)
        missing = (need[:, None] - (gains.cumsum(1) - gains)).clamp_min(0)
        steepness = weight.gather(1, order)
        move = torch.minimum(missing / steepness.clamp_min(1e-30), room.gather(1, order)) * (steepness > 0)
        return torch.zeros_like(move).scatter_(1, order, move)


def sparse_sign(gradient: Tensor, share: Tensor) -> Tensor:
    """Equal steps, of length 1 in all, along the largest ``share`` (N,) of each image's entries."""
    sizes = gradient.abs().flatten(1)
    least = ((1 - share) * sizes.shape[1]).long().clamp(0, sizes.shape[1] - 1)
    chosen = gradient.sign().flatten(1) * (sizes >= sizes.sort(1).values.gather(1, least[:, None]))
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def _until_gained(weight: Tensor, rate: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Moves ``min(t * rate, room)`` with the smallest t whose gain is ``need``.

    The gain is concave and piecewise linear in t, so Newton's steps from 0 come from below, and each passes at least one breakpoint: 4 to 8 steps
    where sorting the breakpoints takes the time of thirty.
    """
    time, before, steepness = torch.zeros_like(need), torch.zeros_like(need), weight * rate
    move = torch.zeros_like(weight)
    for _ in range(50):
        slope = torch.linalg.vecdot(steepness, (move < room).to(steepness.dtype))
        time = time + ((need - before) / slope.clamp_min(1e-30)).clamp(0, 1e30)
        move = torch.minimum(time[:, None] * rate, room)
        gained = torch.linalg.vecdot(weight, move)
        if not ((gained < need * (1 - 1e-4)) & (gained > before)).any():
            break
        before = gained
    return move


def threat_model(norm: str, epsilon: Radius) -> ThreatModel:
    """The ball named ``norm`` (linf, l2 or l1) of radius ``epsilon``, or of a radius for each image.

    Raises:
        UserError: There is no such norm, the radius is not finite and above 0, or in L-inf it is above 1, which no two pixels are apart.
    """
    radii = torch.as_tensor(epsilon)
    if not (radii.gt(0) & radii.isfinite()).all():
        raise UserError(f"epsilon is {epsilon}: give a radius above 0, such as 8/255")
    balls: dict[str, type[Linf] | type[L2] | type[L1]] = {"linf": Linf, "l2": L2, "l1": L1}
    if norm not in balls:
        raise UserError(f"there is no threat model {norm!r}{did_you_mean(str(norm), balls)}: give linf, l2 or l1")
    if norm == "linf" and not radii.le(1).all():
        raise UserError(f"epsilon is {epsilon}: pixels are in [0, 1], so write 8/255 rather than 8")
    return balls[norm](epsilon)


def check_step(norm: str, length: Radius) -> None:
    """Refuse a step downhill or nowhere, and in L-inf one that crosses all of [0, 1].

    Raises:
        UserError: The length, or one of several, cannot be meant.
    """
    lengths = torch.as_tensor(length)
    if not (lengths.gt(0) & lengths.isfinite()).all():
        raise UserError(f"an attack's step_size is {length}: give a length above 0, such as 2/255")
    if norm == "linf" and not lengths.le(1).all():
        raise UserError(f"an attack's step_size is {length}: pixels are in [0, 1], so write 2/255 rather than 2")
