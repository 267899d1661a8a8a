"""Evaluated models compared on the samples they share: paired differences in accuracy, with intervals and tests for pairs."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocl_transfer.errors import UserError

LEVEL = 0.05  # of the conclusions, over all comparisons together
METHOD = {
    "difference": "accuracy of the second run - accuracy of the first, shares in [0, 1]",
    "interval": "95 %, Tango's score interval for paired proportions (Statistics in Medicine 17, 1998, 891-908), not adjusted",
    "p": "exact McNemar test, two-sided: binomial on the samples that one of both alone gets right",
    "p_holm": "Holm's step-down adjustment over all comparisons of this file",
    "conclusion": f"of the second run; better or worse where p_holm < {LEVEL}",
}


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
    """

    folder: Path
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    conditions: Mapping[str, Mapping[str, Any]]
    index: np.ndarray
    labels: np.ndarray
    right: Mapping[str, np.ndarray]

    @property
    def shown(self) -> str:
        """The folder, printable also where its name is no UTF-8."""
        return str(self.folder).encode(errors="replace").decode()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs under one evaluation; accuracies and their difference as shares in [0, 1].

    Attributes:
        evaluation: Its key in ``verdicts.jsonl``.
        first: Letter of the run compared with.
        second: Letter of the run that the difference speaks for.
        n: Common samples.
        accuracy: Of the first and of the second.
        difference: Second - first.
        interval: 95 %, of the difference.
        only_first: Numbers of the samples that only the first gets right.
        only_second: Numbers of the samples that only the second gets right.
        p: Exact McNemar test, two-sided.
        p_holm: The same, adjusted for all comparisons made together.
        conclusion: better, worse, or no difference shown.
    """

    evaluation: str
    first: str
    second: str
    n: int
    accuracy: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    p: float
    p_holm: float
    conclusion: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every number of a comparison.

    Attributes:
        runs: By letter.
        left_out: By letter, how many of the run's samples other runs lack.
        differences: Evaluation by evaluation, in each pair by pair.
        notes: What a reader must know of them.
    """

    runs: dict[str, EvaluatedRun]
    left_out: dict[str, int]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As ``comparison.json`` holds it."""
        return {
            "method": METHOD,
            "runs": {
                letter: {
                    "folder": run.shown, "model": dict(run.model), "dataset": dict(run.dataset), "samples": len(run.index),
                    "left_out": self.left_out[letter],
                }
                for letter, run in self.runs.items()
            },
            "comparisons": [
                {
                    **vars(one), "only_first": len(one.only_first), "only_second": len(one.only_second),
                    "samples_only_first": one.only_first, "samples_only_second": one.only_second,
                }
                for one in self.differences
            ],
            "notes": self.notes,
        }  # fmt: skip


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
        conditions = {_key(entry): entry for entry in evaluations}
        whole = isinstance(model["name"], str) and isinstance(dataset["name"], str)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{folder / 'results.json'} cannot be read as the record of an evaluation: evaluate the run again")
    index, labels, right = _read_verdicts(folder / "verdicts.jsonl")
    run = EvaluatedRun(folder=folder, model=model, dataset=dataset, conditions=conditions, index=index, labels=labels, right=right)
    for key, n, accuracy in _recorded(run):
        if n == len(index) and round(accuracy * n) != right[key].sum():
            numbers = f"{round(accuracy * n)} samples right under {key!r} and verdicts.jsonl {right[key].sum()}"
            raise UserError(f"in {folder} results.json counts {numbers}: they are of different evaluations, so evaluate the run again")
    return run


def _key(entry: Mapping[str, Any]) -> str:
    """What :func:`~rocl_transfer.evaluation.evaluate` calls the evaluation in ``verdicts.jsonl``."""
    return f"{entry['name']} {entry['norm']} {entry['epsilon']:.6g}" if entry.get("epsilon") else str(entry["name"])


def _recorded(run: EvaluatedRun) -> Iterator[tuple[str, int, float]]:
    """Key, n and accuracy of the evaluations that both files have."""
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
        raise UserError(f"{where} is no JSON object: evaluate the run again")
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


def compare(runs: Sequence[EvaluatedRun], all_pairs: bool = False) -> Comparison:
    """Compare runs on the samples and the evaluations that all of them have.

    Args:
        runs: Two to 26; the first is the reference.
        all_pairs: Every run with every other, not with the first alone.

    Raises:
        UserError: They were measured on different data, or share no samples or no evaluation.
    """
    lettered = {chr(ord("A") + i): run for i, run in enumerate(runs)}
    for other in runs[1:]:
        _require_same_data(runs[0], other)
    common = runs[0].index
    for other in runs[1:]:
        common = np.intersect1d(common, other.index, assume_unique=True)
    if not len(common):
        raise UserError(f"{', '.join(run.shown for run in runs)} have no sample in common: compare runs measured on the same images")
    at = {letter: np.searchsorted(run.index, common) for letter, run in lettered.items()}
    _require_same_labels(lettered, common, at)
    keys = [key for key in runs[0].right if all(key in run.right for run in runs)]
    if not keys:
        names = "; ".join(f"{run.shown}: {', '.join(run.right)}" for run in runs)
        raise UserError(f"the runs share no evaluation ({names}): evaluate them under the same attacks")

    pairs = [pair for pair in itertools.combinations(lettered, 2) if all_pairs or pair[0] == "A"]
    samples = [
        (key, first, second, lettered[first].right[key][at[first]], lettered[second].right[key][at[second]])
        for key in keys
        for first, second in pairs
    ]
    p = [mcnemar_p(int((a & ~b).sum()), int((b & ~a).sum())) for _, _, _, a, b in samples]
    differences = [
        _difference(key, first, second, a, b, common, p_value, adjusted)
        for (key, first, second, a, b), p_value, adjusted in zip(samples, p, holm(p), strict=True)
    ]
    left_out = {letter: len(run.index) - len(common) for letter, run in lettered.items()}
    return Comparison(runs=lettered, left_out=left_out, differences=tuple(differences), notes=tuple(_notes(lettered, left_out, keys)))


def _require_same_data(reference: EvaluatedRun, other: EvaluatedRun) -> None:
    for name in ("name", "revision", "split", "cut"):
        one, two = (run.dataset.get(name) for run in (reference, other))
        if name == "name":
            one, two = str(Path(str(one))), str(Path(str(two)))  # a trailing slash is no difference
        # A record of an earlier version has no cut.
        if one != two and not (name == "cut" and None in (one, two)):
            where = f"{reference.shown} and {other.shown} were measured on different data"
            raise UserError(f"{where} (the dataset's {name}: {one} and {two}): compare runs measured on the same images")


def _require_same_labels(lettered: Mapping[str, EvaluatedRun], common: np.ndarray, at: Mapping[str, np.ndarray]) -> None:
    reference = lettered["A"]
    labels = reference.labels[at["A"]]
    for letter, run in lettered.items():
        theirs = run.labels[at[letter]]
        if len(wrong := np.flatnonzero(labels != theirs)):
            i = wrong[0]
            where = f"{reference.shown} and {run.shown} were measured on different data"
            raise UserError(f"{where} (sample {common[i]} has the labels {labels[i]} and {theirs[i]}): compare runs measured on the same images")


def _difference(
    key: str, first: str, second: str, a: np.ndarray, b: np.ndarray, common: np.ndarray, p: float, p_holm: float
) -> Difference:  # fmt: skip
    only_first, only_second = (tuple(common[mask].tolist()) for mask in (a & ~b, b & ~a))
    n = len(common)
    difference = (len(only_second) - len(only_first)) / n
    conclusion = "no difference shown" if p_holm >= LEVEL else "better" if difference > 0 else "worse"
    return Difference(
        evaluation=key, first=first, second=second, n=n, accuracy=(int(a.sum()) / n, int(b.sum()) / n), difference=difference,
        interval=tango_interval(len(only_first), len(only_second), n), only_first=only_first, only_second=only_second, p=p, p_holm=p_holm,
        conclusion=conclusion,
    )  # fmt: skip


def _notes(lettered: Mapping[str, EvaluatedRun], left_out: Mapping[str, int], keys: Sequence[str]) -> Iterator[str]:
    for sha in dict.fromkeys(run.model.get("sha256") for run in lettered.values()):
        same = [letter for letter, run in lettered.items() if run.model.get("sha256") == sha]
        if sha and len(same) > 1:
            yield f"{' and '.join(same)} are the same model (sha256 {str(sha)[:12]}): a difference between them comes of how they were measured"
    for letter, count in left_out.items():
        if count:
            total = len(lettered[letter].index)
            yield f"{letter}: {count} of {total} samples {'is' if count == 1 else 'are'} left out, for not every run has them"
    for key in dict.fromkeys(key for run in lettered.values() for key in run.right if key not in keys):
        without = [letter for letter, run in lettered.items() if key not in run.right]
        yield f"{key!r} is left out: it was not measured for {', '.join(without)}"
    for letter, run in lettered.items():
        for key, n, _ in _recorded(run):
            if n != len(run.index):
                yield f"{letter}: results.json has n = {n} under {key!r}, verdicts.jsonl has {len(run.index)} samples"
    for key in keys:
        yield from _unlike(key, {letter: run.conditions[key] for letter, run in lettered.items() if key in run.conditions})


def _unlike(key: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where the runs were not measured alike under one evaluation."""
    measured = {"accuracy", "interval", "n", "seconds"}
    for name in dict.fromkeys(name for entry in entries.values() for name in entry if name not in measured):
        values = {letter: entry.get(name) for letter, entry in entries.items()}
        said = {letter: f"{value:.6g}" if isinstance(value, float) else str(value) for letter, value in values.items()}
        if len(set(said.values())) > 1:
            yield f"{key!r} was not measured alike: {name} is {', '.join(f'{value} for {letter}' for letter, value in said.items())}"


def tango_interval(only_first: int, only_second: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of the difference between paired proportions, second - first.

    The differences that a score test does not reject (Tango, Statistics in Medicine 17, 1998, 891-908); at difference 0 that test is McNemar's.
    It has a width also where no sample is discordant.

    Args:
        only_first: Samples that only the first gets right.
        only_second: Samples that only the second gets right.
        n: All samples, 1 or more.
        z: Quantile of the normal distribution.
    """
    return -_upper_limit(only_first, only_second, n, z), _upper_limit(only_second, only_first, n, z)


def _upper_limit(more: int, less: int, n: int, z: float) -> float:
    inside, outside = (more - less) / n, 1.0
    while inside < (middle := (inside + outside) / 2) < outside:
        if _score(more, less, n, middle) > -z:
            inside = middle
        else:
            outside = middle
    return outside


def _score(more: int, less: int, n: int, delta: float) -> float:
    """Tango's statistic: (more - less) / n minus ``delta``, in standard errors."""
    if delta < 0:
        return -_score(less, more, n, -delta)
    # q: the likeliest share of ``less`` given the difference, a root of 2n q^2 + linear q - constant, without cancellation.
    linear = (2 * n - more + less) * delta - more - less
    constant = less * delta * (1 - delta)
    root = math.sqrt(linear * linear + 8 * n * constant)
    q = (root - linear) / (4 * n) if linear <= 0 else 2 * constant / (root + linear)
    variance = n * (2 * q + delta * (1 - delta))
    distance = more - less - n * delta
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test: were as many to be expected in each of the two discordant counts?"""
    n, low = only_first + only_second, min(only_first, only_second)
    if n - 2 * low <= 1:
        return 1.0  # both tails hold everything
    log_largest = math.lgamma(n + 1) - math.lgamma(low + 1) - math.lgamma(n - low + 1) - n * math.log(2)
    tail = term = 1.0  # in units of the tail's largest term, which may be below what a float holds
    for k in range(low, 0, -1):
        term *= k / (n - k + 1)
        tail += term
        if term < 1e-17 * tail:
            break
    return min(1.0, 2 * math.exp(log_largest + math.log(tail)))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70)."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
