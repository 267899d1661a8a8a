"""Checkpoints that are complete or absent, and hold no pickle: tensors in safetensors, everything else in JSON."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rocl_transfer.errors import UserError, path_of
from rocl_transfer.training.optimizer_state import join_state, split_state

log = logging.getLogger("rocl_transfer")
_MANIFEST = "manifest.json"
_OF_A_RUN = ("checkpoints", "head", "last", "figures", "metrics.jsonl", "diagnosis.json", "config.yaml", "model.safetensors", "config.json",
             "projector.safetensors", "probe.safetensors", "results.json", "verdicts.jsonl", "README.md")  # fmt: skip


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoints:
    """The ``checkpoints/step-N`` folders of a run.

    Args:
        run_folder: Where ``checkpoints`` is.
        keep: How many of the last ones stay.
        identity: Options that must not change between the parts of one run.
        overwrite: Do not resume an existing run; :meth:`begin` deletes it.
        defaults_for_missing: Values to assume for options of ``identity`` that older checkpoints do not record.
        sources: Names of the model and the data that the run is made from; none may be what it writes over.
    """

    def __init__(
        self,
        run_folder: str | Path,
        keep: int,
        identity: Mapping[str, Any],
        overwrite: bool = False,
        defaults_for_missing: Mapping[str, Any] | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        self.folder = Path(run_folder) / "checkpoints"
        self.keep, self.overwrite, self.defaults_for_missing, self.sources = keep, overwrite, dict(defaults_for_missing or {}), sources
        self.identity = json.loads(json.dumps(identity))

    def begin(self) -> None:
        """Before anything is written: remove the run that stands there where it is to be overwritten, and nothing that no run wrote."""
        if self.overwrite:
            for name in _OF_A_RUN:
                path = self.folder.parent / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def save(self, step: int, objective: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], spare: Collection[int] = ()) -> Path:
        """Write ``step-N`` aside, flush it to the disk, then rename it into place; drop all but the last few and those in ``spare``.

        Raises:
            UserError: A weight is not finite, such a checkpoint would replace good ones; or there is no room on the disk.
        """
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in objective.state_dict().items()}
        if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
            raise UserError(f"training stopped at step {step}: {bad[0]} is not finite; the last good checkpoint is {self.latest() or 'none'}")
        tensors, scalars = split_state(optimizer)
        target, aside = self.at(step), self.folder / f".step-{step}.writing"
        content = {"format": 2, "step": step, "identity": self.identity, "optimizer": scalars, **state}
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            save_file(weights, aside / "objective.safetensors")
            save_file(tensors, aside / "optimizer.safetensors")
            (aside / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
            manifest = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(aside.iterdir())}
            (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in (*aside.iterdir(), aside):
                _flush(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            standing = f"it resumes from {self.latest()}" if self.latest() else "there is none before it"
            raise UserError(
                f"the checkpoint {target} cannot be written ({reason}): make room there and give the same command with --resume auto; {standing}"
            ) from error
        if target.exists():  # of a course that was left: it stands until the new one is whole
            before = self.folder / f".step-{step}.before"
            shutil.rmtree(before, ignore_errors=True)
            target.rename(before)
        aside.rename(target)
        _flush(self.folder)
        shutil.rmtree(self.folder / f".step-{step}.before", ignore_errors=True)
        for old in self.steps()[: -self.keep]:
            if old not in spare:
                shutil.rmtree(self.at(old))
        return target

    def at(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> Path | None:
        """The newest checkpoint of this run that is whole, or None."""
        return next((path for step in reversed(self.steps()) if _damage(path := self.at(step)) is None), None)

    def whole(self) -> list[int]:
        """The steps of those that are whole, in order."""
        return [step for step in self.steps() if _damage(self.at(step)) is None]

    def forget_after(self, step: int) -> None:
        """Drop the checkpoints after ``step``, if the run was resumed from an older one than the newest; and what a kill left half written."""
        for left in self.folder.glob(".step-*"):
            shutil.rmtree(left)
        for newer in self.steps():
            if newer > step:
                shutil.rmtree(self.at(newer))

    def find(self, resume: str) -> Path | None:
        """The checkpoint that ``--resume`` means: ``auto``, ``none``, a checkpoint, or a run folder; of a run, the newest one that is whole.

        Raises:
            UserError: There is none where a path was given, one stands in the way where ``none`` or another run was, all are damaged, or the run had
                other options.
        """
        self._check_sources()
        if self.overwrite:
            return None
        left = next((name for name in ("model.safetensors", "results.json") if (self.folder.parent / name).exists()), None)
        if left and not self.steps():
            remedy = "choose another --output_dir, or --overwrite true to begin again"
            raise UserError(f"{self.folder.parent} holds {left} and no checkpoint of this run, which a training would replace: {remedy}")
        if resume == "none":
            if self.steps():
                remedy = "choose another --output_dir, --resume auto to resume it, or --overwrite true to begin again"
                raise UserError(f"{self.folder.parent} already holds a run (step-{self.steps()[-1]}): {remedy}")
            return None
        found = self._meant(resume)
        if found is None and resume != "auto":
            raise UserError(f"--resume {resume} is neither a checkpoint nor a run folder with one: give auto, none or such a path")
        if found is not None and self.steps() and found.parent.resolve() != self.folder.resolve():
            remedy = "choose another --output_dir, or --resume auto to resume that one"
            raise UserError(f"{self.folder.parent} already holds a run (step-{self.steps()[-1]}), with which {found} would be mixed: {remedy}")
        if found is not None:
            before = {**self.defaults_for_missing, **self.identity_of(found)}
            for option, value in self.identity.items():
                if before.get(option) != value:
                    remedy = "set it back, choose another --output_dir, or --overwrite true to begin again"
                    raise UserError(f"--{option} was {before.get(option)} in the run that {found} belongs to and is {value} now: {remedy}")
        return found

    def identity_of(self, path: Path) -> dict[str, Any]:
        """What the checkpoint at ``path`` says of its run: see ``identity``."""
        identity: dict[str, Any] = self._state(path)["identity"]
        return identity

    def step_of(self, path: Path) -> int:
        """How many steps the checkpoint at ``path`` stands after."""
        return int(self._state(path)["step"])

    def _meant(self, resume: str) -> Path | None:
        path = path_of(resume)
        try:
            is_checkpoint = (path / "state.json").is_file()
        except OSError as error:
            raise UserError(f"--resume {resume[:100]} is not a path ({error.strerror}): give auto, none, a checkpoint or a run folder") from error
        if not is_checkpoint:
            return (self if resume == "auto" else Checkpoints(path, self.keep, {}))._newest_whole()
        if (reason := _damage(path)) is not None:
            other = Checkpoints(path.parent.parent, self.keep, {}).latest()
            raise UserError(f"the checkpoint {path} is damaged ({reason}): give --resume {other or 'none'}")
        return path

    def _check_sources(self) -> None:
        run = self.folder.parent.resolve()
        for source in self.sources:
            place = path_of(source.removeprefix("local-dir:")).resolve()
            written = [run, *(run / name for name in _OF_A_RUN)]
            lost = any(place.is_relative_to(path) for path in written[1:]) if self.overwrite else False
            if place == run or lost:
                raise UserError(f"{source} is what this run is made from, and would be written over: choose another --output_dir")

    def _newest_whole(self) -> Path | None:
        for before in self.folder.glob(".step-*.before"):  # killed while one was put in the place of another
            target = self.folder / before.name.removeprefix(".").removesuffix(".before")
            if not target.exists():
                with suppress(FileNotFoundError):  # another process was faster
                    before.rename(target)
        steps, whole = self.steps(), self.latest()
        newer = [self.at(step) for step in steps if whole is None or step > int(whole.name.removeprefix("step-"))]
        if newer and whole is None:
            remedy = "choose another --output_dir, or --overwrite true to begin again"
            raise UserError(f"no checkpoint in {self.folder} is whole ({newer[-1].name}: {_damage(newer[-1])}): {remedy}")
        for path in newer:
            log.warning("the checkpoint %s is damaged (%s): resuming from %s", path, _damage(path), whole)
        return whole

    def _state(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the checkpoint {path} cannot be read ({error}): remove it to resume from the one before") from error
        return state

    def load(self, path: Path, objective: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Put a checkpoint's tensors back, strictly, and return its state.

        Raises:
            UserError: It is damaged, or of another network.
        """
        if (reason := _damage(path)) is not None:
            raise UserError(f"the checkpoint {path} is damaged ({reason}): remove it to resume from the one before")
        state = self._state(path)
        tensors = _read(path / "optimizer.safetensors")
        self.load_weights(path, objective)
        join_state(optimizer, {**tensors, **state["optimizer"]})
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


def _damage(path: Path) -> str | None:
    """What is not as it was written; of a checkpoint from before there were manifests, what cannot be read."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8")) if (path / _MANIFEST).exists() else None
        if manifest is None:
            if json.loads((path / "state.json").read_text(encoding="utf-8"))["format"] != 1:
                return f"{_MANIFEST} is missing"
            for name in ("objective", "optimizer"):
                _read(path / f"{name}.safetensors")
            return None
        for name, written in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != written["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, {written['bytes']} were written"
            if sha256(file) != written["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return " ".join(str(error).split())[:150] or type(error).__name__
    except UserError as error:
        return str(error)
    return None


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"the checkpoint {file.parent} cannot be read ({error}): remove it to resume from the one before") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some network filesystems cannot be flushed
            raise
    finally:
        os.close(handle)
