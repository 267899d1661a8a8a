"""Which tensors of a file are the network: the longest common fit of names, with equal shapes."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.errors import UserError
from rocl_transfer.hub.conversion.families import AVERAGED, Family

Shapes = Mapping[str, tuple[int, ...]]
_COUNTER = "num_batches_tracked"  # of BatchNorm; of no use once training has ended, and absent before PyTorch 0.4.1


@dataclass(frozen=True)
class Fit:
    """One copy of a network in a file.

    Args:
        architecture: Its timm name.
        place: What the names of its tensors begin with, without the dot; empty at the root.
        sources: timm's names -> those of the file.
        missing: timm's names that have no tensor of their shape.
        unused: The file's names below ``place`` that no name of timm's asked for.
    """

    architecture: str
    place: str
    sources: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


@cache
def shapes_of(architecture: str, image_size: int | None) -> Shapes:
    """The shapes of a timm network without its head; ``image_size`` for those that are made for one size."""
    return {name: tuple(tensor.shape) for name, tensor in _empty(architecture, 0, image_size).state_dict().items()}


def _known() -> tuple[str, ...]:
    """Tried where no architecture is named; a network fits one of them or none."""
    from rocl_transfer.models.resnet_cifar import DEPTHS

    return (
        "resnet8_cifar", "resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
        "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d",
        *(f"resnet{depth}{option}_cifar" for depth in DEPTHS for option in ("", "b")),
    )  # fmt: skip


def _empty(architecture: str, classes: int, image_size: int | None) -> Any:
    import timm

    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, num_classes=classes, **options)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"timm cannot build {architecture} for images of {image_size} px ({error}): change --image_size") from error


@cache
def head_of(architecture: str, image_size: int | None) -> tuple[str, int]:
    """What timm calls the linear head of a network, and the width of the features it takes; ("", 0) where the head is more than that."""
    net = _empty(architecture, 1, image_size)
    name, head = net.pretrained_cfg.get("classifier"), net.get_classifier()
    return (name, head.in_features) if isinstance(name, str) and isinstance(head, nn.Linear) else ("", 0)


def find(tensors: Mapping[str, Tensor], names: Mapping[str, str], architecture: str | None, image_size: int | None) -> list[Fit]:
    """All copies of the network that fits best, which may still lack tensors.

    Args:
        tensors: The file's.
        names: The file's names -> as timm would call them.
        architecture: A timm name, or None: the ResNet that leaves the fewest tensors over on both sides.
        image_size: As for :func:`shapes_of`.

    Raises:
        UserError: Nothing in the file is like the network.
    """
    best: list[Fit] = []
    for candidate in _known() if architecture is None else (architecture,):
        fits = _fits(tensors, names, candidate, image_size)
        if fits and (not best or _cost(fits) < _cost(best)):
            best = fits
    if not best:
        what = (
            f"like {architecture}" if architecture else "like a ResNet that timm or this package has: name its timm architecture with --architecture"
        )
        first = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:3])
        raise UserError(f"there is nothing in the file {what} (it holds {len(tensors)} tensors: {first}{', ...' if len(tensors) > 3 else ''})")
    return best


def _cost(fits: list[Fit]) -> int:
    return min(len(fit.missing) + len(fit.unused) for fit in fits)


def _fits(tensors: Mapping[str, Tensor], names: Mapping[str, str], architecture: str, image_size: int | None) -> list[Fit]:
    """The places in a file where at least half of an architecture is."""
    shapes = shapes_of(architecture, image_size)
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for source, name in names.items():
        parts = name.split(".")
        for i in range(len(parts)):
            tail = ".".join(parts[i:])
            if tail in shapes and tuple(tensors[source].shape) == shapes[tail]:
                found[".".join(parts[:i])][tail] = source
    fits = []
    for place, sources in found.items():
        if 2 * len(sources) >= len(shapes):
            missing = tuple(name for name in shapes if name not in sources and not name.endswith(_COUNTER))
            taken = set(sources.values())
            below = [source for source, name in names.items() if name.startswith(f"{place}." if place else "") and source not in taken]
            fits.append(Fit(architecture, place, sources, missing, tuple(below)))
    return fits


def choose_copy(fits: list[Fit], tensors: Mapping[str, Tensor], family: Family, wanted: str | None) -> Fit:
    """The copy of the network to take: the one ``wanted``, or the family's, or the averaged one.

    Raises:
        UserError: There is no such copy, or there are several and nothing says which.
    """
    shown = ", ".join(fit.place or "." for fit in fits)
    if wanted is not None:
        named = [fit for fit in fits if (fit.place or ".") == wanted or fit.place.endswith(f".{wanted}")]
        if len(named) != 1:
            raise UserError(f"the file does not have exactly one network at {wanted}: give --copy one of {shown}")
        return named[0]
    whole = sorted((fit for fit in fits if not fit.missing), key=lambda fit: len(fit.place)) or [min(fits, key=lambda fit: len(fit.missing))]
    different = [fit for i, fit in enumerate(whole) if not any(_same(fit, other, tensors) for other in whole[:i])]
    for pattern in (*family.prefers, AVERAGED):
        preferred = [fit for fit in different if re.search(pattern, fit.place)]
        if len(preferred) == 1:
            return preferred[0]
    if len(different) > 1:
        raise UserError(f"the file holds {len(different)} different networks: choose one with --copy ({shown})")
    return different[0]


def _same(one: Fit, other: Fit, tensors: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensors[one.sources[name]], tensors[other.sources[name]]) for name in one.sources if name in other.sources)
