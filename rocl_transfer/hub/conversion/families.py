"""What is known of the projects whose checkpoints are read: their names for timm's modules, and what their files leave out.

Facts read from the projects' own code (names, shapes, constants); none of that code is used.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.hub.conversion.reading import Checkpoint

NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Family:
    """One project's way of writing checkpoints.

    Args:
        signs: Patterns; a file in which each is found among the names of its tensors is taken to be of this family.
        absent: Patterns of which none may be found.
        prefers: Patterns of the places from which the network is taken where a file holds it several times, best first.
        small: Mean and std where the file has none and the stem is 3x3; None: it has to be asked for.
        large: Where the stem is 7x7, or the network no ResNet; "timm": what timm's configuration of the architecture says.
        stem_padding: Padding of a 3x3 stem: shapes do not tell it.
    """

    signs: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    prefers: tuple[str, ...] = ()
    small: Normalization | None = NONE
    large: Normalization | str | None = IMAGENET
    stem_padding: int = 1


# In the order in which they are tried.
FAMILIES: dict[str, Family] = {
    # A pre-training of solo-learn's with a second online classifier; the teacher is momentum_backbone, and is not robust.
    "deacl": Family(signs=(r"(^|\.)classifier_adv\.", r"(^|\.)backbone\."), prefers=(r"(^|\.)backbone$",), large=NONE, stem_padding=2),
    # Also DynACL, whose encoder_k is the average of encoder_q and what its authors evaluate; and AIR.
    "acl": Family(signs=(r"\.bn_list\.|(^|\.)bn\d?_adv\.",), prefers=(r"(^|\.)encoder_k$",), large=NONE),
    "robustness": Family(signs=(r"(^|\.)new_mean$",), small=None, large=None),
    # torchvision's ResNet with a 3x3 stem that pads by 2; "encoder" in its first versions; the online classifier stands beside.
    "solo-learn": Family(
        signs=(r"(^|\.)(backbone|encoder)\.conv1\.weight$", r"(^|\.)classifier\.weight$"),
        prefers=(r"(^|\.)(backbone|encoder)$",),
        small=CIFAR10,
        stem_padding=2,
    ),
    "rocl": Family(signs=(r"(^|\.)shortcut\.",), absent=(r"(^|\.)(linear|fc|classifier)\.", r"(^|\.)(mean|std|mu|sigma)$"), large=NONE),
    "robustbench": Family(signs=(r"(^|\.)shortcut\.|(^|\.)(mu|sigma)$|(^|\.)normalize\.mean$",), prefers=(r"(^|\.)last$",)),
    "torchvision": Family(),
    "timm": Family(large="timm"),
}
# Of several copies of the network in a file of any family: the averaged one, as timm's own loader does.
AVERAGED = r"(^|[._])(ema|averaged?|avg|swa)($|[._])"

# Other names for timm's modules.
_RENAMES = (
    (re.compile(r"(^|\.)shortcut\."), r"\1downsample."),  # kuangliu's CIFAR ResNets, and all that came from them
    (re.compile(r"(^|\.)downsample\.conv\."), r"\1downsample.0."),  # ACL's
    (re.compile(r"(^|\.)downsample\.bn\."), r"\1downsample.1."),
)
_NUMBERED = re.compile(r"\.bn_list\.(\d+)\.")  # ACL: 0 saw clean images, 1 adversarial ones
_NAMED = re.compile(r"(?:^|\.)bn\d?(_adv)?\.")  # ACL's first checkpoints: bn1 and bn1_adv


def recognize(checkpoint: Checkpoint, wanted: str) -> str:
    """The family of a file; ``wanted`` unless that is ``auto``.

    Raises:
        UserError: There is no such family.
    """
    if wanted != "auto":
        if wanted not in FAMILIES:
            raise UserError(f"there is no family {wanted!r}{did_you_mean(wanted, FAMILIES)}: give auto, {', '.join(FAMILIES)}")
        return wanted
    names = checkpoint.tensors
    for name, family in FAMILIES.items():
        if family.signs and all(_found(sign, names) for sign in family.signs) and not any(_found(sign, names) for sign in family.absent):
            return name
    stems = [tensor.shape[-1] for key, tensor in names.items() if re.search(r"(^|\.)conv1\.weight$", key) and "layer" not in key]
    return "torchvision" if 7 in stems else "timm"


def _found(pattern: str, names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def assumed(kind: str, small: bool, classes: int, own: Normalization) -> Normalization:
    """Mean and std where the file has none.

    Args:
        kind: The family.
        small: Whether the network is made for 32 px.
        classes: Number of classes of the head in the file; 0 if there is none.
        own: What timm's configuration of the architecture says.

    Raises:
        UserError: The family always writes them.
    """
    family = FAMILIES[kind]
    known = family.small if small else family.large
    if known is None:
        raise UserError(f"there are no mean and std, which {kind} keeps in its files: give --mean and --std")
    if known == CIFAR10 and classes == 100:
        return CIFAR100
    return own if isinstance(known, str) else known


def choose_norms(names: Iterable[str], wanted: str | None) -> tuple[int | None, int]:
    """Which of the sets of BatchNorm statistics, 0 clean or 1 adversarial, and how many there are; None if there is one without a number.

    Args:
        names: The tensors' names.
        wanted: ``adversarial``, ``clean`` or None: adversarial where there are two.

    Raises:
        UserError: There are not two to choose from, or more.
    """
    names = list(names)
    numbers = {int(found[1]) for name in names if (found := _NUMBERED.search(name))}
    if not numbers and _found(r"(^|\.)bn\d?_adv\.", names):
        numbers = {0, 1}
    if wanted is not None and len(numbers) < 2:
        raise UserError(f"--bn {wanted} has no effect with a file that has one set of BatchNorm statistics: leave it out")
    if len(numbers) > 2:
        raise UserError(f"the file has {len(numbers)} sets of BatchNorm statistics, and only two can be told apart: remove the others from it")
    if not numbers:
        return None, 1
    return (max(numbers) if wanted != "clean" else min(numbers)), len(numbers)


def translate(names: Iterable[str], norm: int | None) -> Mapping[str, str]:
    """The names that timm has for ``names``, as far as a module's own name goes; what belongs to another set of statistics is left out."""
    names = list(names)
    translated = {}
    named = norm is not None and not any(_NUMBERED.search(name) for name in names)
    for name in names:
        new = name
        if found := _NUMBERED.search(name):
            if int(found[1]) != norm:
                continue
            new = name.replace(found[0], ".", 1)
        elif named and (found := _NAMED.search(name)):
            if bool(found[1]) != (norm == 1):
                continue
            new = name.replace("_adv.", ".", 1)
        new = new.replace(".bn_list.", ".", 1)
        for pattern, replacement in _RENAMES:
            new = pattern.sub(replacement, new)
        translated[name] = new
    return translated
