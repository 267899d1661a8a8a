"""A foreign checkpoint to a model of ours, and to a folder in timm's layout."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.hub.conversion import around, matching
from rocl_transfer.hub.conversion.account import left_out, notes
from rocl_transfer.hub.conversion.building import build, name_classes
from rocl_transfer.hub.conversion.families import AVERAGED, FAMILIES, Normalization, assumed, choose_norms, recognize, translate
from rocl_transfer.hub.conversion.matching import Fit
from rocl_transfer.hub.conversion.reading import Checkpoint, read_checkpoint
from rocl_transfer.hub.export import CONFIG, PROJECTOR, WEIGHTS
from rocl_transfer.models import PixelModel

_AVERAGES = rf"{AVERAGED}|(^|\.)(momentum_\w+|encoder_k)$"


@dataclass(frozen=True)
class Wishes:
    """What is not left to the file.

    Args:
        family: A name of :data:`FAMILIES`, or auto.
        architecture: A timm name; None: the ResNet whose shapes they are.
        bn: ``adversarial`` or ``clean``, of two sets of BatchNorm statistics; None: adversarial.
        copy: Where in the file the network is, of several places (``.``: the outermost); None: the family's choice, or the averaged one.
        head: A file with a linear layer, or ``none`` to leave out one that the network has; None: keep that.
        projector: A file with a projector; None: one that stands beside the network.
        image_size: Side in pixels; None: 32 with a 3x3 stem, else timm's.
        normalization: Mean and std that images in [0, 1] are normalised with; None: those in the file, or else the family's.
        label_names: Of the classes; None: 0, 1, ...
        drop: Beginnings of names in the file that are no part of the network.
    """

    family: str = "auto"
    architecture: str | None = None
    bn: str | None = None
    copy: str | None = None
    head: str | None = None
    projector: str | None = None
    image_size: int | None = None
    normalization: Normalization | None = None
    label_names: Sequence[str] | None = None
    drop: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Args:
        model: A classifier where a linear head was found or given, otherwise a backbone; in eval mode.
        projector: RoCL's projector, where one of its shape was found or given.
        mapping: Names in the file -> names in the export.
        facts: What the export's ``config.json`` says of it, under ``converted_from``.
        notes: What the user should know, a sentence each.
    """

    model: PixelModel
    projector: nn.Sequential | None
    mapping: Mapping[str, str]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def convert(file: str | Path, wishes: Wishes | None = None) -> Conversion:
    """Read a checkpoint of another project; its outputs stay what they were, for images in [0, 1].

    Args:
        file: Of torch.save or safetensors.
        wishes: What is not left to the file.

    Raises:
        UserError: The file cannot be read or would run code, fits no network, or does not say enough; or a wish has no effect.
    """
    wishes = wishes or Wishes()
    checkpoint = read_checkpoint(file)
    head = None if wishes.head in (None, "none") else read_checkpoint(str(wishes.head))
    projector = None if wishes.projector is None else read_checkpoint(wishes.projector)
    try:
        return _convert(checkpoint, wishes, head, projector)
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error


@dataclass(frozen=True)
class _Network:
    """The network that was found in a file, and what is known of it."""

    kind: str
    bn: dict[str, Any] | None  # which of two sets of statistics
    names: Mapping[str, str]  # in the file -> as timm would call them, without the other set of statistics
    tensors: Mapping[str, Tensor]
    fit: Fit
    others: Sequence[Fit]
    architecture: str
    fixed_size: int | None
    head: str  # timm's name for it
    width: int


def _find_network(checkpoint: Checkpoint, wishes: Wishes) -> _Network:
    kind = recognize(checkpoint, wishes.family)
    norm, sets = choose_norms(checkpoint.tensors, wishes.bn)
    names = translate(checkpoint.tensors, norm)
    tensors = {name: checkpoint.tensors[name] for name in names}
    size = _fixed_size(wishes)
    fits = matching.find(tensors, names, wishes.architecture, size)
    fit = matching.choose_copy(fits, tensors, FAMILIES[kind], wishes.copy)
    architecture = fit.architecture if wishes.architecture else _with_stem(fit, kind, wishes.family)
    bn = {"taken": "adversarial" if norm else "clean", "sets": sets} if sets > 1 else None
    others = [other for other in fits if other is not fit]
    return _Network(kind, bn, names, tensors, fit, others, architecture, size, *matching.head_of(architecture, size))


def _convert(checkpoint: Checkpoint, wishes: Wishes, other_head: Checkpoint | None, other_projector: Checkpoint | None) -> Conversion:
    net = _find_network(checkpoint, wishes)
    head = inside = around.find_head(net.fit, net.names, net.tensors, net.width, net.head, wishes.copy is None) if wishes.head is None else None
    if other_head is not None:
        if not net.head:
            raise UserError(f"{net.architecture} has no head of one linear layer: leave out --head")
        head = around.read_head(other_head, net.width)
    stored, normalized_by = around.find_normalization(net.fit, net.others, net.tensors) if wishes.normalization is None else (None, ())
    taken = {*net.fit.sources.values(), *(inside.names if inside else ()), *normalized_by}
    beside = around.find_projector(net.fit, net.names, net.tensors, taken)
    projector, projector_from = _projector(other_projector, beside, net.width)
    if projector is not None and other_projector is None:
        taken.update(beside)
    dropped = around.check_leftovers(net.fit, net.others, net.tensors, taken, wishes.drop)

    classes = name_classes(wishes.label_names, head)
    normalization = wishes.normalization or stored or _assumed(net, len(classes))
    origin = "given" if wishes.normalization else f"in the file ({', '.join(normalized_by)})" if stored else f"assumed for {net.kind}"
    facts = {
        "file": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "family": net.kind,
        "copy": net.fit.place,
        "averaged": bool(re.search(_AVERAGES, net.fit.place)),
        "other_copies": [other.place for other in net.others],
        "batch_norm": net.bn,
        "normalization": origin,
        "head": head and head.source,
        "projector": projector_from,
        "left_out": left_out(checkpoint, net.names, dropped),
    }
    model = _build(net, wishes.image_size, head, normalization, classes)
    mapping = {source: name for name, source in net.fit.sources.items()}
    if head is not None:
        mapping |= dict(zip(head.names, (f"{net.head}.weight", f"{net.head}.bias"), strict=False))
    return Conversion(model, projector, mapping, facts, tuple(notes(facts, model, net.kind, len(mapping), len(checkpoint.tensors))))


def _build(net: _Network, image_size: int | None, head: around.Linear | None, normalization: Normalization, classes: Sequence[str]) -> PixelModel:
    import timm

    weights = {name: net.tensors[source] for name, source in net.fit.sources.items()}
    if head is not None:
        weights |= {f"{net.head}.weight": head.weight, f"{net.head}.bias": head.bias}
    size = net.fixed_size or image_size or timm.get_pretrained_cfg(net.architecture).input_size[-1]
    options = {} if net.fixed_size is None else {"img_size": size}
    return build(net.architecture, options, size, weights, normalization, classes)


def _fixed_size(wishes: Wishes) -> int | None:
    """The image size, for a named architecture that is made for one."""
    import timm

    if wishes.architecture is None:
        return None
    if not timm.is_model(wishes.architecture) or "." in wishes.architecture:
        near = did_you_mean(wishes.architecture, timm.list_models())
        raise UserError(f"timm has no architecture {wishes.architecture!r}{near}; a tag of published weights is none of its name")
    cfg = timm.get_pretrained_cfg(wishes.architecture)
    return (wishes.image_size or cfg.input_size[-1]) if cfg.fixed_input_size else None


def _with_stem(fit: Fit, kind: str, asked: str) -> str:
    """The architecture, once it is sure by how much its stem pads, which shapes do not tell."""
    import timm

    if not fit.architecture.endswith("_cifar") or any(".shortcut." in source for source in fit.sources.values()):
        return fit.architecture
    if FAMILIES[kind].stem_padding == 2:
        name = f"{fit.architecture}_pad2"
        if not timm.is_model(name):
            raise UserError(f"{kind} pads the 3x3 stem by 2, and this package has no such {fit.architecture}: give --architecture {fit.architecture}")
        return name
    if asked == "auto" and re.search(r"(^|\.)(backbone|encoder)$", fit.place) and kind != "acl":
        raise UserError("its 3x3 stem may pad by 2, as solo-learn's does, or by 1: give --family solo-learn or --family timm")
    return fit.architecture


def _projector(other: Checkpoint | None, beside: Mapping[str, Tensor], width: int) -> tuple[nn.Sequential | None, str | None]:
    """The projector of another file, or the one beside the network; and where it comes from, or why it is left out."""
    if other is not None:
        found = around.to_projector({name: tensor for name, tensor in other.tensors.items() if tensor.dim() > 0}, width)
        if found is None:
            raise UserError(
                f"--projector {other.path} has another shape than RoCL's ({width}, 2048, 128, two linear layers with biases): leave it out"
            )
        return found, around.describe(other)
    if not beside:
        return None, None
    found, place = around.to_projector(beside, width), re.sub(r"(\.\w+){1,2}$", "", next(iter(beside)))
    return found, place if found is not None else f"{place}: left out, for its shape is not RoCL's"


def _assumed(net: _Network, classes: int) -> Normalization:
    import timm

    cfg = timm.get_pretrained_cfg(net.architecture)
    return assumed(net.kind, cfg.input_size[-1] == 32, classes, (tuple(cfg.mean), tuple(cfg.std)))


def check_folder(folder: Path) -> Path:
    """``folder``, once it is sure that no model would be written over.

    Raises:
        UserError: It holds one.
    """
    if held := [name for name in (CONFIG, WEIGHTS, PROJECTOR) if (folder / name).exists()]:
        raise UserError(f"{folder} holds a model already ({held[0]}): choose another --output_dir")
    return folder
