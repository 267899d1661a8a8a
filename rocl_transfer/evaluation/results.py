"""The results record: every number that a card prints, with what made it."""

import datetime
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.attacks import PGD, Attack
from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.evaluation.privacy import places, scrub
from rocl_transfer.evaluation.protocols import Ensemble
from rocl_transfer.options import spelled
from rocl_transfer.training.chance import wilson_interval
from rocl_transfer.version import __version__

log = logging.getLogger("rocl_transfer")
__all__ = ["Evaluation", "Results", "attack_key", "distinct", "entry_key", "name_in", "verdict_key", "wilson_interval"]
_EQUAL = 2e-3  # of a radius: 0.0314 is how the paper's code writes 8/255


def verdict_key(name: str, norm: str | None = None, epsilon: float | None = None) -> str:
    """What verdicts call an evaluation: ``pgd-20 linf 0.0314``; without a radius its name alone."""
    return f"{name} {norm} {epsilon:.6g}" if epsilon else name


def attack_key(attack: Attack | Ensemble) -> str:
    """What verdicts call an attack."""
    return verdict_key(attack.name, attack.norm, attack.epsilon)


def entry_key(entry: Mapping[str, Any]) -> str:
    """What verdicts call the evaluation that an entry of ``results.json`` describes."""
    return verdict_key(str(entry["name"]), entry.get("norm"), entry.get("epsilon"))


def name_in(key: str) -> str:
    """The name in what :func:`verdict_key` gave."""
    return key.rsplit(" ", 2)[0]


def distinct(attacks: Sequence[PGD]) -> list[PGD]:
    """``attacks`` without those that another, the last of its like, repeats at the same radius; the log says which."""
    kept: list[PGD] = []
    for attack in attacks:
        like = [one for one in kept if (one.name, one.norm) == (attack.name, attack.norm) and abs(one.epsilon / attack.epsilon - 1) < _EQUAL]
        for one in like:
            words = sorted({spelled(one.epsilon), spelled(attack.epsilon)})
            what = f"epsilon {words[0]} is" if len(words) == 1 else f"epsilon {' and '.join(words)} are one,"
            log.info("%s measured once: %s", what, spelled(attack.epsilon))
        kept = [one for one in kept if one not in like] + [attack]
    return kept


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One accuracy and what it was measured under; lengths in [0, 1] pixel units, passes (forward and back) per sample."""

    name: str
    norm: str | None = None
    epsilon: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    targets: int | None = None
    queries: int | None = None
    engine: str | None = None
    search_precision: str | None = None
    surrogate: str | None = None
    version: str | None = None
    accuracy: float
    interval: tuple[float, float]
    n: int
    seconds: float
    passes: float | None = None

    def __str__(self) -> str:
        """A line for the log."""
        under = f" {self.norm} {spelled(self.epsilon)}" if self.epsilon else ""
        low, high = (100 * end for end in self.interval)
        return f"{self.name}{under}: {100 * self.accuracy:.2f} % [{low:.2f}, {high:.2f}], n = {self.n}"


@dataclass
class Results:
    """What :func:`~rocl_transfer.evaluation.evaluate` measured.

    Attributes:
        evaluations: In the order they were made.
        verdicts: For each sample its label and, for each evaluation, whether the model was right.
        device: What it ran on.
        seed: Seed of everything random.
        refuted: Successes of a search that the model itself, asked again, did not share.
        doubts: Why the accuracies do not mean what they seem to, one sentence each.
        pictured: What verdicts call the attack whose images ``found`` holds.
        found: For a few samples that it broke, the image (C, H, W) that did and the answer to it.
        warnings: What is wrong with the model, one sentence each.
        precision: What it computes in.
    """

    evaluations: list[Evaluation]
    verdicts: list[dict[str, Any]] = field(repr=False)
    device: str
    seed: int = 0
    refuted: int = 0
    doubts: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    precision: str = "float32"
    pictured: str | None = None
    found: dict[int, tuple[Tensor, int]] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: str | tuple[str, float]) -> Evaluation:
        """By name, or by name and epsilon.

        Raises:
            UserError: Nothing of that name was measured, or not at that epsilon.
        """
        name, epsilon = (key, None) if isinstance(key, str) else key
        for entry in self.evaluations:
            if entry.name == name and (epsilon is None or entry.epsilon == epsilon):
                return entry
        names = dict.fromkeys(entry.name for entry in self.evaluations)
        there = dict.fromkeys(verdict_key(entry.name, entry.norm, entry.epsilon) for entry in self.evaluations)
        raise UserError(f"nothing was measured under {key!r}{'' if name in names else did_you_mean(name, names)}: there are {', '.join(there)}")

    def accuracies(self) -> dict[str, float]:
        """Every accuracy as trackers take it: under what verdicts call the evaluation, without spaces."""
        return {entry_key(vars(entry)).replace(" ", "_"): entry.accuracy for entry in self.evaluations}

    def say(self) -> None:
        """Log every accuracy, and what makes them doubtful."""
        for entry in self.evaluations:
            log.info("%s", entry)
        for doubt in self.doubts:
            log.warning("doubt: %s", doubt)

    def write(
        self,
        folder: str | Path,
        *,
        model: Mapping[str, Any],
        dataset: Mapping[str, Any],
        training: Mapping[str, Any],
        config: Mapping[str, Any],
        report: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write ``results.json`` and, if there are verdicts, ``verdicts.jsonl``, one line per sample, into ``folder``.

        Args:
            folder: Where to.
            model: Name, SHA-256 and making.
            dataset: What was measured on.
            training: What it cost.
            config: The resolved configuration. Of local paths in it, and everywhere else, the last part is written.
            report: What else was measured or follows.
        """
        said = {**({"warnings": list(self.warnings)} if self.warnings else {}), **(report or {})}
        record = {
            "model": dict(model),
            "dataset": dict(dataset),
            "evaluations": [{k: v for k, v in asdict(e).items() if v is not None} for e in self.evaluations],
            "doubts": list(self.doubts),
            **({"report": said} if said else {}),
            "environment": {
                "rocl_transfer": __version__,
                "torch": torch.__version__,
                "timm": version("timm"),
                "python": platform.python_version(),
                "device": self.device,
                "precision": self.precision,
            },
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "training": dict(training),
            "seed": self.seed,
            "config": dict(config),
        }
        if self.verdicts:
            verdicts = Path(folder) / "verdicts.jsonl"
            verdicts.write_text("".join(json.dumps(line) + "\n" for line in self.verdicts), encoding="utf-8")
        path = Path(folder) / "results.json"
        path.write_text(json.dumps(scrub(record, places(config)), indent=1) + "\n", encoding="utf-8")
        return path
