"""What is said of a conversion: in ``config.json`` and to the user."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rocl_transfer.hub.conversion.families import NONE
from rocl_transfer.hub.conversion.reading import Checkpoint
from rocl_transfer.models import PixelModel


def left_out(checkpoint: Checkpoint, names: Mapping[str, str], dropped: Counter[str]) -> dict[str, int | str]:
    """What is not in the export: modules with their number of tensors."""
    left: dict[str, int | str] = dict(sorted(dropped.items()))
    if others := len(checkpoint.tensors) - len(names):
        left["the other set of BatchNorm statistics"] = others
    return left | dict.fromkeys(checkpoint.set_aside, "training state")


def notes(facts: Mapping[str, Any], model: PixelModel, kind: str, taken: int, held: int) -> list[str]:
    """A sentence for each thing that was done, chosen or assumed; ``taken`` of the ``held`` tensors in the file are in the export."""
    from rocl_transfer.models.resnet_cifar import PaddedShortcut

    place = facts["copy"] or "its outermost dictionary"
    said = [f"{facts['file']}: {model.architecture} of {kind}, from {place}: {taken} of the {held} tensors in the file were taken"]
    if facts["other_copies"]:
        which = ", which is averaged" if facts["averaged"] else ""
        said.append(
            f"the file also holds the network in {', '.join(copy or '.' for copy in facts['other_copies'])}; {place}{which} is taken (--copy)"
        )
    if facts["batch_norm"]:
        said.append(f"of {facts['batch_norm']['sets']} sets of BatchNorm statistics the {facts['batch_norm']['taken']} one is taken (--bn)")
    mean, std = ([round(value, 4) for value in part] for part in (model.mean, model.std))
    plain = " (pixels in [0, 1] go in as they are)" if (model.mean, model.std) == NONE else ""
    doubt = ", for the file has none: give --mean and --std where that is wrong" if facts["normalization"].startswith("assumed") else ""
    said.append(f"normalisation: mean {mean}, std {std}{plain}, {facts['normalization']}{doubt}")
    if model.architecture.endswith("_pad2"):
        said.append(f"the 3x3 stem pads by 2, as {kind}'s does; shapes do not tell: give --architecture {model.architecture[:-5]} if it pads by 1")
    if any(isinstance(module, PaddedShortcut) for module in model.modules()):
        said.append("shortcuts without parameters: every other pixel, zeros on both sides of the channels; the file does not tell where the zeros go")
    said.append(f"head: {facts['head']}, {len(model.class_names)} classes" if model.class_names else "head: none, so this is a backbone")
    if facts["projector"]:
        said.append(f"projector: {facts['projector']}")
    if facts["left_out"]:
        said.append("left out: " + ", ".join(f"{name} ({count})" for name, count in facts["left_out"].items()))
    return said
