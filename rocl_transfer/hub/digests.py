"""Whether two models are the same: SHA-256 of their weights, and of what makes outputs of the weights."""

import hashlib
import inspect
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

from rocl_transfer.models import PixelModel

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")  # in memory, another one each time


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
