"""A foreign checkpoint to a model of ours, and to a folder in timm's layout."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from rocl_transfer.errors import UserError, did_you_mean, path_of
from rocl_transfer.hub.conversion import head_and_normalization, matching
from rocl_transfer.hub.conversion.building import build, name_classes
from rocl_transfer.hub.conversion.families import AVERAGED, FAMILIES, Normalization, assumed, choose_norms, recognize, translate
from rocl_transfer.hub.conversion.matching import Fit
from rocl_transfer.hub.conversion.reading import Checkpoint, read_checkpoint
from rocl_transfer.hub.conversion.summary import left_out, notes
from rocl_transfer.hub.export import CONFIG, PROJECTOR, WEIGHTS
from rocl_transfer.models import PixelModel
from rocl_transfer.options import Number, require

_AVERAGES = rf"{AVERAGED}|(^|\.)(momentum_\w+|encoder_k)$"


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """What the file does not decide.

    Args:
        family: Whose checkpoint it is; auto looks at its names. acl is also DynACL's and AIR's.
        architecture: A timm name (default: the ResNet whose shapes they are).
        bn: Which of two sets of BatchNorm statistics to take: adversarial or clean; auto: adversarial.
        copy: Which network to take from a file that holds several, by its place there, such as encoder_q, or . for the outermost
            dictionary (default: the family's choice, or the averaged one).
        head: A file with a linear layer, or none to leave out the checkpoint's own (default: keep that one).
        projector: A file with a projector (default: the one in the checkpoint, if it has RoCL's shape).
        label_names: Names of the classes in the order of the logits: a list, or a file with one on each line (default: 0, 1, ...).
        image_size: Side in pixels (default: 32 with a 3x3 stem, else timm's).
        mean: What is subtracted from images in [0, 1], one number per channel (default: what the file says, else what the family trains with).
        std: What they are divided by next, one number per channel.
        drop: Prefixes of names in the file that are not part of the network.
    """

    family: Literal["auto", "rocl", "acl", "deacl", "solo-learn", "robustness", "robustbench", "torchvision", "timm"] = "auto"
    architecture: str | None = None
    bn: Literal["auto", "adversarial", "clean"] = "auto"
    copy: str | None = None
    head: str | None = None
    projector: str | None = None
    label_names: tuple[str, ...] | str | None = None
    image_size: int | None = None
    mean: tuple[Number, ...] = field(default_factory=tuple)
    std: tuple[Number, ...] = field(default_factory=tuple)
    drop: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        require(self.image_size is None or 0 < self.image_size <= 4096, f"--image_size is {self.image_size}: give pixels, such as 32")
        for name in ("mean", "std"):
            value = getattr(self, name)
            require(len(value) in (0, 3), f"--{name} has {len(value)} numbers: give one per channel, such as [0.485, 0.456, 0.406]")
        require(len(self.mean) == len(self.std), "--mean and --std belong together: give both")
        if self.mean:
            finite = all(map(math.isfinite, (*self.mean, *self.std)))
            small = max(map(abs, self.mean)) <= 1 and min(self.std) > 0 and max(self.std) <= 10
            require(finite and small, "--mean and --std are not of pixels in [0, 1]: divide numbers of 0 to 255 by 255; std is above 0")
        require(all(self.drop), "--drop has an empty name, which every name begins with: leave it out")
        names = self.label_names
        doubled = None if names is None or isinstance(names, str) else next((name for name in names if names.count(name) > 1), None)
        require(doubled is None, f"--label_names has {doubled} twice: name each class once")

    @property
    def normalization(self) -> Normalization | None:
        """Mean and std that images in [0, 1] are normalised with; None: those in the file, or else the family's."""
        return (tuple(map(float, self.mean)), tuple(map(float, self.std))) if self.mean else None


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Args:
        model: A classifier if a linear head was found or given, otherwise a backbone; in eval mode.
        projector: RoCL's projector, where one of its shape was found or given.
        mapping: Names in the file -> names in the export.
        facts: What the export's ``config.json`` says of it, under ``converted_from``.
        notes: What the user should know, one sentence each.
    """

    model: PixelModel
    projector: nn.Sequential | None
    mapping: Mapping[str, str]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def convert(file: str | Path, options: ConversionOptions | None = None) -> Conversion:
    """Read a checkpoint of another project; its outputs stay what they were, for images in [0, 1].

    Args:
        file: From torch.save or safetensors.
        options: What the file does not decide.

    Raises:
        UserError: The file cannot be read or would run code, fits no network, or does not say enough; or a wish has no effect.
    """
    options = options or ConversionOptions()
    checkpoint = read_checkpoint(file)
    head = None if options.head in (None, "none") else read_checkpoint(str(options.head))
    projector = None if options.projector is None else read_checkpoint(options.projector)
    try:
        return _convert(checkpoint, options, head, projector)
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


def _find_network(checkpoint: Checkpoint, options: ConversionOptions) -> _Network:
    kind = recognize(checkpoint, options.family)
    norm, sets = choose_norms(checkpoint.tensors, None if options.bn == "auto" else options.bn)
    names = translate(checkpoint.tensors, norm)
    tensors = {name: checkpoint.tensors[name] for name in names}
    size = _fixed_size(options)
    fits = matching.find(tensors, names, options.architecture, size)
    fit = matching.choose_copy(fits, tensors, FAMILIES[kind], options.copy)
    architecture = fit.architecture if options.architecture else _with_stem(fit, kind, options.family)
    bn = {"taken": "adversarial" if norm else "clean", "sets": sets} if sets > 1 else None
    others = [other for other in fits if other is not fit]
    return _Network(kind, bn, names, tensors, fit, others, architecture, size, *matching.head_of(architecture, size))


def _convert(checkpoint: Checkpoint, options: ConversionOptions, other_head: Checkpoint | None, other_projector: Checkpoint | None) -> Conversion:
    net = _find_network(checkpoint, options)
    head = inside = (
        head_and_normalization.find_head(net.fit, net.names, net.tensors, net.width, net.head, options.copy is None) if options.head is None else None
    )
    if other_head is not None:
        if not net.head:
            raise UserError(f"{net.architecture} has no head of one linear layer: leave out --head")
        head = head_and_normalization.read_head(other_head, net.width)
    stored, normalized_by = (
        head_and_normalization.find_normalization(net.fit, net.others, net.tensors) if options.normalization is None else (None, ())
    )
    taken = {*net.fit.sources.values(), *(inside.names if inside else ()), *normalized_by}
    beside = head_and_normalization.find_projector(net.fit, net.names, net.tensors, taken)
    projector, projector_from = _projector(other_projector, beside, net.width)
    if projector is not None and other_projector is None:
        taken.update(beside)
    dropped = head_and_normalization.check_leftovers(net.fit, net.others, net.tensors, taken, options.drop)

    classes = name_classes(_listed(options.label_names), head)
    normalization = options.normalization or stored or _assumed(net, len(classes))
    origin = "given" if options.normalization else f"in the file ({', '.join(normalized_by)})" if stored else f"assumed for {net.kind}"
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
    model = _build(net, options.image_size, head, normalization, classes)
    mapping = {source: name for name, source in net.fit.sources.items()}
    if head is not None:
        mapping |= dict(zip(head.names, (f"{net.head}.weight", f"{net.head}.bias"), strict=False))
    return Conversion(model, projector, mapping, facts, tuple(notes(facts, model, net.kind, len(mapping), len(checkpoint.tensors))))


def _build(
    net: _Network, image_size: int | None, head: head_and_normalization.Linear | None, normalization: Normalization, classes: Sequence[str]
) -> PixelModel:
    import timm

    weights = {name: net.tensors[source] for name, source in net.fit.sources.items()}
    if head is not None:
        weights |= {f"{net.head}.weight": head.weight, f"{net.head}.bias": head.bias}
    size = net.fixed_size or image_size or timm.get_pretrained_cfg(net.architecture).input_size[-1]
    options = {} if net.fixed_size is None else {"img_size": size}
    return build(net.architecture, options, size, weights, normalization, classes)


def _fixed_size(options: ConversionOptions) -> int | None:
    """The image size, for a named architecture that is made for one."""
    import timm

    if options.architecture is None:
        return None
    if not timm.is_model(options.architecture) or "." in options.architecture:
        near = did_you_mean(options.architecture, timm.list_models())
        raise UserError(f"timm has no architecture {options.architecture!r}{near}; a tag of published weights is none of its name")
    cfg = timm.get_pretrained_cfg(options.architecture)
    return (options.image_size or cfg.input_size[-1]) if cfg.fixed_input_size else None


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
        found = head_and_normalization.to_projector({name: tensor for name, tensor in other.tensors.items() if tensor.dim() > 0}, width)
        if found is None:
            raise UserError(
                f"--projector {other.path} has another shape than RoCL's ({width}, 2048, 128, two linear layers with biases): leave it out"
            )
        return found, head_and_normalization.describe(other)
    if not beside:
        return None, None
    found, place = head_and_normalization.to_projector(beside, width), re.sub(r"(\.\w+){1,2}$", "", next(iter(beside)))
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


def _listed(names: Sequence[str] | str | None) -> list[str] | None:
    """The names themselves, also where a file with one on each line was given."""
    if not isinstance(names, str):
        return None if names is None else list(names)
    try:
        lines = path_of(names).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--label_names {names} is not a file of names: give one name on each line, or a list such as [cat, dog]") from error
    return [line.strip() for line in lines if line.strip()]
