"""What benchmarks of many trainings share: recipes run in this process, rows kept as JSON lines, network passes counted."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rocl_transfer.config import parse
from rocl_transfer.errors import UserError
from rocl_transfer.hub import run_folder

RECIPES = Path(__file__).parents[1] / "recipes"
CONFIGS = RECIPES / "configs"
sys.path.insert(0, str(RECIPES))

import evaluate  # noqa: E402
import finetune  # noqa: E402
import linear_probe  # noqa: E402
import pretrain  # noqa: E402
import robustify  # noqa: E402

KINDS = {
    pretrain: pretrain.PretrainConfig,
    robustify: robustify.RobustifyConfig,
    linear_probe: linear_probe.ProbeConfig,
    finetune: finetune.FinetuneConfig,
    evaluate: evaluate.EvaluateConfig,
}


def passes(method: str, steps: float, *, batchnorm: bool = True, ema: bool = False) -> float:
    """Network passes an image that a step of a method takes: a pass forward counts 1, back to the pixels alone 1, a full one back 2.

    Args:
        method: standard, trades, at, simclr, rocl, acl, dynacl, fare, deacl, lore, simclip.
        steps: Of its attack.
        batchnorm: Whether the network has BatchNorm, for which a student's clean images go through it too.
        ema: Whether DynACL's second views go through a running average.
    """
    if method == "standard":
        return 3
    if method == "simclr":
        return 2 * 3
    if method in ("acl", "dynacl"):  # both views are attacked; then two adversarial and two clean ones, or the second ones without a gradient
        return 2 * 2 * steps + (2 * 3 + 2 if ema else 4 * 3)
    if method == "rocl":  # the target once, the attack, two views for the regulariser and three for the main loss
        return 1 + 2 * steps + 5 * 3
    if method == "at":
        return 2 * steps + 3
    if method == "trades":  # the clean answer, the attack, clean and adversarial images
        return 1 + 2 * steps + 2 * 3
    both = batchnorm or method in ("deacl", "lore")
    return 1 + 2 * steps + (2 if both else 1) * 3  # the teacher, the attack, the student


def begin() -> None:
    """One thread a process; and no pictures, which took 1.5 s of each of 216 runs."""
    torch.set_num_threads(1)
    run_folder.can_draw = lambda: False


def run(recipe: Any, folder: Path, *words: object) -> None:
    """One recipe, unless its run is there. A run that its guard ends leaves none, and ``ended`` says why. What it took is beside it."""
    if (folder / "results.json").exists() or (folder / "ended").exists():
        return
    began = time.perf_counter()
    try:
        recipe.main(parse(KINDS[recipe], ["--output_dir", str(folder), *map(str, words)]))
    except UserError as error:
        if not str(error).startswith("training "):
            raise
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ended").write_text(str(error))
    finally:  # of a run that a signal ends as well
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_suffix(".seconds").write_text(f"{seconds(folder) + time.perf_counter() - began:.1f}")


def seconds(folder: Path) -> float:
    """What a run took, its starts together; 0 where there is none."""
    clock = folder.with_suffix(".seconds")
    return float(clock.read_text()) if clock.exists() else 0.0


def accuracies(folder: Path) -> dict[str, float] | None:
    """Accuracy in % by radius, ``0`` clean, ``autoattack`` where it was run; None for a run that its guard ended."""
    if not (folder / "results.json").exists():
        return None
    found = json.loads((folder / "results.json").read_text())["evaluations"]
    names = {"clean": "0", "autoattack": "autoattack"}
    return {names.get(entry["name"], f"{entry.get('epsilon', 0):g}"): round(100 * entry["accuracy"], 2) for entry in found}


def kept(path: Path, keys: Sequence[dict[str, Any]], make: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of ``keys``: read from the JSON lines of ``path``, or made and written there, so that a killed benchmark is resumed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    there = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if text and not text.endswith("\n"):  # killed while it wrote
        path.write_text("".join(json.dumps(row) + "\n" for row in there))
    rows = []
    for key in keys:
        row = next((row for row in there if key.items() <= row.items()), None)
        if row is None:
            row = {**key, **make(key)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def spread(values: Sequence[float | None]) -> str:
    """Mean (lowest-highest) of what did not end in the guard's sentence."""
    alive = [value for value in values if value is not None]
    ended = f", {len(values) - len(alive)} ended by the guard" if len(alive) < len(values) else ""
    if not alive:
        return "-" + ended
    mean = sum(alive) / len(alive)
    return (f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(alive):.1f}-{max(alive):.1f})") + ended
