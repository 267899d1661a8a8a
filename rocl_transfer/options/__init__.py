"""What options are made of: numbers as people write them, and how what is wrong or would do nothing is refused."""

from rocl_transfer.options.checks import default_of, require, require_sha256, require_untouched, require_warmup, was_given
from rocl_transfer.options.files import dotted, write_options
from rocl_transfer.options.number import Number, Range, spelled

__all__ = [
    "Number", "Range", "default_of", "dotted", "require", "require_sha256", "require_untouched", "require_warmup", "spelled", "was_given",
    "write_options",
]  # fmt: skip
