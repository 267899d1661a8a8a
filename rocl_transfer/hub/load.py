"""Models by name: a run folder, a timm folder, the Hub, or timm itself. Only safetensors is read."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm

from rocl_transfer.data import ImageData
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import sha256
from rocl_transfer.hub.export import CONFIG, WEIGHTS
from rocl_transfer.models import PixelModel, add_head, create_backbone, create_classifier, has_weights


def find_model(name: str) -> Path | None:
    """The local folder that ``name`` means, downloaded if it is on the Hub; None if it is to be a timm name.

    Args:
        name: ``hf-hub:USER/NAME`` (with ``@REVISION`` if wanted), ``local-dir:FOLDER``, a folder, or a timm name.

    Raises:
        UserError: The folder or repository does not exist or holds no exported model.
    """
    if name.startswith("hf-hub:"):
        return _download(name.removeprefix("hf-hub:"))
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if folder.is_dir():
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise UserError(f"{folder} has no {file}: it holds no exported model; a run exports one when its training has ended")
        return folder
    if name.startswith(("local-dir:", ".", "~")) or "/" in name:
        raise UserError(f"there is no folder {folder}: check the path, or write hf-hub:USER/NAME for a model on the Hub")
    return None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, EntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"the model hf-hub:{name} cannot be fetched ({reason}): check its name, your network and your access") from error
    return find_model(str(folder))  # type: ignore[return-value]


def _config(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is no JSON ({error}): export or download the model again") from error
    return content


def _facts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.json`` and its ``pretrained_cfg``, which older timm exports keep at the top level."""
    content = _config(folder)
    cfg = content.get("pretrained_cfg", content)
    if not {"input_size", "mean", "std"} <= set(cfg) or "architecture" not in content:
        raise UserError(f"{folder / CONFIG} is not timm's (it names no architecture, input size or normalisation): export the model again")
    return content, cfg


def native_size(name: str) -> int | None:
    """The image size in pixels that an exported model was made for; None for a timm name."""
    folder = find_model(name)
    return None if folder is None else int(_facts(folder)[1]["input_size"][-1])


def _load(folder: Path) -> PixelModel:
    content, cfg = _facts(folder)
    architecture = str(content["architecture"])
    if not timm.is_model(architecture):
        raise UserError(f"{folder} is of architecture {architecture!r}, which neither timm {timm.__version__} nor this package knows")
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {architecture} or is damaged ({str(error).strip().splitlines()[0][:200]})") from error
    names = content.get("label_names") or [str(i) for i in range(content.get("num_classes") or 0)]
    return PixelModel(net, architecture, cfg["input_size"][-1], cfg["mean"], cfg["std"], content.get("model_args"), names).eval()


def load_classifier(name: str) -> PixelModel:
    """A classifier by name: images (N, 3, H, W) in [0, 1] -> logits (N, K), in eval mode, with ``class_names`` and ``input_size``.

    Args:
        name: See :func:`find_model`; a timm name brings its published weights and its own head.

    Raises:
        UserError: There is no such model, it is damaged, or it has no classes.
    """
    folder = find_model(name)
    if folder is None:
        return create_classifier(name).eval()
    model = _load(folder)
    if not model.class_names:
        raise UserError(f"{name} is no classifier: give a run of finetune or linear_probe, or another exported model that has classes")
    return model


def load_backbone(name: str, image_size: int | None = None, pretrained: bool | None = None) -> PixelModel:
    """A backbone by name: images (N, 3, H, W) in [0, 1] -> features (N, D), in eval mode. A classifier's head is taken off.

    Args:
        name: See :func:`find_model`.
        image_size: Side in pixels; needed for a timm name.
        pretrained: For a timm name, with its published weights (default: where it has any).

    Raises:
        UserError: There is no such model, it is damaged, or it does not take such images.
    """
    model = _load_any(name, image_size, pretrained)
    if model.class_names:
        model.net.reset_classifier(0)
        model.class_names = ()
    return model


def load_start(name: str, class_names: Sequence[str], image_size: int | None = None, pretrained: bool | None = None) -> tuple[PixelModel, bool]:
    """A classifier of ``class_names`` to train: a backbone gets a new head, a classifier keeps its own where its classes are these.

    Args:
        name: See :func:`find_model`.
        class_names: One a logit, in order.
        image_size: Side in pixels; needed for a timm name.
        pretrained: For a timm name, with its published weights (default: where it has any).

    Returns:
        The classifier in eval mode, and whether it kept its head.

    Raises:
        UserError: There is no such model, it is damaged, it does not take such images, or its head is not one linear layer.
    """
    model = _load_any(name, image_size, pretrained)
    kept = model.class_names == tuple(class_names)
    return (model if kept else add_head(model, class_names)), kept


def is_trained(name: str, pretrained: bool | None = None) -> bool:
    """Whether ``name`` brings trained weights: an exported model does, a timm name where it has any and they are not refused."""
    if find_model(name) is not None:
        return True
    return timm.is_model(name) and has_weights(name) if pretrained is None else pretrained


def _load_any(name: str, image_size: int | None, pretrained: bool | None) -> PixelModel:
    """Backbone or classifier, for images of ``image_size``."""
    folder = find_model(name)
    if folder is None:
        return create_backbone(name, image_size or 224, is_trained(name, pretrained)).eval()
    if pretrained is not None:
        raise UserError(f"--model.pretrained has no effect with {name}, which always brings its weights: leave it out")
    model = _load(folder)
    if image_size is not None and image_size != model.input_size:
        if model.net.pretrained_cfg.get("fixed_input_size"):
            raise UserError(f"{name} takes images of {model.input_size} px alone: leave out --data.image_size {image_size}")
        model.input_size = image_size
    return model


def identify(name: str) -> dict[str, str | None]:
    """Which weights ``name`` means: as it was given, and the SHA-256 of an exported model's file."""
    folder = find_model(name)
    return {"name": name, "sha256": None if folder is None else sha256(folder / WEIGHTS)}


def note_pretraining(data: ImageData, name: str) -> ImageData:
    """``data`` with a note where the model ``name`` was trained on the same images cut in another way, test images perhaps among them."""
    before, notes = _made_on(name), []
    for key, how, labels in (("pretrained_on", "pre-trained", "without"), ("trained_on", "trained", "with")):
        if key in before and before[key]["data"] == data.name and before[key]["cut"] != data.cut:
            notes.append(f"the backbone was {how} with another cut of this data, so it may have seen test images ({labels} their labels)")
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def made_from(name: str, data: ImageData) -> dict[str, Any]:
    """What the export of a model says of its making: the weights it began with, and all the data that it and they were trained on."""
    return {"backbone": identify(name), **_made_on(name), "trained_on": {"data": data.name, "cut": data.cut}}


def _made_on(name: str) -> dict[str, Any]:
    folder = find_model(name)
    facts = {} if folder is None else _config(folder).get("rocl_transfer", {})
    return {key: facts[key] for key in ("pretrained_on", "trained_on") if key in facts}
