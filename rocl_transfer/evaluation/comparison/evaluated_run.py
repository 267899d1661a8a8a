"""An evaluated run read back: what its record and its verdicts say of each sample, and whether the two agree."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocl_transfer.errors import UserError, one_line
from rocl_transfer.evaluation.doubts import Answers, doubts
from rocl_transfer.evaluation.results import entry_key

_FEW = 30  # samples; of fewer an older record's verdicts say too little to doubt it


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """What a run folder says of its model's answers.

    Attributes:
        folder: Where it was read.
        model: ``results.json``'s, with name and sha256.
        dataset: ``results.json``'s.
        conditions: For each evaluation that ``results.json`` describes, its entry.
        index: (N,) rising numbers of the samples in their split.
        labels: (N,).
        right: For each evaluation (N,) booleans.
        doubts: Why its accuracies do not mean what they seem to, one sentence each.
    """

    folder: Path
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    conditions: Mapping[str, Mapping[str, Any]]
    index: np.ndarray
    labels: np.ndarray
    right: Mapping[str, np.ndarray]
    doubts: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The folder, printable also where its name is no UTF-8."""
        return str(self.folder).encode(errors="replace").decode()


def read_run(folder: str | Path) -> EvaluatedRun:
    """What ``results.json`` and ``verdicts.jsonl`` in ``folder`` say.

    Raises:
        UserError: There is no such folder or file, or one is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: check the path")
    for name in ("results.json", "verdicts.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name the run folder of an evaluated classifier")
    try:
        results = json.loads((folder / "results.json").read_bytes())
        model, dataset, evaluations = results["model"], results["dataset"], results["evaluations"]
        conditions = {entry_key(entry): entry for entry in evaluations}
        whole = isinstance(model["name"], str) and isinstance(dataset["name"], str)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{folder / 'results.json'} cannot be read as the record of an evaluation: evaluate the run again")
    index, labels, right = _read_verdicts(folder / "verdicts.jsonl")
    run = EvaluatedRun(
        folder=folder, model=model, dataset=dataset, conditions=conditions, index=index, labels=labels, right=right,
        doubts=_doubts(results, labels, right),
    )  # fmt: skip
    for key, n, accuracy in recorded(run):
        if n == len(index) and round(accuracy * n) != right[key].sum():
            numbers = f"{round(accuracy * n)} samples right under {key!r} and verdicts.jsonl {right[key].sum()}"
            raise UserError(f"in {folder} results.json counts {numbers}: they are of different evaluations, so evaluate the run again")
    return run


def _doubts(results: Mapping[str, Any], labels: np.ndarray, right: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The record's; of a record that was written before there were any, what the verdicts give, if not too few to tell."""
    recorded = results.get("doubts")
    if isinstance(recorded, list):
        return tuple(one_line(doubt) for doubt in recorded if isinstance(doubt, str))
    classes = results["dataset"].get("classes")
    if "clean" not in right or len(labels) < _FEW or labels.min() < 0 or labels.max() > 10**6:
        return ()
    return tuple(doubts(Answers(labels, right, max(int(labels.max()) + 1, classes if type(classes) is int else 0))))


def recorded(run: EvaluatedRun) -> Iterator[tuple[str, int, float]]:
    """Key, n and accuracy of the evaluations that both of a run's files have."""
    for key, entry in run.conditions.items():
        n, accuracy = entry.get("n"), entry.get("accuracy")
        if key in run.right and isinstance(n, int) and isinstance(accuracy, (int, float)):
            yield key, n, accuracy


def _read_verdicts(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Index, labels and verdicts by rising index."""
    lines: list[tuple[int, int, list[bool]]] = []
    seen: dict[int, int] = {}
    keys: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                line = _read_line(text, f"{path}, line {number},")
                found = {key: None for key, value in line.items() if isinstance(value, bool)}
                keys = keys or found
                if problem := _mismatch(keys, found):
                    raise UserError(f"{path}, line {number}, {problem}: evaluate the run again")
                if (first := seen.setdefault(line["index"], number)) != number:
                    raise UserError(f"{path}, line {number}, has the index {line['index']} of line {first}: evaluate the run again")
                lines.append((line["index"], line["label"], [line[key] for key in keys]))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions") from error
    if not lines:
        raise UserError(f"{path} is empty: evaluate the run again")
    lines.sort()
    index, labels, right = zip(*lines, strict=True)
    return np.array(index), np.array(labels), dict(zip(keys, np.array(right).T, strict=True))


def _read_line(text: bytes, where: str) -> dict[str, Any]:
    """One sample: an object with whole numbers as index and label."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise UserError(f"{where} is not a JSON object: evaluate the run again")
    for name in ("index", "label"):
        if type(line.get(name)) is not int or abs(line[name]) >= 2**63:
            raise UserError(f"{where} has no whole number as {name}: evaluate the run again")
    return line


def _mismatch(keys: Mapping[str, None], found: Mapping[str, None]) -> str | None:
    """What is wrong with a line that has the verdicts ``found`` in a file whose first line has ``keys``."""
    if not keys:
        return "has no verdict, true or false"
    if missing := [key for key in keys if key not in found]:
        return f"has no verdict, true or false, for {missing[0]!r}"
    if more := [key for key in found if key not in keys]:
        return f"has a verdict for {more[0]!r}, which line 1 has not"
    return None
