"""An optimiser's state as tensors and as everything else, so that it can be saved without pickle."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def split_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors and as everything else, under ``state.parameter.name`` and ``group.number.name``."""
    saved = optimizer.state_dict()
    flat = {f"state.{parameter}.{name}": value for parameter, values in saved["state"].items() for name, value in values.items()}
    # Some optimisers, LAMB for one, count their steps in the groups.
    groups = enumerate(saved["param_groups"])
    flat |= {f"group.{number}.{name}": value for number, group in groups for name, value in group.items() if name != "params"}
    tensors = {key: value.detach().contiguous().cpu() for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def join_state(optimizer: Optimizer, flat: Mapping[str, Any]) -> None:
    """Put back what :func:`split_state` took apart."""
    saved = optimizer.state_dict()
    # What a group holds now and did not then, LAMB's count of steps at the start for one, must go.
    saved["param_groups"] = [{"params": group["params"]} for group in saved["param_groups"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        kind, number, name = key.split(".", 2)
        place = state.setdefault(int(number), {}) if kind == "state" else saved["param_groups"][int(number)]
        place[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                # As it was: a GPU's optimisers take tensors one by one where layouts differ, and sums are rounded differently.
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
