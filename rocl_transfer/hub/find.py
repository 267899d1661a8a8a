"""From a name to a folder with an exported model: a run folder, a timm folder, or the Hub."""

import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from rocl_transfer.errors import UserError, is_pickle, one_line, path_of
from rocl_transfer.hub.export import CONFIG, PROBE, PROJECTOR, WEIGHTS
from rocl_transfer.hub.failures import patiently
from rocl_transfer.training import sha256

log = logging.getLogger("rocl_transfer")
MADE_ON = ("pretrained_on", "pretrained_before_on", "trained_on")  # what our part of config.json says of a model's data
_WANTED = (CONFIG, WEIGHTS, PROBE, PROJECTOR)
_LARGEST_SIDE = 4096  # pixels of the images that a config.json may ask for: one image of them passes through the network when it is loaded
# What timm's builders take for themselves instead of handing it to the network: other weights, files and functions.
_BUILDERS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn", "pretrained_model_args",
             "checkpoint_path", "cache_dir", "features_only", "feature_cls", "feature_cfg", "kwargs_filter", "model_cfg", "pruned"}  # fmt: skip


def find_model(name: str) -> Path | None:
    """The local folder that ``name`` means, downloaded if it is on the Hub; None if it is to be a timm name.

    Args:
        name: ``hf-hub:USER/NAME`` (with ``@REVISION`` if wanted), ``local-dir:FOLDER``, a folder, or a timm name.

    Raises:
        UserError: The folder or repository does not exist or holds no exported model.
    """
    if name.startswith("hf-hub:"):
        return _download(name.removeprefix("hf-hub:"))
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
        return folder
    if folder.is_file():
        raise UserError(f"{folder} is not a folder{is_pickle([folder])}: recipes/convert.py makes a model from a checkpoint's tensors")
    if name.startswith(("local-dir:", ".", "~")) or "/" in name:
        raise UserError(f"there is no folder {folder}: check the path, or write hf-hub:USER/NAME for a model on the Hub")
    return None


@functools.cache  # a branch may move between two looks at one name
def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")

    def fetch(again: bool = False) -> Path:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(_WANTED), force_download=again))

    what = f"the model hf-hub:{name} cannot be fetched"
    folder = patiently(fetch, what)
    if damaged := _damaged(folder):
        log.info("%s of hf-hub:%s arrived damaged: fetching it again", damaged, name)
        folder = patiently(lambda: fetch(again=True), what)
        if damaged := _damaged(folder):
            raise UserError(f"{damaged} of hf-hub:{name} arrived damaged twice: check your network and your disk, and try again")
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"hf-hub:{name} has no {file}: only safetensors in timm's layout is read; recipes/convert.py converts a pickle's tensors")
    return folder


def _damaged(folder: Path) -> str | None:
    """The first file that is not what the Hub said it is; the client itself compares lengths alone, and keeps what arrived.

    The cache keeps a file under the hash that the Hub gave: SHA-256, or for small files git's.
    """
    for path in (folder / wanted for wanted in _WANTED if (folder / wanted).is_file()):
        name = path.resolve().name
        if len(name) == 64 and sha256(path) != name:
            return path.name
        if len(name) == 40:
            content = path.read_bytes()
            if hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() != name:
                return path.name
    return None


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.json`` and its ``pretrained_cfg``, which older timm exports keep at the top level.

    Raises:
        UserError: It is no JSON, or not timm's.
    """
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}): export or download the model again") from error
    cfg = content.get("pretrained_cfg", content) if isinstance(content, dict) else None
    three = isinstance(cfg, dict) and all(isinstance(cfg.get(name), list) and len(cfg[name]) == 3 for name in ("input_size", "mean", "std"))
    if not three or not isinstance(content.get("architecture"), str):
        raise UserError(f"{folder / CONFIG} is not timm's (it names no architecture, input size or normalisation): export the model again")
    assert cfg is not None
    if wrong := _wrong(content, cfg):
        raise UserError(f"{folder / CONFIG} {wrong}: export the model again, or do not trust it")
    return content, dict(cfg)


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
    made_on = [content["rocl_transfer"].get(key) for key in MADE_ON] if isinstance(content.get("rocl_transfer"), dict) else []
    if any(facts is not None and not (isinstance(facts, dict) and {"data", "cut"} <= facts.keys()) for facts in made_on):
        return "names no data and cut where it says what the model was made on"
    return None


def own_facts(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says under our key; nothing if another made it."""
    found = read_config(folder)[0].get("rocl_transfer", {})
    return found if isinstance(found, dict) else {}


def own_doubts(folder: Path) -> list[str]:
    """What made its accuracy doubtful when it was exported, one sentence each."""
    doubts = own_facts(folder).get("doubts", [])
    return [one_line(doubt)[:1000] for doubt in doubts if isinstance(doubt, str)] if isinstance(doubts, list) else []


def native_size(name: str) -> int | None:
    """The image size in pixels that an exported model was made for; None for a timm name."""
    folder = find_model(name)
    return None if folder is None else int(read_config(folder)[1]["input_size"][-1])
