"""How options refuse what is wrong or would do nothing."""

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


def require_warmup(epochs: float | None, of: int, otherwise: bool = False) -> None:
    """Refuse a warm-up that leaves no epoch after it.

    Args:
        epochs: Length of the warm-up; None for what is chosen later.
        of: Length of the training, in epochs.
        otherwise: Whether it is to be taken all the same.
    """
    require(otherwise or (epochs or 0) < of, f"--optimizer.warmup_epochs {epochs or 0:g} is not below --epochs {of}: lower it")


def default_of(option: "dataclasses.Field[Any]") -> Any:
    """The default of a field of a dataclass; ``dataclasses.MISSING`` where it has none."""
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else option.default


def was_given(value: Any, default: Any) -> bool:
    """Whether somebody gave ``value``, be it equal to ``default``: what nobody gives is the default's own object, what is read or written out is not.

    Args:
        value: A number, or a tuple of numbers.
        default: The field's.
    """
    if isinstance(value, tuple) and len(value) == len(default):
        return any(own is not one for own, one in zip(value, default, strict=True))
    return value is not default


def require_untouched(options: Any, names: Iterable[str], because: str, prefix: str = "") -> None:
    """Refuse options that would do nothing.

    An option counts as given where it differs from its default, so that a resolved configuration can be fed back as it is.

    Args:
        options: A dataclass.
        names: Those of its fields that have no effect.
        because: Why: what follows "has no effect" in the sentence.
        prefix: What the options' names begin with on the command line.
    """
    for option in dataclasses.fields(options):
        if option.name in names:
            value = getattr(options, option.name)
            require(value == default_of(option), f"--{prefix}{option.name} has no effect {because}: leave it out")
