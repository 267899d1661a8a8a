"""What stands around the network in a file: mean and std, a linear head, a projector, and what may be left out."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from rocl_transfer.errors import UserError
from rocl_transfer.hub.conversion.families import Normalization
from rocl_transfer.hub.conversion.matching import Fit
from rocl_transfer.hub.conversion.reading import Checkpoint
from rocl_transfer.models import projector

_STDS = {"mean": "std", "new_mean": "new_std", "mu": "sigma"}
_MEAN_OR_STD = re.compile(r"(^|\.)(mean|new_mean|mu|std|new_std|sigma)$")
_HEADS = ("fc", "linear", "classifier", "head", "last_linear", "classifier.classifier")
_PROJECTORS = ("projector", "projection_head", "proj_head", "fc", "head")
# Parts of a training that are not the network: what self-supervised methods learn beside it, and counters.
_BESIDE = re.compile(
    r"(^|\.)(momentum_\w+|projector|projection_head|proj_head|predictor|\w*queue\w*|prototypes|centers?|centroids|knn"
    r"|fc|linear|head|last_linear|classifier\w*|n_averaged)(\.|$)"
)


@dataclass(frozen=True)
class Linear:
    """A head: features (N, D) -> logits (N, K).

    Args:
        source: Where it was found.
        weight: (K, D).
        bias: (K,).
        names: Names of weight and bias in the file.
    """

    source: str
    weight: Tensor
    bias: Tensor
    names: tuple[str, ...]


def find_normalization(fit: Fit, others: Iterable[Fit], tensors: Mapping[str, Tensor]) -> tuple[Normalization | None, tuple[str, ...]]:
    """Mean and std that the file brings for one copy of the network, and the names they have there; None if it has none.

    Args:
        fit: The copy.
        others: Other copies; what stands in them is theirs.
        tensors: The file's.

    Raises:
        UserError: They are no mean and std.
    """
    foreign = _elsewhere(fit, others)
    pairs = []
    for mean in tensors:
        place, dot, last = mean.rpartition(".")
        std = place + dot + _STDS.get(last, "?")
        if std in tensors and tensors[mean].numel() == tensors[std].numel() == 3 and not mean.startswith(foreign):
            pairs.append((mean, std))
    if not pairs:
        return None, ()
    chosen = max(pairs, key=lambda pair: (_common(fit.place, pair[0]), -len(pair[0])))
    centre, spread = (tuple(round(value, 7) for value in tensors[name].double().flatten().tolist()) for name in chosen)
    if not all(-10 < value < 10 for value in centre) or not all(0 < value < 10 for value in spread):
        raise UserError(
            f"{chosen[0]} and {chosen[1]} are {centre} and {spread}, which cannot be the mean and std of pixels in [0, 1]: give --mean and --std"
        )
    return (centre, spread), chosen


def _elsewhere(fit: Fit, others: Iterable[Fit]) -> tuple[str, ...]:
    """What names begin with that belong to other copies; a copy around this one has no names of its own kind."""
    return tuple(f"{other.place}." for other in others if other.place and not f"{fit.place}.".startswith(f"{other.place}."))


def _common(one: str, other: str) -> int:
    """How many outer parts two dotted names share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def find_head(fit: Fit, names: Mapping[str, str], tensors: Mapping[str, Tensor], width: int, own: str, beside: bool) -> Linear | None:
    """The linear head of one copy of the network.

    Args:
        fit: The copy.
        names: The file's names -> as timm would call them.
        tensors: The file's.
        width: D, of the features.
        own: What timm calls the head of this network.
        beside: Also look beside the network, in the dictionaries around it.
    """
    sources = {name: source for source, name in names.items()}
    if not own:
        return None
    for place in _around(fit.place) if beside else (fit.place,):
        for head in dict.fromkeys((own, *_HEADS)):
            start = f"{place}.{head}" if place else head
            weight = sources.get(f"{start}.weight")
            if weight is not None and tensors[weight].dim() == 2 and tensors[weight].shape[1] == width:
                bias = sources.get(f"{start}.bias")
                return _linear(weight.removesuffix(".weight"), tensors[weight], None if bias is None else tensors[bias], (weight, bias))
    return None


def read_head(checkpoint: Checkpoint, width: int) -> Linear:
    """The one linear layer of a file.

    Raises:
        UserError: It holds something else.
    """
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.dim() > 0}  # without measurements, such as the accuracy
    matrices = [name for name, tensor in tensors.items() if tensor.dim() == 2 and tensor.shape[1] == width]
    vectors = [name for name, tensor in tensors.items() if tensor.dim() == 1]
    if len(matrices) != 1 or len(tensors) != 1 + len(vectors) or len(vectors) > 1:
        held = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:4])
        raise UserError(
            f"--head {checkpoint.path} is not one linear layer on {width} features (it holds {held}): name the file of the linear evaluation"
        )
    bias = tensors[vectors[0]] if vectors else None
    names = [f"{checkpoint.path.name}: {name}" for name in (*matrices, *vectors)]
    return _linear(describe(checkpoint), tensors[matrices[0]], bias, names)


def describe(checkpoint: Checkpoint) -> str:
    """A second file, as the export names it."""
    return f"{checkpoint.path.name}, sha256 {checkpoint.sha256}"


def _linear(source: str, weight: Tensor, bias: Tensor | None, names: Iterable[str | None]) -> Linear:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"the head {source} has a weight of {tuple(weight.shape)} and a bias of {tuple(bias.shape)}: it is damaged")
    # A layer without bias is one with bias 0.
    return Linear(source, weight, torch.zeros(len(weight)) if bias is None else bias, tuple(name for name in names if name is not None))


def find_projector(fit: Fit, names: Mapping[str, str], tensors: Mapping[str, Tensor], taken: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the projector that stands in or beside one copy of the network, in their order; empty if there is none.

    A projector has more than one linear layer: ACL's is at ``fc``.
    """
    for place in _around(fit.place):
        for part in _PROJECTORS:
            start = f"{place}.{part}." if place else f"{part}."
            found = {source: tensors[source] for source, name in names.items() if name.startswith(start) and source not in taken}
            if sum(tensor.dim() == 2 for tensor in found.values()) > 1:
                return found
    return {}


def to_projector(tensors: Mapping[str, Tensor], width: int) -> nn.Sequential | None:
    """RoCL's projector with the weights of a foreign one; None if that has another layout (more layers, BatchNorm, other widths)."""
    ours = projector(width)
    values = list(tensors.values())
    if [tuple(value.shape) for value in values] != [tuple(value.shape) for value in ours.state_dict().values()]:
        return None
    ours.load_state_dict({name: value.float() for name, value in zip(ours.state_dict(), values, strict=True)})
    return ours


def check_leftovers(fit: Fit, others: Iterable[Fit], tensors: Mapping[str, Tensor], taken: Collection[str], drop: Iterable[str]) -> Counter[str]:
    """What of the file is left out, counted by module.

    Args:
        fit: The copy of the network that was taken.
        others: The copies that were not.
        tensors: The file's, without other sets of BatchNorm statistics.
        taken: Names of the tensors that were used.
        drop: Beginnings of names that the user says are no part of the network.

    Raises:
        UserError: There are tensors that are not known to be no part of the network, or it lacks some.
    """
    places = _elsewhere(fit, others)
    copies = {source for other in others for source in other.sources.values()}
    unused = set(fit.unused)
    dropped: Counter[str] = Counter()
    strange = []
    for name in (name for name in tensors if name not in taken):
        inner = name[len(fit.place) :].lstrip(".") if name in unused else None
        # Below the network's own place only whole modules at its top are known to be none of it: layer1.0.se.fc is a part of a network.
        known = _BESIDE.search(name) if inner is None else _BESIDE.match(inner)
        measured = inner is None and tensors[name].dim() == 0  # RoCL's files keep the loss as one
        if known or measured or name in copies or name.startswith((*places, *drop)) or _MEAN_OR_STD.search(name):
            dropped[_module(name, known, inner, places)] += 1
        else:
            strange.append(name)
    if fit.missing:
        raise UserError(_lacking(fit))
    if strange:
        raise UserError(f"{fit.architecture} has no place for {_some(strange)}: give --architecture, or --drop [{_start(strange)}] if it needs none")
    return dropped


def _lacking(fit: Fit) -> str:
    """What was found of the network, and what was not."""
    found = f"{len(fit.sources)} tensors of {fit.architecture} are in the file" + (f" at {fit.place}" if fit.place else "")
    if all(".downsample." in name for name in fit.missing):
        return (
            f"{found}, but its shortcuts have no weights, as where they are padded with zeros (option A): this package has such networks of 16, 32 "
            f"and 64 channels (resnet20_cifar to resnet110_cifar), and of this shape none; it lacks {_some(fit.missing)}"
        )
    return f"{found}, but {fit.architecture} lacks {_some(fit.missing)} in the file: it is another network (give --architecture), or incomplete"


def _module(name: str, known: re.Match[str] | None, inner: str | None, places: Iterable[str]) -> str:
    """What a tensor that is left out is counted under: a copy of the network, or the module that holds it."""
    if copy := next((place for place in places if name.startswith(place)), None):
        return copy.removesuffix(".")
    if known is None:
        return name.rpartition(".")[0] or name
    return name[: known.end() + (len(name) - len(inner) if inner is not None else 0)].rstrip(".")


def _around(place: str) -> list[str]:
    """``place`` and the places around it, from the inside out."""
    parts = place.split(".") if place else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _start(names: list[str]) -> str:
    return names[0].rpartition(".")[0] or names[0]


def _some(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
