"""Numbers as people write them: ``0.0314`` or ``8/255``."""

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
            return Number(float(numerator) / float(denominator))
        return Number(value)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError("a number or a fraction such as 8/255 is expected") from error


register_type(Number, serializer=float, deserializer=_parse)
