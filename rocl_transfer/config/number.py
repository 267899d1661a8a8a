"""Numbers as people write them: ``0.0314`` or ``8/255``."""

import math
from typing import Any

from jsonargparse.typing import register_type


class Number(float):
    """A float that the command line and YAML may also give as a fraction."""


def _parse(value: Any) -> Number:
    if isinstance(value, bool):
        raise ValueError("a number or a fraction such as 8/255 is expected")
    try:
        if isinstance(value, str) and value.count("/") == 1:
            numerator, denominator = value.split("/")
            number = Number(float(numerator) / float(denominator))
        else:
            number = Number(value)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError("a number or a fraction such as 8/255 is expected") from error
    if not math.isfinite(number):
        raise ValueError(f"a finite number or a fraction such as 8/255 is expected, not {number}")
    return number


register_type(Number, serializer=float, deserializer=_parse)
