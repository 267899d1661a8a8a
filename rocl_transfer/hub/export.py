"""What leaves a run: timm's layout, ``config.json`` + ``model.safetensors``, that ``timm.create_model`` loads alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from rocl_transfer.evaluation import sha256
from rocl_transfer.models import PixelModel
from rocl_transfer.version import __version__

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def export(model: PixelModel, folder: str | Path, facts: Mapping[str, Any] | None = None) -> str:
    """Write ``model`` into ``folder``; each file appears whole or not at all.

    The ``pretrained_cfg`` is written afresh: one laid over a stock model's would keep that model's licence, tag and test size.

    Args:
        model: A backbone or a classifier.
        folder: Where to.
        facts: What else ``config.json`` says under the key ``rocl_transfer``.

    Returns:
        The SHA-256 of the weights file.
    """
    folder = Path(folder)
    net = model.net
    # Channels-last weights are not contiguous, which safetensors refuses.
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    save_file(weights, folder / f".{WEIGHTS}", metadata={"format": "pt"})
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
        "rocl_transfer": {"version": __version__, "pixel_range": [0, 1], **(facts or {})},
    }
    (folder / f".{CONFIG}").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, CONFIG):
        (folder / f".{name}").rename(folder / name)
    return sha256(folder / WEIGHTS)
