"""Models by name: a run folder, a timm folder, the Hub, timm itself, or a function. Only safetensors is read, and what is read is checked."""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from rocl_transfer.errors import UserError
from rocl_transfer.hub.export import OUTPUT_CHECK, PROJECTOR, WEIGHTS, fingerprint
from rocl_transfer.hub.exported import ExportedModel
from rocl_transfer.hub.named import NamedModel, look_up
from rocl_transfer.hub.options import ModelOptions
from rocl_transfer.models import PixelModel, add_head, create_backbone, create_classifier, drop_head, projector
from rocl_transfer.training import sha256 as sha256_of

log = logging.getLogger("rocl_transfer")

_AGAIN = "download or export the model again"
_AGREE = 1e-3  # of the largest output: another machine's rounding moves them by 1e-5


def load_classifier(model: str | NamedModel, sha256: str | None = None) -> PixelModel:
    """A classifier by name: images (N, 3, H, W) in [0, 1] -> logits (N, K), in eval mode, with ``class_names`` and ``input_size``.

    Args:
        model: Its name, see :func:`find`, or what was looked up; a timm name brings its published weights and its own head.
        sha256: What the file of an exported model's weights must have.

    Raises:
        UserError: There is no such model, it is damaged or another one, or it has no classes.
    """
    asked = look_up(model, sha256=sha256) if isinstance(model, str) else model
    if asked.exported is None:
        _refuse_sha256(asked)
        return create_classifier(asked.name).eval()
    classifier = _load(asked.exported, asked.options.sha256)
    if not classifier.class_names:
        raise UserError(f"{asked.name} is not a classifier: give a run of finetune or linear_probe, or another exported model that has classes")
    for doubt in asked.exported.doubts:
        log.warning("%s was exported with a doubt: %s", asked.name, doubt)
    return classifier


def load_backbone(model: str | ModelOptions | NamedModel, image_size: int | None = None, **more: Any) -> PixelModel:
    """A backbone by name: images (N, 3, H, W) in [0, 1] -> features (N, D), in eval mode. A classifier's head is taken off.

    Args:
        model: Which, or its name; see :func:`find`.
        image_size: Side in pixels; needed for a timm name.
        more: What else :class:`ModelOptions` takes, such as ``sha256`` or ``pretrained``, beside a name.

    Raises:
        UserError: There is no such model, it is damaged or another one, or it does not take such images.
    """
    return drop_head(_load_any(look_up(model, **more), image_size))


def load_start(
    model: str | ModelOptions | NamedModel, class_names: Sequence[str], image_size: int | None = None
) -> tuple[PixelModel, bool]:  # fmt: skip
    """A classifier of ``class_names`` to train: a backbone gets a new head, a classifier keeps its own where its classes are these.

    Args:
        model: Which, or its name; see :func:`find`.
        class_names: One a logit, in order.
        image_size: Side in pixels; needed for a timm name.

    Returns:
        The classifier in eval mode, and whether it kept its head.

    Raises:
        UserError: There is no such model, it is damaged or another one, it does not take such images, or its head is not one linear layer.
    """
    start = _load_any(look_up(model), image_size)
    kept = start.class_names == tuple(class_names)
    return (start if kept else add_head(start, class_names)), kept


def load_model(model: str | ModelOptions | NamedModel, image_size: int | None = None) -> PixelModel:
    """A model by name as it is: a classifier with its head, a backbone without one, in eval mode.

    Args:
        model: Which, or its name; see :func:`find`. A timm name brings its published head, if it has one.
        image_size: Side in pixels; needed for a timm name.

    Raises:
        UserError: There is no such model, it is damaged or another one, or it does not take such images.
    """
    return _load_any(look_up(model), image_size, head=True)


def load_projector(
    model: str | NamedModel, num_features: int, make: Callable[[int], nn.Module] = projector
) -> tuple[nn.Module, bool]:  # fmt: skip
    """The projector for a backbone: the one that its pre-training left, or a new one; and whether it was left.

    Args:
        model: The backbone, or its name.
        num_features: Its width.
        make: A new one for a width. What another method's pre-training left, with other layers than it has, is not taken, and the log says so.

    Raises:
        UserError: There is one, and it is damaged or of another width.
    """
    asked, head = look_up(model), make(num_features)
    wanted = None if asked.exported is None else asked.exported.facts.get("projector_sha256")
    if asked.exported is None or wanted is None:  # without this fact, a projector that lies there is another model's
        return head, False
    file = asked.exported.folder / PROJECTOR
    if not file.is_file() or sha256_of(file) != wanted:
        raise UserError(f"{file} is not the file that was exported (sha256 {wanted}): {_AGAIN}")
    try:
        left = load_file(file)
        if left.keys() != head.state_dict().keys():
            log.info("the projector of %s was made for another method: a new one is learned", asked.name)
            return head, False
        head.load_state_dict(left)
    except Exception as error:
        raise UserError(f"{file} is damaged or no projector of {num_features} features ({_first(error)}): {_AGAIN}") from error
    return head, True


def import_model(reference: str) -> nn.Module:
    """The torch module that ``module:function`` gives; modules are also looked for in the working directory.

    Raises:
        UserError: There is no such module or function, it fails, or gives something else.
    """
    module, _, function = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--model.callable {reference} cannot be imported ({error}): check its name, and that it lies in the working directory"
        ) from error
    try:
        model = build()
    except Exception as error:
        raise UserError(f"--model.callable {reference} failed ({type(error).__name__}: {str(error).strip().splitlines()[:1]})") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"--model.callable {reference} gave {type(model).__name__}: it must give a torch module")
    return model


def _load_any(asked: NamedModel, image_size: int | None, head: bool = False) -> PixelModel:
    """Backbone or classifier, for images of ``image_size``."""
    if asked.exported is None:
        _refuse_sha256(asked)
        trained = asked.is_trained
        return create_backbone(asked.name, image_size or 224, trained, head and trained).eval()
    if asked.options.pretrained is not None:
        raise UserError(f"--model.pretrained has no effect with {asked.name}, which always brings its weights: leave it out")
    model = _load(asked.exported, asked.options.sha256)
    if image_size is not None and image_size != model.input_size:
        if model.net.pretrained_cfg.get("fixed_input_size"):
            raise UserError(f"{asked.name} only takes images of {model.input_size} px: leave out --data.image_size {image_size}")
        model.input_size = image_size
    return model


def _refuse_sha256(asked: NamedModel) -> None:
    if asked.options.sha256 is not None:
        raise UserError(f"{asked.name} is timm's, which checks its own downloads: leave out --model.sha256, or give an exported model")


def _load(exported: ExportedModel, sha256: str | None) -> PixelModel:
    import timm

    folder, architecture = exported.folder, exported.architecture
    if not timm.is_model(architecture):
        raise UserError(f"{folder} is of architecture {architecture!r}, which neither timm {timm.__version__} nor this package knows")
    _check_file(exported, sha256)
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
        names = exported.class_names or [str(i) for i in range(net.num_classes)]
        model = PixelModel(net, architecture, exported.input_size, exported.mean, exported.std, exported.model_args, names).eval()
    except Exception as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {architecture} or is damaged ({_first(error)}): {_AGAIN}") from error
    if len(names) != net.num_classes:
        raise UserError(f"{folder} names {len(names)} classes and its network has {net.num_classes}: {_AGAIN}")
    _check_outputs(model, exported.folder)
    model.value_range = exported.value_range
    return model


def _check_file(exported: ExportedModel, sha256: str | None) -> None:
    """Whether the weights are those that were asked for, and those that were exported."""
    for how, digest in {"asked for": sha256, "exported": exported.facts.get("sha256")}.items():
        if digest is not None and str(digest).lower() != exported.sha256:
            raise UserError(f"{exported.folder / WEIGHTS} is not the file that was {how} (sha256 {exported.sha256}, not {digest}): {_AGAIN}")


def _check_outputs(model: PixelModel, folder: Path) -> None:
    """Whether the model still does what it did when it was exported; other versions of timm may build it differently."""
    import timm

    if not (folder / OUTPUT_CHECK).is_file():
        return
    try:
        known = load_file(folder / OUTPUT_CHECK)
        before, images = known["outputs"], known["images"]
    except Exception as error:
        raise UserError(f"{folder / OUTPUT_CHECK} is damaged ({_first(error)}): {_AGAIN}") from error
    after = fingerprint(model, images)
    if after.shape != before.shape:
        raise UserError(f"{folder} gives {tuple(after.shape)} where it gave {tuple(before.shape)} when it was exported: {_AGAIN}")
    off = float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))
    if not off < _AGREE:
        raise UserError(
            f"{folder} does not give what it gave when it was exported (off by {off:.1e} of its largest output, with timm {timm.__version__}): "
            f"{_AGAIN}, or install the versions that its card names"
        )


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
