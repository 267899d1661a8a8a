"""Evaluated models compared on the samples they share: paired differences in accuracy, with intervals and tests for pairs."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.comparison.evaluated_run import EvaluatedRun, recorded
from rocl_transfer.evaluation.comparison.paired import holm, mcnemar_p, tango_interval
from rocl_transfer.evaluation.privacy import shorten

LEVEL = 0.05  # of the conclusions, over all comparisons together
METHOD = {
    "difference": "accuracy of the second run - accuracy of the first, shares in [0, 1]",
    "interval": "95 %, Tango's score interval for paired proportions (Statistics in Medicine 17, 1998, 891-908), not adjusted",
    "p": "exact McNemar test, two-sided: binomial on the samples that one of both alone gets right",
    "p_holm": "Holm's step-down adjustment over all comparisons of this file",
    "conclusion": f"of the second run; better or worse where p_holm < {LEVEL}",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs under one evaluation; accuracies and their difference as shares in [0, 1].

    Attributes:
        evaluation: Its key in ``verdicts.jsonl``.
        first: Letter of the run compared with.
        second: Letter of the run that the difference speaks for.
        n: Common samples.
        accuracy: The first model's and the second's.
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
            # A trailing slash is no difference, nor where it lay: records of earlier versions say it.
            one, two = (str(Path(shorten(str(said)))) for said in (one, two))
        # A record of an earlier version has no cut.
        if one != two and not (name == "cut" and None in (one, two)):
            where = f"{reference.shown} and {other.shown} were measured on different data"
            raise UserError(f"{where} (the dataset's {name}: {one} and {two}): compare runs measured on the same images")


def _require_same_labels(lettered: Mapping[str, EvaluatedRun], common: np.ndarray, at: Mapping[str, np.ndarray]) -> None:
    """Models may count the same classes in another order: where the names are known, they are what is compared."""
    reference = lettered["A"]
    labels = reference.labels[at["A"]]
    for letter, run in lettered.items():
        ours, theirs = labels, run.labels[at[letter]]
        names = [_class_names(one) for one in (reference, run)]
        if all(names) and (set(names[0]) <= set(names[1]) or set(names[1]) <= set(names[0])):
            ours, theirs = np.array(names[0])[ours], np.array(names[1])[theirs]
        if len(wrong := np.flatnonzero(ours != theirs)):
            i = wrong[0]
            where = f"{reference.shown} and {run.shown} were measured on different data"
            pair = f"{ours[i].item()!r} and {theirs[i].item()!r}"
            raise UserError(f"{where} (sample {common[i]} has the labels {pair}): compare runs measured on the same images")


def _class_names(run: EvaluatedRun) -> list[str]:
    """One different name per label of the run; empty where its record has none."""
    names = run.dataset.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return []
    return names if run.labels.min() >= 0 and run.labels.max() < len(names) else []


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
    yield from _same_weights(lettered)
    yield from (f"{letter} is doubtful: {doubt}" for letter, run in lettered.items() for doubt in run.doubts)
    for letter, count in left_out.items():
        if count:
            total = len(lettered[letter].index)
            yield f"{letter}: {count} of {total} samples {'is' if count == 1 else 'are'} left out, for not every run has them"
    for key in dict.fromkeys(key for run in lettered.values() for key in run.right if key not in keys):
        without = [letter for letter, run in lettered.items() if key not in run.right]
        yield f"{key!r} is left out: it was not measured for {', '.join(without)}"
    for letter, run in lettered.items():
        for key, n, _ in recorded(run):
            if n != len(run.index):
                yield f"{letter}: results.json has n = {n} under {key!r}, verdicts.jsonl has {len(run.index)} samples"
    for key in keys:
        yield from _unlike(key, {letter: run.conditions[key] for letter, run in lettered.items() if key in run.conditions})


def _same_weights(lettered: Mapping[str, EvaluatedRun]) -> Iterator[str]:
    """Where weights are equal; only with equal code are they the same model."""
    for sha in dict.fromkeys(run.model.get("sha256") for run in lettered.values()):
        same = {letter: run.model for letter, run in lettered.items() if run.model.get("sha256") == sha}
        if not sha or len(same) < 2:
            continue
        who, weights = " and ".join(same), f"sha256 {str(sha)[:12]}"
        codes = {model.get("code_sha256") for model in same.values()}
        unknown = None in codes and any(":" in str(model["name"]) for model in same.values())  # a callable's record before code was hashed
        if len(codes - {None}) > 1:
            yield f"{who} have equal weights ({weights}) and are different models: their code, or the normalisation or shape in config.json, differs"
        elif unknown:
            yield f"{who} have equal weights ({weights}); whether their code is equal was not recorded"
        else:
            yield f"{who} are the same model ({weights}): a difference between them comes of how they were measured"


def _unlike(key: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where the runs were not measured alike under one evaluation."""
    measured = {"accuracy", "interval", "n", "seconds", "passes"}
    for name in dict.fromkeys(name for entry in entries.values() for name in entry if name not in measured):
        values = {letter: entry.get(name) for letter, entry in entries.items()}
        said = {letter: f"{value:.6g}" if isinstance(value, float) else str(value) for letter, value in values.items()}
        if len(set(said.values())) > 1:
            yield f"{key!r} was not measured alike: {name} is {', '.join(f'{value} for {letter}' for letter, value in said.items())}"
