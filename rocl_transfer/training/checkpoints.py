"""Checkpoints that are complete or absent, and hold no pickle: tensors in safetensors, everything else in JSON."""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rocl_transfer.errors import UserError


class Checkpoints:
    """The ``checkpoints/step-N`` folders of a run.

    Args:
        run_folder: Where ``checkpoints`` is.
        keep: How many of the last ones stay.
        identity: Options that must not change between the parts of one run.
    """

    def __init__(self, run_folder: str | Path, keep: int, identity: Mapping[str, Any]) -> None:
        self.folder = Path(run_folder) / "checkpoints"
        self.keep = keep
        self.identity = json.loads(json.dumps(identity))

    def save(self, step: int, objective: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], spare: Collection[int] = ()) -> Path:
        """Write ``step-N`` aside, flush it to the disk, then rename it into place; drop all but the last few and those in ``spare``.

        Raises:
            UserError: A weight is not finite: such a checkpoint would replace good ones.
        """
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in objective.state_dict().items()}
        if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
            raise UserError(f"training stopped at step {step}: {bad[0]} is not finite; the last good checkpoint is {self.latest() or 'none'}")
        tensors, scalars = _split_state(optimizer)
        target, aside = self.folder / f"step-{step}", self.folder / f".step-{step}.writing"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(weights, aside / "objective.safetensors")
        save_file(tensors, aside / "optimizer.safetensors")
        content = {"format": 1, "step": step, "identity": self.identity, "optimizer": scalars, **state}
        (aside / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            _flush(path)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        _flush(self.folder)
        for old in self._steps()[: -self.keep]:
            if old not in spare:
                shutil.rmtree(self.folder / f"step-{old}")
        return target

    def _steps(self) -> list[int]:
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> Path | None:
        """The newest checkpoint of this run, or None."""
        steps = self._steps()
        return self.folder / f"step-{steps[-1]}" if steps else None

    def forget_after(self, step: int) -> None:
        """Drop the checkpoints of a course that is not gone on with: the run was resumed from an older step."""
        for newer in self._steps():
            if newer > step:
                shutil.rmtree(self.folder / f"step-{newer}")

    def find(self, resume: str) -> Path | None:
        """The checkpoint that ``--resume`` means: ``auto``, ``none``, a checkpoint, or a run folder.

        Raises:
            UserError: There is none where a path was given, one stands in the way where ``none`` was, or the run had other options.
        """
        if resume == "none":
            if (standing := self.latest()) is not None:
                raise UserError(
                    f"{standing.parent.parent} already holds a run ({standing.name}): choose another --output_dir, or --resume auto to go on"
                )
            return None
        path = Path(resume)
        found = path if (path / "state.json").is_file() else (self if resume == "auto" else Checkpoints(path, self.keep, {})).latest()
        if found is None and resume != "auto":
            raise UserError(f"--resume {resume} is neither a checkpoint nor a run folder with one: give auto, none or such a path")
        if found is not None:
            before = self._state(found)["identity"]
            for option, value in self.identity.items():
                if before.get(option) != value:
                    remedy = "set it back, or choose another --output_dir"
                    raise UserError(f"--{option} was {before.get(option)} in the run that {found} belongs to and is {value} now: {remedy}")
        return found

    def _state(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the checkpoint {path} cannot be read ({error}): remove it to go on from the one before") from error
        return state

    def load(self, path: Path, objective: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Put a checkpoint's tensors back, strictly, and return its state.

        Raises:
            UserError: It is damaged, or of another network.
        """
        state = self._state(path)
        tensors = _read(path / "optimizer.safetensors")
        self.load_weights(path, objective)
        _join_state(optimizer, {**tensors, **state["optimizer"]})
        return state

    def load_weights(self, path: Path, objective: nn.Module) -> None:
        """Put a checkpoint's weights and buffers back, strictly.

        Raises:
            UserError: It is damaged, or of another network.
        """
        weights = _read(path / "objective.safetensors")
        try:
            objective.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the checkpoint {path} is of another network: {str(error).splitlines()[-1].strip()}") from error


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"the checkpoint {file.parent} cannot be read ({error}): remove it to go on from the one before") from error


def _split_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors and as everything else, under ``state.parameter.name`` and ``group.number.name``."""
    saved = optimizer.state_dict()
    flat = {f"state.{parameter}.{name}": value for parameter, values in saved["state"].items() for name, value in values.items()}
    # Some optimisers, LAMB for one, count their steps in the groups.
    groups = enumerate(saved["param_groups"])
    flat |= {f"group.{number}.{name}": value for number, group in groups for name, value in group.items() if name != "params"}
    tensors = {key: value.detach().contiguous().cpu() for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def _join_state(optimizer: Optimizer, flat: Mapping[str, Any]) -> None:
    """Put back what :func:`_split_state` took apart."""
    saved = optimizer.state_dict()
    # What a group holds now and did not then, LAMB's count of steps at the start for one, must go.
    saved["param_groups"] = [{"params": group["params"]} for group in saved["param_groups"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        kind, number, name = key.split(".", 2)
        place = state.setdefault(int(number), {}) if kind == "state" else saved["param_groups"][int(number)]
        place[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
