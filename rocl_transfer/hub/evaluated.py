"""What is evaluated: an exported model, one of timm's, or a user's own network; and the card that its results are written to."""

import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.privacy import shorten
from rocl_transfer.hub.card import render_card
from rocl_transfer.models import PixelModel

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")  # in memory, another one each time


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


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def code_digest(model: nn.Module, reference: str | None = None) -> str:
    """SHA-256 of what makes outputs of the weights: equal weights are the same model only where this is equal too.

    Args:
        model: One of ours (architecture, size, normalisation count), or any (its structure, and the source of classes that are not torch's).
        reference: ``module:function`` that made it; its file counts.
    """
    if reference is None and isinstance(model, PixelModel):
        said = [model.architecture, model.input_size, list(model.mean), list(model.std), model.model_args, len(model.class_names)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256(f"{reference} {_ADDRESS.sub('', repr(model))}".encode())
    for kind in dict.fromkeys(type(part) for part in model.modules()):
        own = kind.__module__.partition(".")[0] not in ("torch", "timm")
        try:
            digest.update((inspect.getsource(kind) if own else kind.__qualname__).encode())
        except (OSError, TypeError):  # made if there is no file
            digest.update(kind.__qualname__.encode())
    file = getattr(sys.modules.get(str(reference).partition(":")[0]), "__file__", None)
    if file is not None:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def match_labels(labels: Tensor, data_names: Sequence[str], model_names: Sequence[str]) -> tuple[Tensor, str | None]:
    """``labels`` of the data as the model counts its classes, and a note where that is not by name.

    Raises:
        UserError: The model has fewer classes than the data.
    """
    if not model_names or tuple(data_names) == tuple(model_names):
        return labels, None
    if set(data_names) <= set(model_names):
        position = torch.tensor([list(model_names).index(name) for name in data_names])
        note = "the data's classes are found among the model's by name"
        return position[labels], note if len(data_names) == len(model_names) else f"{note}: {len(data_names)} of its {len(model_names)}"
    if len(data_names) > len(model_names):
        raise UserError(f"the data has {len(data_names)} classes, the model {len(model_names)}: evaluate it on data of its own classes")
    return labels, f"the model's classes have other names than the data's ({model_names[0]!r}, {data_names[0]!r}): they are matched by number"


def add_to_card(run: Path, record: Path) -> bool:
    """Put an evaluation's record into the run it was made of, and render the run's card again.

    Nothing is done, and False given, where the record is of other weights, or says less than what the card has: no AutoAttack where that has
    one, or fewer samples of the same split.

    Args:
        run: A run folder with ``results.json`` and a card.
        record: The evaluation's ``results.json``.
    """
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    found: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    if results["model"].get("sha256") != found["model"].get("sha256"):
        return False
    if (known := results.get("robustness")) and _says_less(found, known):
        return False
    results["robustness"] = {
        name: found[name] for name in ("dataset", "evaluations", "doubts", "report", "environment", "date", "seed") if name in found
    }
    (run / ".results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (run / ".results.json").replace(run / "results.json")
    render_card(run)
    return True


def _says_less(found: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    whole, had = ([entry for entry in part["evaluations"] if entry["name"] == "autoattack"] for part in (found, known))
    same = all(found["dataset"].get(name) == known["dataset"].get(name) for name in ("revision", "split"))
    same = same and shorten(found["dataset"]["name"]) == shorten(known["dataset"]["name"])
    return bool(had and not whole) or (same and found["dataset"]["n"] < known["dataset"]["n"])
