"""The 15 common corruptions at 5 severities of Hendrycks & Dietterich (ICLR 2019), for images of any size, in batches, one seed per image.

The kinds, their order and what they do to an image are the paper's; so are the parameters, where ours has the same ones: CIFAR-10-C's for 32 px,
ImageNet-C's for 224 px. For a shorter side between the two, every parameter lies between them geometrically, so lengths in pixels grow about as
the side does; smaller and larger images get the nearer of the two.

**These are not the published benchmarks**: never compare with an mCE or an accuracy on CIFAR-10-C or ImageNet-C. What differs:

- frost is drawn (needles and veins of ice) where the original cuts it from photographs; snow and fog draw other random fields, fog is paler;
- snow, glass_blur and elastic_transform have parameters of our own that grow at each step, which the originals' do not; glass_blur shifts each
  pixel by rounded normal numbers instead of swapping neighbours in turn; elastic_transform only bends, without the affine part;
- defocus_blur has a disc of the same spread as the original's aliased one; motion_blur's trail ends at three sigma, and its fourth severity at
  32 px is raised, it would equal the third; zoom_blur always averages 11 zooms;
- nothing is rounded to 8 bits except by pixelate and jpeg_compression; borders are repeated or mirrored; a seed draws alike at every severity.

No library is used: those that offer all 15 (imagecorruptions and its forks) draw from numpy's global generator, bring OpenCV and scikit-image, and
take one 8-bit image at a time; kornia, torchvision and albumentations lack some of the kinds, and the severities.
"""

import math
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rocl_transfer.data import generators
from rocl_transfer.errors import UserError, did_you_mean

_LUMA = (0.299, 0.587, 0.114)
_ZOOMS = 11  # no two further apart than 4 px, anywhere in a 224-px image

_Rows = tuple[tuple[float, ...], ...]
_Random = list[torch.Generator]


def corrupt(images: Tensor, name: str, severity: int, seeds: Sequence[int]) -> Tensor:
    """Images after one corruption; each depends on nothing but the image, the name, the severity and its seed.

    Args:
        images: (N, 3, H, W), float in [0, 1], on any device; made for sides from 8 to 224 px.
        name: One of ``CORRUPTIONS``.
        severity: 1 (weak) to 5 (strong).
        seeds: One per image.

    Returns:
        (N, 3, H, W), float32 in [0, 1], on the same device, without gradients.

    Raises:
        UserError: Unknown name or severity, or images and seeds differ in number, or there are none.
    """
    if name not in _KINDS:
        raise UserError(f"there is no corruption {name!r}{did_you_mean(name, _KINDS)}: give one of {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise UserError(f"the severity of {name} is {severity}: give a whole number from 1 (weak) to 5 (strong)")
    if len(images) != len(seeds) or not len(seeds):
        raise UserError(f"{len(images)} images and {len(seeds)} seeds were given: give one seed per image, and at least one")
    apply, small, large = _KINDS[name]
    share = min(max(math.log(min(images.shape[-2:]) / 32) / math.log(224 / 32), 0), 1)
    row = [low[severity - 1] ** (1 - share) * high[severity - 1] ** share for low, high in zip(small, large, strict=True)]
    with torch.no_grad():
        return apply(images.float(), generators(seeds, f"corruption {name}"), *row).clamp(0, 1)


def _draw(images: Tensor, random: _Random, *shape: int, uniform: bool = False) -> Tensor:
    """(N, *shape) normal, or uniform in [0, 1): drawn on the CPU, so that a seed means the same on every device."""
    draw = torch.rand if uniform else torch.randn
    return torch.stack([draw(shape, generator=generator) for generator in random]).to(images.device)


def _gaussian_noise(images: Tensor, random: _Random, std: float) -> Tensor:
    return images + std * _draw(images, random, *images.shape[1:])


def _shot_noise(images: Tensor, random: _Random, photons: float) -> Tensor:
    counts = [torch.poisson(rate, generator) for rate, generator in zip((images.cpu() * photons).unbind(), random, strict=True)]
    return torch.stack(counts).to(images.device) / photons


def _impulse_noise(images: Tensor, random: _Random, share: float) -> Tensor:
    chance = _draw(images, random, *images.shape[1:], uniform=True)
    return torch.where(chance < share, (chance < share / 2).to(images.dtype), images)


def _blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolution with kernels (N or 1, K, K), K odd, borders repeated. By FFT: at 224 px a kernel can have 90 pixels a side."""
    reach = kernels.shape[-1] // 2
    padded = F.pad(images, [reach] * 4, mode="replicate")
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels[:, None], s=size)
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    return blurred[..., 2 * reach :, 2 * reach :]


def _pixels(images: Tensor, height: int, width: int) -> Tensor:
    """(H, W, 2): x and y of each pixel, from the centre."""
    y, x = (torch.arange(side, device=images.device, dtype=images.dtype) - (side - 1) / 2 for side in (height, width))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)


def _box(reach: float) -> tuple[int, int]:
    """Height and width of the kernel that reaches at least so far from its centre."""
    return 2 * math.ceil(reach) + 1, 2 * math.ceil(reach) + 1


def _normalised(kernels: Tensor) -> Tensor:
    return kernels / kernels.sum((1, 2), keepdim=True)


def _defocus_blur(images: Tensor, random: _Random, radius: float) -> Tensor:
    distance = _pixels(images, *_box(radius)).norm(dim=-1)
    # About how much of a pixel lies inside the disc.
    return _blur(images, _normalised((radius + 0.5 - distance).clamp(0, 1)[None]))


def _gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    distance = _pixels(images, *_box(3 * sigma)).norm(dim=-1)
    return _blur(images, _normalised((-(distance**2) / (2 * sigma**2)).exp()[None]))


def _trails(images: Tensor, angles: Tensor, sigma: float) -> Tensor:
    """(N, K, K): half a Gaussian along a ray at each of ``angles`` (N,), one pixel wide."""
    x, y = _pixels(images, *_box(3 * sigma)).unbind(-1)
    cosine, sine = angles.cos().view(-1, 1, 1), angles.sin().view(-1, 1, 1)
    along, across = x * cosine + y * sine, y * cosine - x * sine
    return _normalised((-(along**2) / (2 * sigma**2)).exp() * (1 + along).clamp(0, 1) * (1 - across.abs()).clamp(min=0))


def _motion_blur(images: Tensor, random: _Random, sigma: float) -> Tensor:
    angles = (_draw(images, random, uniform=True) - 0.5) * (math.pi / 2)
    return _blur(images, _trails(images, angles, sigma))


def _displace(images: Tensor, shifts: Tensor, mode: str = "bilinear") -> Tensor:
    """Each pixel read from where ``shifts`` (N or 1, H, W, 2), x and y in pixels, point to from it; mirrored beyond the border."""
    n, _, height, width = images.shape
    grid = (_pixels(images, height, width) + shifts) * (2 / shifts.new_tensor([width, height]))
    return F.grid_sample(images, grid.expand(n, -1, -1, -1), mode=mode, padding_mode="reflection", align_corners=False)


def _glass_blur(images: Tensor, random: _Random, scatter: float, sigma: float) -> Tensor:
    shifts = (scatter * _draw(images, random, *images.shape[2:], 2)).round()
    return _gaussian_blur(_displace(_gaussian_blur(images, sigma), shifts, "nearest"), sigma)


def _zoom_blur(images: Tensor, random: _Random, largest: float) -> Tensor:
    centred = _pixels(images, *images.shape[2:])[None]
    zooms = np.linspace(1, largest, _ZOOMS).tolist()
    return torch.stack([_displace(images, centred * (1 / zoom - 1)) for zoom in zooms]).mean(0)


def _resized(fields: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(fields, (height, width), mode="bicubic", align_corners=True)


def _elastic_transform(images: Tensor, random: _Random, shift: float, cell: float) -> Tensor:
    height, width = images.shape[2:]
    coarse = _draw(images, random, 2, math.ceil(height / cell) + 1, math.ceil(width / cell) + 1)
    return _displace(images, shift * _resized(coarse, height, width).permute(0, 2, 3, 1))


def _clouds(images: Tensor, random: _Random, decay: float) -> Tensor:
    """(N, 1, H, W) in [0, 1]: octaves of smooth noise, from half the image to the pixel, each ``decay`` times weaker than the one before."""
    height, width = images.shape[2:]
    total = images.new_zeros(len(images), 1, height, width)
    for octave in range(1, math.ceil(math.log2(max(height, width)))):
        rows, columns = (math.ceil(side * 2**octave / max(height, width)) + 1 for side in (height, width))
        total += _resized(_draw(images, random, 1, rows, columns), height, width) / decay**octave
    total -= total.amin((2, 3), keepdim=True)
    return total / total.amax((2, 3), keepdim=True)


def _fog(images: Tensor, random: _Random, thickness: float, decay: float) -> Tensor:
    brightest = images.amax((1, 2, 3), keepdim=True)
    # Never quite clear of it: where there is none, rescaling would leave smoke.
    fog = 0.4 + 0.6 * _clouds(images, random, decay)
    return (images + thickness * fog) * brightest / (brightest + thickness)


def _specks(images: Tensor, random: _Random, share: float, size: float) -> Tensor:
    """(N, 1, H, W): grains about ``size`` pixels wide, ones on zeros; ``share`` is that of the grains' own grid."""
    height, width = images.shape[2:]
    noise = _draw(images, random, 1, math.ceil(height / size), math.ceil(width / size), uniform=True)
    return F.interpolate((noise < share).float(), (height, width), mode="bilinear", align_corners=False)


def _snow(images: Tensor, random: _Random, share: float, size: float, streak: float, haze: float) -> Tensor:
    angles = (0.25 + 0.5 * _draw(images, random, uniform=True)) * math.pi
    flakes = _blur(_specks(images, random, share, size), _trails(images, angles, streak))
    grey = (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    whitened = torch.maximum(images, 1.5 * grey + 0.5)
    return images + haze * (whitened - images) + flakes


def _frost(images: Tensor, random: _Random, kept: float, ice: float) -> Tensor:
    return kept * images + ice * _ice(images, random)


def _ice(images: Tensor, random: _Random) -> Tensor:
    """(N, 3, H, W) in [0, 1]: needles at 120 degrees to each other over veins, bluish on black."""
    side = min(images.shape[2:])
    first = _draw(images, random, uniform=True) * math.tau
    needles = torch.zeros_like(images[:, :1])
    for turn in range(3):
        specks = _specks(images, random, 0.05, max(1, side / 64))
        needles = needles.maximum(_blur(specks, _trails(images, first + turn * math.tau / 3, side / 10)))
    needles = needles / needles.amax((2, 3), keepdim=True).clamp(min=0.01)  # in few pixels there may be none
    veins = (1 - (2 * _clouds(images, random, 1.5) - 1).abs()) ** 3
    return (veins * (0.4 + 1.6 * needles) + 0.7 * needles).clamp(max=1) * images.new_tensor([0.85, 0.95, 1.0]).view(3, 1, 1)


def _brightness(images: Tensor, random: _Random, lift: float) -> Tensor:
    """``lift`` added to the value in HSV: hue and saturation stay, black turns grey."""
    value = images.amax(1, keepdim=True)
    lifted = (value + lift).clamp(max=1)
    return torch.where(value > 0, images / value * lifted, lifted)


def _contrast(images: Tensor, random: _Random, factor: float) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """What ``change`` makes of each image, in 8 bits."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return torch.from_numpy(changed).to(images.device).permute(0, 3, 1, 2).float() / 255


def _pixelate(images: Tensor, random: _Random, share: float) -> Tensor:
    height, width = images.shape[2:]
    coarse = int(width * share), int(height * share)
    return _by_pillow(images, lambda image: image.resize(coarse, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(images: Tensor, random: _Random, quality: float) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=round(quality))
        return Image.open(buffer)

    return _by_pillow(images, compressed)


# What each does, with its parameters by severity, at 32 px and at 224 px.
_KINDS: dict[str, tuple[Callable[..., Tensor], _Rows, _Rows]] = {
    "gaussian_noise": (_gaussian_noise, ((0.04, 0.06, 0.08, 0.09, 0.1),), ((0.08, 0.12, 0.18, 0.26, 0.38),)),
    "shot_noise": (_shot_noise, ((500, 250, 100, 75, 50),), ((60, 25, 12, 5, 3),)),
    "impulse_noise": (_impulse_noise, ((0.01, 0.02, 0.03, 0.05, 0.07),), ((0.03, 0.06, 0.09, 0.17, 0.27),)),
    "defocus_blur": (_defocus_blur, ((0.55, 0.7, 0.93, 1.0, 1.6),), ((3, 4, 6, 8, 10),)),
    "glass_blur": (_glass_blur, ((0.4, 0.5, 0.6, 0.8, 1.0), (0.2, 0.25, 0.3, 0.35, 0.4)), ((1.0, 1.5, 2.5, 3.4, 4.5), (0.7, 0.9, 1.0, 1.1, 1.5))),
    "motion_blur": (_motion_blur, ((1, 1.5, 2, 2.25, 2.5),), ((3, 5, 8, 12, 15),)),
    "zoom_blur": (_zoom_blur, ((1.05, 1.1, 1.15, 1.2, 1.25),), ((1.1, 1.15, 1.2, 1.25, 1.3),)),
    "snow": (
        _snow,
        ((0.03, 0.045, 0.06, 0.08, 0.1), (1, 1.1, 1.2, 1.3, 1.4), (1.5, 1.6, 1.7, 1.8, 2), (0.05, 0.08, 0.1, 0.15, 0.2)),
        ((0.025, 0.035, 0.045, 0.055, 0.065), (3, 3.25, 3.5, 3.75, 4), (6, 6.5, 7, 7.5, 8), (0.15, 0.2, 0.25, 0.3, 0.35)),
    ),
    "frost": (_frost, ((1, 1, 0.9, 0.85, 0.75), (0.2, 0.3, 0.4, 0.4, 0.45)), ((1, 0.8, 0.7, 0.65, 0.6), (0.4, 0.6, 0.7, 0.7, 0.75))),
    "fog": (_fog, ((0.2, 0.5, 0.75, 1, 1.5), (3, 3, 2.5, 2, 1.75)), ((1.5, 2, 2.5, 2.5, 3), (2, 2, 1.7, 1.5, 1.4))),
    "brightness": (_brightness, ((0.05, 0.1, 0.15, 0.2, 0.3),), ((0.1, 0.2, 0.3, 0.4, 0.5),)),
    "contrast": (_contrast, ((0.75, 0.5, 0.4, 0.3, 0.15),), ((0.4, 0.3, 0.2, 0.1, 0.05),)),
    "elastic_transform": (_elastic_transform, ((0.3, 0.45, 0.6, 0.75, 0.9), (4,) * 5), ((1, 1.5, 2, 2.5, 3), (10,) * 5)),
    "pixelate": (_pixelate, ((0.95, 0.9, 0.85, 0.75, 0.65),), ((0.6, 0.5, 0.4, 0.3, 0.25),)),
    "jpeg_compression": (_jpeg_compression, ((80, 65, 58, 50, 40),), ((25, 18, 15, 10, 7),)),
}
CORRUPTIONS: tuple[str, ...] = tuple(_KINDS)
