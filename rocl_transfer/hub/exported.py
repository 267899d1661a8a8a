"""From a name to an exported model: a run folder, a timm folder, or the Hub. Its ``config.json`` is read and checked here alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rocl_transfer.errors import UserError, is_pickle, one_line, path_of
from rocl_transfer.hub.download import download
from rocl_transfer.hub.export import CONFIG, WEIGHTS
from rocl_transfer.training import sha256

_MADE_ON = ("pretrained_on", "pretrained_before_on", "trained_on")  # what our part of config.json says of a model's data
_LARGEST_SIDE = 4096  # pixels of the images that a config.json may ask for: one image of them passes through the network when it is loaded
# What timm's builders take for themselves instead of handing it to the network: other weights, files and functions.
_BUILDERS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn", "pretrained_model_args",
             "checkpoint_path", "cache_dir", "features_only", "feature_cls", "feature_cfg", "kwargs_filter", "model_cfg", "pruned"}  # fmt: skip


@dataclass(frozen=True)
class ExportedModel:
    """A folder that holds an exported model, with what its ``config.json`` says.

    Attributes:
        folder: Holds ``config.json`` and ``model.safetensors``.
        content: ``config.json``, read and checked by :func:`find`.
    """

    folder: Path
    content: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Name of the network, by timm or by this package."""
        return str(self.content["architecture"])

    @property
    def model_args(self) -> dict[str, Any]:
        """What the network is built with."""
        return dict(self.content.get("model_args", {}))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per logit; None where the file names none."""
        names = self.content.get("label_names")
        return None if names is None else tuple(names)

    @property
    def input_size(self) -> int:
        """Side in pixels of the images that it was made for."""
        return int(self._cfg["input_size"][-1])

    @property
    def mean(self) -> list[float]:
        """What is subtracted from the three channels of images in [0, 1]."""
        return list(self._cfg["mean"])

    @property
    def std(self) -> list[float]:
        """What the three channels are then divided by."""
        return list(self._cfg["std"])

    @property
    def facts(self) -> dict[str, Any]:
        """What ``config.json`` says under our key; nothing if another made it."""
        found = self.content.get("rocl_transfer", {})
        return found if isinstance(found, dict) else {}

    @property
    def doubts(self) -> list[str]:
        """What made its accuracy doubtful when it was exported, one sentence each."""
        doubts = self.facts.get("doubts", [])
        return [one_line(doubt)[:1000] for doubt in doubts if isinstance(doubt, str)] if isinstance(doubts, list) else []

    @property
    def value_range(self) -> dict[str, Any] | None:
        """The ranges of values that its training images of more than 8 bits were scaled by."""
        return self.facts.get("value_range")

    @property
    def made_on(self) -> dict[str, Any]:
        """The data and cut that it, and what it began with, were trained on."""
        return {key: self.facts[key] for key in _MADE_ON if self.facts.get(key) is not None}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights' file, computed when it is first asked for."""
        return sha256(self.folder / WEIGHTS)

    @property
    def _cfg(self) -> Mapping[str, Any]:
        cfg: Mapping[str, Any] = _pretrained_cfg(self.content)
        return cfg


def find(name: str) -> ExportedModel | None:
    """The exported model that ``name`` means, downloaded if it is on the Hub; None if it is to be a timm name.

    Args:
        name: ``hf-hub:USER/NAME`` (with ``@REVISION`` if wanted), ``local-dir:FOLDER``, a folder, or a timm name.

    Raises:
        UserError: The folder or repository does not exist or holds no exported model, or its ``config.json`` is not one.
    """
    if name.startswith("hf-hub:"):
        return _read(download(name.removeprefix("hf-hub:")))
    folder = path_of(name.removeprefix("local-dir:"))
    try:
        exists = folder.is_dir()
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): check --model.name and permissions") from error
    if exists:
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                instead = is_pickle(folder.iterdir())
                remedy = f"{instead}: make a model of it with recipes/convert.py" if instead else "; a run exports one when its training has ended"
                raise UserError(f"{folder} has no {file}: it holds no exported model{remedy}")
        return _read(folder)
    if folder.is_file():
        raise UserError(f"{folder} is not a folder{is_pickle([folder])}: recipes/convert.py makes a model from a checkpoint's tensors")
    if name.startswith(("local-dir:", ".", "~")) or "/" in name:
        raise UserError(f"there is no folder {folder}: check the path, or write hf-hub:USER/NAME for a model on the Hub")
    return None


def _read(folder: Path) -> ExportedModel:
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}): export or download the model again") from error
    cfg = _pretrained_cfg(content) if isinstance(content, dict) else None
    three = isinstance(cfg, dict) and all(isinstance(cfg.get(name), list) and len(cfg[name]) == 3 for name in ("input_size", "mean", "std"))
    if not three or not isinstance(content.get("architecture"), str):
        raise UserError(f"{folder / CONFIG} is not timm's (it names no architecture, input size or normalisation): export the model again")
    assert cfg is not None
    if wrong := _wrong(content, cfg):
        raise UserError(f"{folder / CONFIG} {wrong}: export the model again, or do not trust it")
    return ExportedModel(folder, content)


def _pretrained_cfg(content: Mapping[str, Any]) -> Any:
    """Older timm exports keep it at the top level."""
    return content.get("pretrained_cfg", content)


def _wrong(content: dict[str, Any], cfg: dict[str, Any]) -> str | None:
    """What in ``config.json`` no export of timm's or ours says."""
    if not all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in cfg["input_size"]):
        return f"has the input_size {cfg['input_size']}, no channels and sides of up to {_LARGEST_SIDE} pixels"
    for name in ("mean", "std"):
        if not all(type(value) in (int, float) and -1e6 < value < 1e6 for value in cfg[name]):
            return f"has the {name} {cfg[name]}, not three numbers of pixels"
    names = content.get("label_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "has label_names that are not a list of names"
    arguments = content.get("model_args", {})
    if not isinstance(arguments, dict):
        return "has model_args without names"
    if foreign := sorted(_BUILDERS & arguments.keys()):
        return f"has {foreign[0]} among its model_args, which is no part of a network"
    made_on = [content["rocl_transfer"].get(key) for key in _MADE_ON] if isinstance(content.get("rocl_transfer"), dict) else []
    if any(facts is not None and not (isinstance(facts, dict) and {"data", "cut"} <= facts.keys()) for facts in made_on):
        return "names no data and cut where it says what the model was made on"
    return None
