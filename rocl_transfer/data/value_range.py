"""Which values are black and white in images of more than 8 bits: one range for all of a data set, never one per image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rocl_transfer.errors import UserError

Range = tuple[float, float]
_INTEGERS: Range = (0, 65535)  # of what is stored in 16 bits or more
_FLOATS: Range = (0.0, 1.0)
_WHITE = (1, 255, 1023, 4095, 16383, 65535)  # floats, 8 to 16 bits
_FEW = 8  # images of more than 8 bits among others: too few to tell 14 bits, or a range of their own, from a dark image of 16
_FILLED = 0.25  # share of a usual range that must be used, or the values found are the range
_PART = 2**24  # pixels whose floats are held at once


def kind(image: Image.Image) -> str:
    """``integers`` or ``floats`` where an image has more than 8 bits a pixel; "" for all others."""
    return "floats" if image.mode == "F" else "integers" if image.mode.startswith("I") else ""


@dataclass(frozen=True)
class ValueRange:
    """Black and white of integers and of floats; None if nothing was found or given.

    Integers of which nothing is known are read as 16 bits, floats as [0, 1]; a float beyond that is refused.
    """

    integers: Range | None = None
    floats: Range | None = None

    @classmethod
    def given(cls, value: Sequence[float] | Mapping[str, Sequence[float]] | None) -> "ValueRange":
        """From an option's pair, which holds for both kinds, or from a record.

        Raises:
            UserError: It is no range.
        """
        pairs = value if isinstance(value, Mapping) else {"integers": value, "floats": value} if value is not None else {}
        found = {}
        for name in ("integers", "floats"):
            if (pair := pairs.get(name)) is None:
                continue
            if len(pair) != 2 or not all(np.isfinite(pair)) or not pair[0] < pair[1]:
                raise UserError(f"the value range {list(pair)} is none: give the values of black and of white, such as [0, 4095]")
            found[name] = (pair[0], pair[1])
        return cls(**found)

    @property
    def record(self) -> dict[str, list[float]] | None:
        """For JSON; None if all images have 8 bits."""
        pairs = {"integers": self.integers, "floats": self.floats}
        return {name: list(pair) for name, pair in pairs.items() if pair is not None} or None

    def to_grey(self, image: Image.Image) -> tuple[Image.Image, bool]:
        """An image of more than 8 bits as 8-bit grey, and whether values were beyond the range and clipped.

        Raises:
            ValueError: It holds values that are no numbers, or floats of which no range is known.
        """
        known = self.floats if kind(image) == "floats" else self.integers
        low, high = known or (_FLOATS if kind(image) == "floats" else _INTEGERS)
        parts = np.array_split(np.asarray(image), max(1, image.width * image.height // _PART))
        least, most = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
        if not np.isfinite([least, most]).all():
            raise ValueError("it holds values that are not finite numbers")
        if known is None and kind(image) == "floats" and not (low <= least and most <= high):
            raise ValueError(f"its values lie in {least:g} to {most:g}, and which are black and white is not known: give --data.value_range")
        grey = [((part.astype(np.float64).clip(low, high) - low) / (high - low) * 255).round().astype(np.uint8) for part in parts]
        return Image.fromarray(np.concatenate(grey)), least < low or most > high


@dataclass
class Seen:
    """Values of the images looked at.

    Attributes:
        looked_at: How many images.
        counts: How many of each kind.
        least: Smallest value of each kind.
        most: Largest value of each kind.
        coarse: Largest value in 255 of colour images of 16 bits, of which only 8 can be read; None if there are none.
        coarse_count: How many of these.
    """

    looked_at: int
    counts: dict[str, int]
    least: dict[str, float]
    most: dict[str, float]
    coarse: int | None = None
    coarse_count: int = 0

    @classmethod
    def of(cls, images: Iterable[Image.Image]) -> "Seen":
        """Look at ``images``; pixels of 8-bit images are not read, and images that cannot be read tell nothing."""
        seen = cls(0, {}, {}, {})
        for image in images:
            seen.looked_at += 1
            deep = kind(image)
            try:
                if deep:
                    seen._add(deep, np.asarray(image))
                elif _is_coarse(image):
                    seen.coarse_count += 1
                    seen.coarse = max(seen.coarse or 0, int(np.asarray(image.convert("RGB")).max()))
            except Exception:  # noqa: S112 - what cannot be read is told of, with its name, when all images are read
                continue
        return seen

    def _add(self, deep: str, values: np.ndarray) -> None:
        least, most = float(values.min()), float(values.max())
        if np.isfinite([least, most]).all():
            self.counts[deep] = self.counts.get(deep, 0) + 1
            self.least[deep] = min(least, self.least.get(deep, least))
            self.most[deep] = max(most, self.most.get(deep, most))


def _is_coarse(image: Image.Image) -> bool:
    """Whether Pillow reads only the upper 8 of 16 bits a channel, as it does of colour images."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    raw = arguments if isinstance(arguments, str) else next(iter(arguments or ()), "")
    return isinstance(raw, str) and ";16" in raw and image.mode in ("RGB", "RGBA", "LA", "CMYK", "RGBX")


def choose_range(seen: Seen, given: ValueRange) -> tuple[ValueRange, list[str]]:
    """One range for each kind of deep images, and what is said of it.

    Raises:
        UserError: The images are of 16 bits a channel, and use so few of them that nothing is left in 8.
    """
    if seen.coarse is not None and seen.coarse < 64:
        said = (
            f"{seen.coarse_count:,} of {seen.looked_at:,} images looked at are in colour with 16 bits a channel, of which only the upper 8 are read"
        )
        if seen.coarse_count * 2 > seen.looked_at:
            raise UserError(f"{said}, and those hold values up to {seen.coarse} of 255 alone: scale the images to 8 bits a channel")
        notes = [f"{said}: values up to {seen.coarse} of 255"]
    else:
        notes = []
    ranges = dict[str, Range]()
    for name, count in sorted(seen.counts.items()):
        least, most = seen.least[name], seen.most[name]
        wanted = given.integers if name == "integers" else given.floats
        few = count < _FEW and count * 2 <= seen.looked_at
        ranges[name] = wanted or _usual(name, least, most, few)
        bits = "floats" if name == "floats" else "integers of more than 8 bits"
        low, high = ranges[name]
        where = f"{count:,} of {seen.looked_at:,} images looked at hold {bits}, from {least:g} to {most:g}"
        how = "as given" if wanted else "--data.value_range sets it"
        notes.append(f"{where}: {low:g} is read as black and {high:g} as white in all splits; {how}")
    if (given.integers or given.floats) and not ranges:
        notes.append(f"none of {seen.looked_at:,} images looked at has more than 8 bits: the value range has no effect on them")
    return ValueRange(ranges.get("integers", given.integers), ranges.get("floats", given.floats)), notes


def _usual(name: str, least: float, most: float, few: bool) -> Range:
    """The smallest usual range around the values found; these themselves where they fill little of it, or none is around them."""
    if least == most == 0:
        return _FLOATS if name == "floats" else _INTEGERS
    if least < 0:
        return (-1.0, 1.0) if name == "floats" and least >= -1 and 2 * _FILLED < most <= 1 else (least, most) if least < most else (least, 0.0)
    whites = [white for white in _WHITE if white >= most and not (few and white == 16383) and (name == "floats" or white > 1)]
    white = float(whites[0]) if whites else most
    if not few and least < most and most - least < _FILLED * white:
        return (0.0, most) if most < _FILLED * white and least < most / 2 else (least, most)
    return (0.0, white)


def describe(record: Any) -> str:
    """A record's ranges in words."""
    if not record:
        return "8 bits"
    return ", ".join(f"{name} from {pair[0]:g} to {pair[1]:g}" for name, pair in record.items())
