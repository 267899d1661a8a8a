"""What a model was made from, and what it may have seen of the data it meets."""

import dataclasses
from typing import Any

from rocl_transfer.data import ImageData
from rocl_transfer.evaluation import sha256
from rocl_transfer.hub.export import WEIGHTS
from rocl_transfer.hub.find import find_model, own_facts


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
    facts = {} if folder is None else own_facts(folder)
    return {key: facts[key] for key in ("pretrained_on", "trained_on") if key in facts}
