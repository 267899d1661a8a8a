"""Any image to a square of uint8 RGB."""

import io
import stat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rocl_transfer.errors import UserError, one_line

Encoded = bytes | Path | np.ndarray
LARGEST = 2 * 89_478_485  # pixels: where Pillow's own limit is too, which anything in the process may have lifted
_ELSEWHERE = ("EPS", "IPTC")  # read by running Ghostscript, and by opening whatever lies inside
_PART = 2**24  # pixels whose floats are held at once


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
    return UnreadableImageError(f"{where} is not a readable image ({reason}): repair or remove it", reason)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB from any mode: transparency on white, 16-bit greys scaled, CMYK and palettes converted."""
    ImageOps.exif_transpose(image, in_place=True)  # a copy of 178 million pixels is 0.7 GB
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's own conversion clips at 255. "I;16" is 16-bit; "I" holds 16-bit PNGs too; floats are in [0, 1] or in [0, 255].
        values = np.asarray(image)
        top = 65535.0 if image.mode != "F" and (values.max() > 255 or ";16" in image.mode) else (1.0 if values.max() <= 1 else 255.0)
        parts = np.array_split(values, max(1, values.size // _PART))
        image = Image.fromarray(np.concatenate([(part.astype(np.float64).clip(0, top) / top * 255).round().astype(np.uint8) for part in parts]))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(encoded: Encoded, size: int, where: str) -> Tensor:
    """A (3, ``size``, ``size``) uint8 tensor: shorter side scaled to ``size`` (bilinear, antialiased), centre crop.

    Raises:
        UnreadableImageError: It is no image or a broken one, naming ``where``.
    """
    image = open_image(encoded, where)
    try:
        rgb = to_rgb(image)
        if rgb.size != (size, size):
            rgb = ImageOps.fit(rgb, (size, size), method=Image.Resampling.BILINEAR)
    except Exception as error:
        raise _unreadable(encoded, where, error) from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()
