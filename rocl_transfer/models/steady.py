"""Networks without the noise that is only there in training."""

from torch import nn


def without_dropout(model: nn.Module) -> None:
    """Switch dropout and stochastic depth off, in place: where a network is compared with itself they would be the difference."""
    for module in model.modules():
        for name in ("p", "drop_prob", "drop_rate", "attn_drop_rate", "drop_path_rate", "head_drop_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
