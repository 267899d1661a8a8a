"""Any image to a square of uint8 RGB."""

import io
import stat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rocl_transfer.data.inventory import kind_of
from rocl_transfer.data.quiet import listening
from rocl_transfer.data.value_range import ValueRange, kind
from rocl_transfer.errors import UserError, one_line

Encoded = bytes | Path | np.ndarray
LARGEST = 2 * 89_478_485  # pixels: where Pillow's own limit is too, which anything in the process may have lifted
_ELSEWHERE = ("EPS", "IPTC")  # read by running Ghostscript, and by opening whatever lies inside
_BLACK = 16  # of 255
FRAMES, CLIPPED = "animated or of several pages, of which the first is used", "clipped: values beyond the value range"
CONSTANT, BLACK, WHITE = "of one colour", "nearly black: no value above 15 of 255", "nearly white: no value below 240 of 255"
WARNED = "read with a warning of Pillow's: what it says of itself is damaged or unusual"


class UnreadableImageError(UserError):
    """An image that cannot be decoded.

    Args:
        sentence: See :class:`UserError`. The only argument that survives a worker process.
        reason: Why, in the few words that a list of such images has room for.
    """

    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


def open_image(encoded: Encoded, where: str) -> Image.Image:
    """Open an image file's bytes, its path or a (H, W) or (H, W, 3) uint8 array; pixels are not read yet.

    Raises:
        UnreadableImageError: It is no image, naming ``where``.
    """
    try:
        if isinstance(encoded, np.ndarray):
            return Image.fromarray(encoded)
        if isinstance(encoded, Path) and not stat.S_ISREG(encoded.stat().st_mode):  # a pipe would be waited for, a device never ends
            raise ValueError("no regular file")
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        if image.width * image.height > LARGEST:
            raise ValueError(f"{image.width:,} x {image.height:,} pixels are more than the {LARGEST:,} that are read")
        if image.format in _ELSEWHERE:
            raise ValueError(f"{image.format} is read by running or opening something else, which is never done")
        return image
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{where}: there is no such file; correct the path or remove the row", "there is no such file") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over: OSError, struct.error, RuntimeError, ...
        raise _unreadable(encoded, where, error) from error


def _unreadable(encoded: Encoded, where: str, error: Exception) -> UnreadableImageError:
    reason = one_line(" ".join(str(error).split()))[:120] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # its own words are the path once more, or the address of a buffer
        size = encoded.stat().st_size if isinstance(encoded, Path) else len(encoded)
        reason = "of no format that Pillow reads" if size else "empty"
        if kind_of(_head(encoded)) == "HEIC":
            reason = "HEIC, which is not read: convert it to JPEG or PNG"
    return UnreadableImageError(f"{where} is not a readable image ({reason}): repair or remove it", reason)


def _head(encoded: Encoded) -> bytes:
    if not isinstance(encoded, Path):
        return bytes(encoded[:32])
    with encoded.open("rb") as file:
        return file.read(32)


def to_rgb(image: Image.Image, values: ValueRange = ValueRange()) -> Image.Image:  # noqa: B008 - frozen
    """Upright 8-bit RGB from any mode: transparency on white, deep greys scaled by their ``values``, CMYK and palettes converted."""
    return _converted(image, values)[0]


def _converted(image: Image.Image, values: ValueRange) -> tuple[Image.Image, bool]:
    ImageOps.exif_transpose(image, in_place=True)  # a copy of 178 million pixels is 0.7 GB
    clipped = False
    if kind(image):  # Pillow's own conversion clips at 255
        image, clipped = values.to_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return (image if image.mode == "RGB" else image.convert("RGB")), clipped


def decode(encoded: Encoded, size: int, where: str, values: ValueRange = ValueRange()) -> Tensor:  # noqa: B008 - frozen
    """A (3, ``size``, ``size``) uint8 tensor: shorter side scaled to ``size`` (bilinear, antialiased), centre crop.

    Args:
        encoded: See :func:`open_image`.
        size: Side in pixels.
        where: How an error names the image.
        values: Black and white of images of more than 8 bits.

    Raises:
        UnreadableImageError: It is no image or a broken one, naming ``where``.
    """
    return torch.from_numpy(_square(encoded, size, where, values)[0]).permute(2, 0, 1).contiguous()


def examine(encoded: Encoded, size: int, where: str, values: ValueRange = ValueRange()) -> tuple[Tensor, tuple[str, ...]]:  # noqa: B008 - frozen
    """What :func:`decode` gives, and what is odd about the image, each in words that follow "is".

    Raises:
        UnreadableImageError: See :func:`decode`.
    """
    pixels, odd = _square(encoded, size, where, values)
    if (pixels == pixels[0, 0]).all():
        odd.append(CONSTANT)
    elif pixels.max() < _BLACK or pixels.min() > 255 - _BLACK:
        odd.append(BLACK if pixels.max() < _BLACK else WHITE)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), tuple(odd)


def _square(encoded: Encoded, size: int, where: str, values: ValueRange) -> tuple[np.ndarray, list[str]]:
    with listening() as heard:
        image = open_image(encoded, where)
        try:
            with image:
                # MPO is how phones write a photograph and its preview; a PSD's layers are parts of its picture.
                animated = image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False)
                rgb, clipped = _converted(image, values)
                if rgb.size != (size, size):
                    rgb = ImageOps.fit(rgb, (size, size), method=Image.Resampling.BILINEAR)
                pixels = np.array(rgb)
        except Exception as error:
            raise _unreadable(encoded, where, error) from error
    odd = {FRAMES: animated, CLIPPED: clipped, WARNED: heard}
    return pixels, [said for said, there in odd.items() if there]
