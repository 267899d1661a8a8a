"""What nobody gave follows the images' size: the literature's numbers for 32 px are not those for photographs."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rocl_transfer.options import Number, dotted, require_warmup, spelled

log = logging.getLogger("rocl_transfer")
Config = TypeVar("Config")

SMALL, LARGE = 32, 224  # px: the sizes that have presets
BORDER = round((SMALL * LARGE) ** 0.5)  # px: from here on the larger one is the nearer, by ratio
_AT_ONCE = 64  # large images that one process computes at once; 128 of 224 px took 9 GB in a network of 77 k parameters

_WARMUP = "optimizer.warmup_epochs"
_MOVED = ("optimizer.weight_decay", _WARMUP)  # options whose default was another one in earlier versions


def remember(config: Any, given: Iterable[str]) -> None:
    """Note which options of ``config`` were given, by their dotted names."""
    object.__setattr__(config, "_given", frozenset(given))


def sized(config: Config, image_size: int) -> Config:
    """``config`` with the preset for images of ``image_size`` px in place of what was not given; the log says which.

    A resumed run keeps what it began with. A configuration that was not read from a command line counts as given throughout.

    Raises:
        UserError: What was given does not go with it.
    """
    given: frozenset[str] | None = getattr(config, "_given", None)
    if given is None:
        return config
    large = image_size >= BORDER
    known = _preset(config, given)
    values = {name: value for name, value in known.items() if name not in given} if large else {}
    values |= {name: value for name, value in _begun_with(config).items() if name in known and name not in given}
    chosen: Config = with_earlier_defaults(_replaced(config, values), given)
    own = [name for name in known if name not in given]
    if own:
        shown = ", ".join(f"{name} {_shown(_get(chosen, name))}" for name in own)
        log.info("images of %d px: the preset for %d px is taken (%s), where nothing else is given", image_size, LARGE if large else SMALL, shown)
    return chosen


def with_earlier_defaults(config: Config, given: frozenset[str] | None = None) -> Config:
    """``config`` with what the resumed run began with in place of what nobody gave, where the default was another one then.

    Args:
        config: From a command line.
        given: The options that were given (default: those that it remembers).
    """
    given = getattr(config, "_given", None) if given is None else given
    if given is None:
        return config
    begun = {name: value for name, value in _begun_with(config).items() if name not in given}
    # Null was the default of step sizes before they could fall.
    found = {name: value for name, value in begun.items() if name in _MOVED or (name.endswith("attack.step_size") and value is None)}
    chosen: Config = _replaced(config, found)
    remember(chosen, given)
    return chosen


def with_fitting_warmup(config: Config, given: Iterable[str]) -> Config:
    """``config`` with the default warm-up cut to a quarter of its epochs: a longer one may end before it has reached its peak.

    Raises:
        UserError: One that was given leaves no epoch after it, and is not that of a run that is resumed.
    """
    own, epochs = _get(config, _WARMUP), getattr(config, "epochs", 0)
    if not own:
        return config
    if _WARMUP not in given:
        return _replaced(config, {_WARMUP: Number(min(own, math.ceil(epochs / 4), epochs - 1))})  # type: ignore[no-any-return]
    require_warmup(own, epochs, otherwise=own == _begun_with(config).get(_WARMUP))
    return config


def laid_over(config: Any, name: str, default: Any) -> Any:
    """The part ``name`` of ``config``, which may be left out: what was given of it, over ``default``.

    A resumed run keeps what it began with where these very options meant that: until options were laid over the default, what was not given was its
    class's own. A part of a configuration that was not read from a command line counts as given throughout.

    Raises:
        UserError: What was given does not go with the default.
    """
    part, given = getattr(config, name), getattr(config, "_given", None)
    if part is None or given is None:
        return default if part is None else part
    begun, options = _begun_with(config), [option.name for option in dataclasses.fields(part)]
    if all(_like(begun.get(f"{name}.{option}")) == getattr(part, option) for option in options):
        return part
    return dataclasses.replace(default, **{option: getattr(part, option) for option in options if f"{name}.{option}" in given})


def note_radius(config: Any, image_size: int) -> None:
    """Say that an evaluation's radius, where it was not given, is that for 32 px, and ``image_size`` is not near that."""
    unsaid = config.norm == "linf" and "epsilon" not in getattr(config, "_given", {"epsilon"})
    if unsaid and image_size >= BORDER:
        log.info("images of %d px: epsilon 8/255 is usual at %d px, 4/255 for photographs of %d px: --epsilon sets it", image_size, SMALL, LARGE)


def _preset(config: Any, given: frozenset[str]) -> dict[str, Any]:
    """What differs at 224 px, by dotted names, as far as what is ``given`` leaves it open."""
    if hasattr(config, "augmentation"):
        return _fine_tuning(config, given)
    place = "objective.attack" if hasattr(config, "objective") else "attack"
    through = getattr(config, "robust", True)  # images go through the network, rather than features that are kept
    preset: dict[str, Any] = {}
    if through and (attack := _get(config, place)) is not None:
        preset[f"{place}.epsilon"] = Number(4 / 255) if attack.norm == "linf" else attack.epsilon
    if hasattr(config, "evaluation") and config.evaluation.norm == "linf":
        preset["evaluation.epsilons"] = (Number(4 / 255), Number(8 / 255))
    if through and not {"batch_size", "objective.group_size"} & given:
        preset["gradient_accumulation_steps"] = config.batch_size // _AT_ONCE  # learning rates are made for the whole batch
    return preset


def _fine_tuning(config: Any, given: frozenset[str]) -> dict[str, Any]:
    """``recipes/configs/finetune_224px.yaml``, but for its length."""
    preset: dict[str, Any] = {"attack.epsilon": Number(4 / 255) if config.attack.norm == "linf" else config.attack.epsilon}
    if config.attack.kind == "pgd" and not {"attack.step_size", "attack.steps"} & given:
        epsilon = config.attack.epsilon if "attack.epsilon" in given else preset["attack.epsilon"]
        preset |= {"attack.step_size": Number(epsilon / 2), "attack.steps": 3}
    preset["augmentation.crop_area"] = (Number(0.25), Number(1))
    return preset if "gradient_accumulation_steps" in given else {**preset, "batch_size": _AT_ONCE}


def _begun_with(config: Any) -> Mapping[str, Any]:
    """The options of the run that would be resumed, in the run folder or another one, by dotted names."""
    folder = Path(config.output_dir if config.resume == "auto" else config.resume)
    folder = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    if config.overwrite or config.resume == "none" or not (folder / "checkpoints").is_dir():
        return {}
    try:
        written = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dotted(written) if isinstance(written, Mapping) else {}


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _replaced(config: Any, values: Mapping[str, Any]) -> Any:
    """``config`` with ``values`` by their dotted names; each part is checked as it is built."""
    own, parts = {}, dict[str, dict[str, Any]]()
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(head, {})[rest] = value
        else:
            own[name] = value
    built = {head: _replaced(getattr(config, head), inner) for head, inner in parts.items()}
    return dataclasses.replace(config, **{name: _like(value) for name, value in own.items()}, **built)


def _like(value: Any) -> Any:
    """A value of a YAML file as the option holds it."""
    if isinstance(value, (list, tuple)):
        return tuple(Number(item) for item in value)
    return Number(value) if isinstance(value, float) else value


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return "0.223 of it" if value is None else spelled(value) if isinstance(value, float) else str(value)
