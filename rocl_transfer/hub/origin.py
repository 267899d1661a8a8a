"""What a model was made from, and what it may have seen of the data it meets."""

import dataclasses
from typing import Any

from rocl_transfer.data import ImageData, ImageOptions, PretrainImageOptions, Stream, fingerprint, load_images, open_stream
from rocl_transfer.data.value_range import describe
from rocl_transfer.evaluation.privacy import shorten
from rocl_transfer.hub.named import NamedModel


def open_images_for(model: NamedModel, options: ImageOptions, labels_needed: bool = True) -> ImageData:
    """The images that ``model`` is to be trained on, at its own size where none is asked for; see :func:`note_pretraining`."""
    return note_pretraining(load_images(options, image_size=options.image_size or model.native_size, labels_needed=labels_needed), model)


def open_unlabelled(model: NamedModel, options: PretrainImageOptions) -> tuple[ImageData, Stream | None]:
    """The images that ``model`` is to be trained on without labels, at its own size where none is asked for; or their stream."""
    if options.streaming:
        return open_stream(options)
    return load_images(options, image_size=options.image_size or model.native_size, labels_needed=False), None


def note_pretraining(data: ImageData, model: NamedModel) -> ImageData:
    """``data`` with a note where ``model`` was trained on the same images cut in another way, test images perhaps among them."""
    before, notes = model.made_on, []
    ways = (("pretrained_on", "pre-trained", "without"), ("pretrained_before_on", "pre-trained", "without"), ("trained_on", "trained", "with"))
    for key, how, labels in ways:
        same = key in before and shorten(before[key]["data"]) in (shorten(data.name), data.known_as)
        if same and before[key]["cut"] != data.cut:
            notes.append(f"the backbone was {how} with another cut of this data, so it may have seen test images ({labels} their labels)")
    values = None if model.exported is None else model.exported.value_range
    if values and data.value_range and values != data.value_range:
        known = "; ".join(f"--data.value_range [{low:g},{high:g}]" for low, high in values.values())
        notes.append(f"the backbone was trained on images of more than 8 bits of another value range ({describe(values)}): {known} is the same")
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def stood_for(data: ImageData, **models: NamedModel) -> dict[str, str]:
    """What the names in a run's options stand for, so that another content under the same name is not taken for the same run.

    Args:
        data: As it was opened, before anything of it is left out.
        models: Each under the part of the options that names it, such as ``model``.
    """
    weights = {
        f"{part}.name (its weights)": "timm's" if model.exported is None else f"sha256 {model.exported.sha256}" for part, model in models.items()
    }
    return {"data.name (its images)": fingerprint(data), **weights}


def made_from(model: NamedModel, data: ImageData) -> dict[str, Any]:
    """What the export of a model says of its making: the weights it began with, and all the data that it and they were trained on."""
    return {"backbone": model.identity, **model.made_on, "trained_on": {"data": data.known_as, "cut": data.cut}, **_values(data)}


def continued_from(model: NamedModel, data: ImageData, trained: bool) -> dict[str, Any]:
    """What the export of a pre-training says of its making: this data, and where it began with trained weights, those and what they saw."""
    now = {"data": data.known_as, "cut": data.cut}
    if not trained:
        return {"pretrained_on": now, **_values(data)}
    before = model.made_on
    earlier = before.pop("pretrained_on", None)
    also = {"pretrained_before_on": earlier} if earlier else {}
    return {"continued": True, "backbone": model.identity, **before, "pretrained_on": now, **also, **_values(data)}


def distilled_from(model: NamedModel, teacher: NamedModel, data: ImageData) -> dict[str, Any]:
    """What the export of a robust twin says of its making: the weights it began with, its teacher, and the data that it saw without labels."""
    facts = continued_from(model, data, True)
    del facts["continued"]
    return {**facts, "teacher": teacher.identity}


def _values(data: ImageData) -> dict[str, Any]:
    return {"value_range": data.value_range} if data.value_range else {}
