"""Views of images, drawn in batches on the device, every sample with its own parameters.

The same distribution as the per-image torchvision pipeline ColorJitter, RandomGrayscale, RandomHorizontalFlip, RandomResizedCrop, with one
difference: the order of the four colour operations is drawn once per group of images instead of once per image. Parameters are drawn on the CPU, so
a seed gives the same views on every device.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.data.device import to_device
from rocl_transfer.options import Number, Range, require, require_untouched

_LUMA = (0.2989, 0.587, 0.114)
# What leaves an image as it is.
_NEUTRAL = {
    "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "jitter_probability": 0, "grey_probability": 0,
    "crop_area": 1, "crop_aspect": 1, "rotation": 0, "scale": 1, "shift": 0,
}  # fmt: skip
_CACHED = 2**18  # pixel values that a CPU takes at once: 85 images of 32 px, 9 of 96 px, 1 of 224 px


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a view of an image is drawn; the defaults are RoCL's at 32 px (section 4 and official code). Views are a property of the data.

    Colours come first, then flip, crop, rotation, zoom and shift in one resampling (bilinear; outside is black).

    Args:
        brightness: Range of the brightness factor.
        contrast: Range of the contrast factor.
        saturation: Range of the saturation factor.
        hue: Range of the hue shift in turns.
        jitter_probability: Share of views whose colours are jittered.
        grey_probability: Share of views turned grey.
        flip_probability: Share of views mirrored left to right.
        crop_area: Range of the random resized crop's area as a share of the image; ``[1, 1]`` for no crop.
        crop_aspect: Range of the crop's width over height, log-uniform.
        rotation: Range of the rotation in degrees, counter-clockwise.
        scale: Range of the zoom factor.
        shift: Largest shift as a share of the side, in each direction; by whole pixels where nothing else resamples the image, which keeps it sharp.

    Raises:
        UserError: A range is upside down, or a value cannot be meant.
    """

    brightness: Range = (Number(0.6), Number(1.4))
    contrast: Range = (Number(0.6), Number(1.4))
    saturation: Range = (Number(0.6), Number(1.4))
    hue: Range = (Number(-0.1), Number(0.1))
    jitter_probability: Number = Number(0.8)
    grey_probability: Number = Number(0.2)
    flip_probability: Number = Number(0.5)
    crop_area: Range = (Number(0.08), Number(1))
    crop_aspect: Range = (Number(3 / 4), Number(4 / 3))
    rotation: Range = (Number(0), Number(0))
    scale: Range = (Number(1), Number(1))
    shift: Number = Number(0)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, tuple):
                require(value[0] <= value[1], f"a view's {option.name} is {list(value)}: give the smaller number first")
            if option.name.endswith("probability"):
                require(0 <= value <= 1, f"a view's {option.name} is {value}: give a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "crop_aspect", "scale"):
            require(getattr(self, name)[0] >= 0, f"a view's {name} is {list(getattr(self, name))}: give factors of 0 or more")
        for name in ("crop_aspect", "scale"):
            require(getattr(self, name)[0] > 0, f"a view's {name} is {list(getattr(self, name))}: give factors above 0")
        require(self.hue[0] >= -0.5 and self.hue[1] <= 0.5, f"a view's hue is {list(self.hue)}: give turns in [-0.5, 0.5]")
        require(self.crop_area[0] > 0 and self.crop_area[1] <= 1, f"a view's crop_area is {list(self.crop_area)}: give shares in (0, 1]")
        require(0 <= self.shift < 1, f"a view's shift is {self.shift}: give a share of the side in [0, 1)")
        if self.crop_area == (1, 1):
            require_untouched(self, ("crop_aspect",), "without a crop (crop_area [1, 1])", "views.")

    def scaled(self, strength: float) -> Self:
        """These views at a share of their strength: every range goes linearly to what leaves an image as it is, every probability to 0.

        Mirroring stays as it is: it has no range, and a mirrored image is no weaker than another one.

        Args:
            strength: In [0, 1]; at 1 the views are these bit for bit, at 0 images are at most mirrored.
        """
        require(0 <= strength <= 1, f"the views' strength is {strength}: give a share in [0, 1]")

        def moved(value: float, neutral: float) -> Number:
            return Number((1 - strength) * neutral + strength * value)

        now: dict[str, Any] = {
            name: tuple(moved(end, neutral) for end in value) if isinstance(value := getattr(self, name), tuple) else moved(value, neutral)
            for name, neutral in _NEUTRAL.items()
        }
        if now["crop_area"] == (1, 1):  # which has no aspect
            now["crop_aspect"] = Augmentation.crop_aspect
        return dataclasses.replace(self, **now)

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """One view of each image.

        Args:
            images: (N, 3, H, W), float in [0, 1].
            generators: CPU generators, each of an equal, contiguous group of the batch.
        """
        groups = list(zip(images.chunk(len(generators)), generators, strict=True))
        if images.device.type == "cpu":
            return torch.cat([piece for group, generator in groups for piece in self._pieces(group, generator, len(group))])
        # Elsewhere it is launches that cost: colours in each group's own order, then one resampling of all.
        drawn = [self._drawn(group, generator, len(group)) for group, generator in groups]
        views = []
        for (group, _), (colours, _) in zip(groups, drawn, strict=True):
            for operation, amounts in colours:
                group = operation(group, amounts)
            views.append(group)
        return _resample(torch.cat(views), torch.cat([placement for _, placement in drawn], 1))

    def alike(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image (N, 3, H, W), drawn once for all of them."""
        return torch.cat(list(self._pieces(images, generator, 1)))

    def _pieces(self, images: Tensor, generator: torch.Generator, n: int) -> Iterator[Tensor]:
        """A view of each image, some images at a time, from ``n`` draws: as many as there are images, or one for all."""
        colours, placement = self._drawn(images, generator, n)
        # A CPU has the pixels of one operation still in its cache for the next; what comes out does not depend on it.
        size = max(_CACHED // images[0].numel(), 1) if images.device.type == "cpu" else len(images)
        for first in range(0, len(images), size):
            view, own = images[first : first + size], slice(first, first + size) if n > 1 else slice(None)
            for operation, amounts in colours:
                view = operation(view, amounts[own])
            yield _resample(view, placement[:, own])

    def _drawn(self, images: Tensor, generator: torch.Generator, n: int) -> tuple[list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]], Tensor]:
        return self._colours(images, generator, n), self._placement(images, generator, n)

    def _colours(self, images: Tensor, generator: torch.Generator, n: int) -> list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]]:
        """Operations in turn, each with (n, 1, 1, 1) amounts."""

        def draw(low: float, high: float, neutral: float) -> Tensor:
            return place(torch.where(jittered, _uniform(n, low, high, generator), neutral).to(images.dtype))

        def place(values: Tensor) -> Tensor:
            return to_device(values, images.device).view(n, 1, 1, 1)

        jittered = torch.rand(n, generator=generator) < self.jitter_probability
        operations = [
            (_brightness, draw(*self.brightness, 1.0), self.brightness != (1, 1)),
            (_contrast, draw(*self.contrast, 1.0), self.contrast != (1, 1)),
            (_saturation, draw(*self.saturation, 1.0), self.saturation != (1, 1)),
            (_hue, draw(*self.hue, 0.0), self.hue != (0, 0)),
        ]
        drawn = [operations[index] for index in torch.randperm(len(operations), generator=generator).tolist()]
        grey = place(torch.rand(n, generator=generator) < self.grey_probability)
        chosen = [(operation, amounts) for operation, amounts, changes in drawn if changes and self.jitter_probability]
        return [*chosen, (_greyed, grey)] if self.grey_probability else chosen

    def _placement(self, images: Tensor, generator: torch.Generator, n: int) -> Tensor:
        """(9, n, 1, 1): flip, crop, rotation with zoom, shift."""
        _, _, height, width = images.shape
        flip = torch.where(torch.rand(n, generator=generator) < self.flip_probability, -1.0, 1.0)
        crops = self._crops(n, height, width, generator)
        angle = _uniform(n, *self.rotation, generator) * (math.pi / 180)
        zoom = _uniform(n, *self.scale, generator)
        shift = _uniform(2 * n, -self.shift, self.shift, generator).view(2, n)
        if self.crop_area == (1, 1) and self.rotation == (0, 0) and self.scale == (1, 1):
            sides = torch.tensor([height, width]).view(2, 1)
            shift = (shift * sides).round() / sides
        parameters = torch.stack([flip, *crops, angle.cos() / zoom, angle.sin() / zoom, *shift])
        return to_device(parameters, images.device).view(9, n, 1, 1)

    def _crops(self, n: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, rows and columns of random resized crops: torchvision's ten tries for a box that fits, else the largest centred one."""
        if self.crop_area == (1, 1):
            return torch.zeros(n), torch.zeros(n), torch.full((n,), float(height)), torch.full((n,), float(width))
        area = _uniform(10 * n, *self.crop_area, generator) * height * width
        aspect = _uniform(10 * n, math.log(self.crop_aspect[0]), math.log(self.crop_aspect[1]), generator).exp()
        columns, rows = (area * aspect).sqrt().round().view(n, 10), (area / aspect).sqrt().round().view(n, 10)
        fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
        first = fits.int().argmax(1, keepdim=True)  # the first that fits
        none = ~fits.any(1)
        columns, rows = columns.gather(1, first)[:, 0], rows.gather(1, first)[:, 0]
        ratio = min(max(width / height, self.crop_aspect[0]), self.crop_aspect[1])
        columns = torch.where(none, min(float(width), float(round(height * ratio))), columns)
        rows = torch.where(none, min(float(height), float(round(width / ratio))), rows)
        top = (torch.rand(n, generator=generator) * (height - rows + 1)).floor()
        left = (torch.rand(n, generator=generator) * (width - columns + 1)).floor()
        top, left = torch.where(none, ((height - rows) / 2).floor(), top), torch.where(none, ((width - columns) / 2).floor(), left)
        return top, left, rows, columns


def _resample(images: Tensor, placement: Tensor) -> Tensor:
    """Each image read where ``placement`` (see :meth:`Augmentation._placement`) says."""
    _, _, height, width = images.shape
    flip, top, left, rows, columns, cosine, sine, dy, dx = placement
    # An output pixel is mapped back to where it is read, in pixels of the source.
    x = ((torch.arange(width, device=images.device) + 0.5) / width).view(1, 1, width)
    y = ((torch.arange(height, device=images.device) + 0.5) / height).view(1, height, 1)
    x = 0.5 + flip * (x - 0.5)
    # Kept inside the crop, its border is repeated: exactly crop, then resize.
    x = left + (x * columns - 0.5).clamp(min=0).minimum(columns - 1) + 0.5
    y = top + (y * rows - 0.5).clamp(min=0).minimum(rows - 1) + 0.5
    x, y = x - width / 2 - dx * width, y - height / 2 - dy * height
    x, y = cosine * x - sine * y, sine * x + cosine * y
    grid = torch.stack([x * (2 / width), y * (2 / height)], dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])[:, None]


def _greyed(images: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, _grey(images), images)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).mean((2, 3), keepdim=True)
    return (images - mean).mul_(factor).add_(mean).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images)
    return (images - grey).mul_(factor).add_(grey).clamp_(0, 1)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue in HSV by ``shift`` turns.

    Masks are numbers, and the circle is closed with ``floor``: of the time that this takes a CPU, ``where``, ``==`` and ``%`` were more than half.
    """
    red, green, blue = images.unbind(1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma, other = value - low, (value - red).sign_()  # 0 where red leads, else 1
    second = other * (1 - (value - green).sign_())
    third = other - second
    ahead = (1 - other) * (green - blue) + second * (blue - red) + third * (red - green)
    sixths = ahead / chroma.clamp_min(1e-30) + (2 * second + 4 * third) + 6 * shift[:, 0]
    sixths = sixths - 6 * (sixths / 6).floor()
    shares = torch.stack([(sixths - 3).abs_() - 1, 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_()], dim=1)
    return shares.clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def light_views() -> Augmentation:
    """Mirrored, and moved by up to an eighth of the side (4 pixels at 32): what adversarial training on small images uses."""
    return Augmentation(jitter_probability=Number(0), grey_probability=Number(0), crop_area=(Number(1), Number(1)), shift=Number(1 / 8))
