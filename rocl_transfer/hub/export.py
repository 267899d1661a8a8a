"""What leaves a run: timm's layout, ``config.json`` + ``model.safetensors``, that ``timm.create_model`` loads alone, and what proves it whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rocl_transfer.attacks import frozen
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.privacy import scrub
from rocl_transfer.models import PixelModel
from rocl_transfer.training import sha256
from rocl_transfer.version import __version__

WEIGHTS, CONFIG = "model.safetensors", "config.json"
OUTPUT_CHECK = "probe.safetensors"  # images (2, 3, S, S), uint8, and the model's outputs for them: what it must still give wherever it is loaded
PROJECTOR = "projector.safetensors"


def export(model: PixelModel, folder: str | Path, facts: Mapping[str, Any] | None = None, projector: nn.Module | None = None) -> str:
    """Write ``model`` into ``folder``; each file appears whole or not at all.

    The ``pretrained_cfg`` is written afresh: one laid over a stock model's would keep that model's licence, tag and test size.

    Args:
        model: A backbone or a classifier.
        folder: Where to.
        facts: What else ``config.json`` says under the key ``rocl_transfer``; of local paths the last part.
        projector: Pre-training's, kept in a file of its own, from which pre-training can be continued.

    Returns:
        The SHA-256 of the weights file.

    Raises:
        UserError: What the model gives is not finite.
    """
    folder = Path(folder)
    net = model.net
    images = torch.randint(256, (2, 3, model.input_size, model.input_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outputs = fingerprint(model, images)
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not finite, so it is not exported: its training had died")
    _save(net.state_dict(), folder / f".{WEIGHTS}")
    sha = sha256(folder / f".{WEIGHTS}")
    _save({"images": images, "outputs": outputs}, folder / f".{OUTPUT_CHECK}")
    (folder / f".{PROJECTOR}").unlink(missing_ok=True)  # of an export that was killed
    beside = {}
    if projector is not None:
        _save(projector.state_dict(), folder / f".{PROJECTOR}")
        beside = {"projector_sha256": sha256(folder / f".{PROJECTOR}")}
    content = {
        "architecture": model.architecture,
        "num_classes": len(model.class_names),
        "num_features": model.num_features,
        **({"label_names": list(model.class_names)} if model.class_names else {}),
        **({"model_args": model.model_args} if model.model_args else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, model.input_size, model.input_size],
            "fixed_input_size": bool(net.pretrained_cfg.get("fixed_input_size")),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(model.mean),
            "std": list(model.std),
            "num_classes": len(model.class_names),
            "pool_size": None,
            "first_conv": net.pretrained_cfg.get("first_conv"),
            "classifier": net.pretrained_cfg.get("classifier"),
        },
        "rocl_transfer": {"version": __version__, "pixel_range": [0, 1], "sha256": sha, **beside, **scrub(facts or {})},
    }
    (folder / f".{CONFIG}").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / PROJECTOR).unlink(missing_ok=True)  # an earlier model's
    for name in (PROJECTOR, OUTPUT_CHECK, WEIGHTS, CONFIG):
        if (folder / f".{name}").exists():
            (folder / f".{name}").replace(folder / name)
    return sha


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    # Channels-last weights are not contiguous, which safetensors refuses.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def fingerprint(model: PixelModel, images: Tensor) -> Tensor:
    """What the model gives for uint8 images, in eval mode and float32."""
    device = next(model.parameters()).device
    # As whoever loads it will run it: not compiled.
    with full_precision(), frozen(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        outputs: Tensor = model(images.to(device).float() / 255).cpu()
    return outputs
