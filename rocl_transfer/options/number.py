"""Numbers as people write them: ``0.0314`` or ``8/255``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Number = float  # whoever fills options in Python gives plain floats
else:

    class Number(float):
        """A float that the command line and YAML may also give as a fraction; ``config/cli.py`` reads it."""


Range = tuple[Number, Number]


def spelled(radius: float) -> str:
    """A radius as people give it: 0.1 as 0.1, and what is a multiple of a quarter of a grey level as 8/255."""
    levels = round(4 * 255 * radius) / 4
    if float(f"{radius:.4g}") == radius or abs(levels / 255 - radius) > 1e-9:
        return f"{radius:.4g}"
    return f"{levels:g}/255"
