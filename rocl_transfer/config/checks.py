"""How a configuration refuses what is wrong or would do nothing."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from rocl_transfer.errors import UserError


def require(condition: bool, sentence: str) -> None:
    """Raise :class:`UserError` with ``sentence`` unless ``condition``."""
    if not condition:
        raise UserError(sentence)


def require_sha256(digest: str | None) -> None:
    """Refuse what is no SHA-256."""
    whole = digest is None or re.fullmatch(r"[0-9a-fA-F]{64}", digest) is not None
    require(whole, f"--model.sha256 is {digest}: give the 64 hexadecimal digits that the model's card has")


def require_untouched(config: Any, names: Iterable[str], because: str, prefix: str = "") -> None:
    """Refuse options that would do nothing.

    An option counts as given where it differs from its default, so that a resolved configuration can be fed back as it is.
    """
    for option in dataclasses.fields(config):
        if option.name in names:
            default = option.default_factory() if option.default_factory is not dataclasses.MISSING else option.default
            require(getattr(config, option.name) == default, f"--{prefix}{option.name} has no effect {because}: leave it out")
