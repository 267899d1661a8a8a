"""What makes an accuracy doubtful, one sentence each: it is held against guessing, against one answer for all images, and against the start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rocl_transfer.training.chance import wilson_interval

_LOOK = (
    "look whether it was trained, whether its normalisation is inside it (images come as pixels in [0, 1]), and whether its classes are in the "
    "order of the data's"
)


@dataclass(frozen=True)
class Answers:
    """What a model said.

    Attributes:
        labels: (N,) whole numbers, one or more.
        right: For each evaluation, ``clean`` among them, (N,) booleans.
        classes: K, of the model's logits.
        given: (N,) the class given to each clean image; None if it was not written down.
        names: The classes' names; empty if they have none.
    """

    labels: np.ndarray
    right: Mapping[str, np.ndarray]
    classes: int
    given: np.ndarray | None = None
    names: Sequence[str] = ()

    def name(self, label: int) -> str:
        """As a sentence calls a class."""
        return repr(self.names[label]) if label < len(self.names) else str(label)


def doubts(said: Answers) -> list[str]:
    """Why the accuracies do not mean what they seem to; empty if nothing was found."""
    n, counts = len(said.labels), np.bincount(said.labels)
    clean = said.right["clean"]
    if (counts > 0).sum() == 1:
        only = f"all {n} images are of one class, {said.name(int(counts.argmax()))}: an accuracy on them cannot be told from one answer for all"
        return [only, *_unbroken(said)]
    if said.given is not None and n > 1 and len(set(said.given.tolist())) == 1:
        everywhere = said.name(int(said.given[0]))
        numbers = _numbers(int(clean.sum()), n, said.classes)
        return [f"every image gets class {everywhere}: {numbers}, is that class's share and no merit, under every attack alike; {_LOOK}"]
    weak = weakness("clean accuracy", int(clean.sum()), n, said.classes, counts.max() / n, said.name(int(counts.argmax())), _recall(said))
    return [*([weak] if weak else _as_robust(said, counts)), *_unbroken(said)]


def weakness(
    what: str, right: int, n: int, classes: int, commonest: float, name: str, recall: float | None = None
) -> str | None:  # fmt: skip
    """A sentence where ``right`` of ``n`` images is no more than guessing or the commonest answer gives; None else.

    Args:
        what: Whose accuracy it is.
        right: Images classified rightly.
        n: All images.
        classes: K.
        commonest: Share of the commonest class, which one answer for all gets right.
        name: That class's name.
        recall: The mean over the classes, if it is known.
    """
    share, (low, high), chance = right / n, wilson_interval(right, n), 1 / classes
    if low > max(chance, commonest):
        return None
    numbers = _numbers(right, n, classes)
    always = f", {name} for all {percent(commonest)} %" if commonest > chance + 5e-5 else ""
    if high < chance:
        return f"{what} is below guessing: {numbers}{always}; {_LOOK}"
    if low <= chance:
        few = "" if share <= chance else " by more than chance"
        return f"{what} is not above guessing{few}: {numbers}{always}; {_LOOK}"
    few = "" if share <= commonest else " by more than chance"
    mean = "" if recall is None else f"; the mean over the classes is {percent(recall)} %"
    return f"{what} is not above the commonest answer{few}: {numbers}{always}{mean}"


def against_the_start(start: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """A sentence where the exported weights are no better than those that training began with, on the images that watched both; empty else.

    Args:
        start: What is known of the start: ``validation_accuracy`` and, under attack, ``validation_robust_accuracy``.
        training: What is known of the training; its ``best`` has the same of the exported weights.
    """
    best = training.get("best") or {}
    measured = [name for name in ("validation_accuracy", "validation_robust_accuracy") if name in start and name in best]
    if not measured or any(best[name] > start[name] for name in measured):
        return []
    words = {"validation_accuracy": "clean", "validation_robust_accuracy": "robust"}
    before, after = (", ".join(f"{percent(look[name])} % {words[name]}" for name in measured) for look in (start, best))
    return [f"training gained nothing on the {start.get('watched', 'validation')} images: {before} at the start, {after} at the exported epoch"]


def percent(share: float) -> str:
    """A share as it is printed."""
    return f"{100 * share:.2f}"


def span(low: float, high: float) -> str:
    """An interval as it is printed, in per cent."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _numbers(right: int, n: int, classes: int) -> str:
    return f"{percent(right / n)} %, interval {span(*wilson_interval(right, n))} % of {n} images, guessing {percent(1 / classes)} %"


def _recall(said: Answers) -> float:
    clean = said.right["clean"]
    return float(np.mean([clean[said.labels == label].mean() for label in np.unique(said.labels)]))


def _as_robust(said: Answers, counts: np.ndarray) -> list[str]:
    """Where a model that looks at no image would be as robust; of 0 % everybody sees it."""
    n, constant = len(said.labels), max(float(counts.max()) / len(said.labels), 1 / said.classes)
    weak = []
    for key, standing in said.right.items():
        right = int(standing.sum())
        if key != "clean" and 0 < right <= constant * n:
            weak.append((right, key))
    if not weak:
        return []
    right, key = max(weak)
    under = f"under {key} ({percent(right / n)} %, interval {span(*wilson_interval(right, n))} %)"
    return [f"{under} and whatever breaks more, one answer for all images would do as well ({percent(constant)} %)"]


def _unbroken(said: Answers) -> list[str]:
    """Where attacks were made and none broke anything."""
    clean = said.right["clean"]
    attacks = [key for key in said.right if key != "clean"]
    if not attacks or not clean.any() or any((said.right[key] != clean).any() for key in attacks):
        return []
    count = int(clean.sum())
    which = f"{attacks[-1]}" if len(attacks) == 1 else f"{len(attacks)} attacks, {attacks[-1]} the last"
    return [f"nothing broke one of the {count} right answers ({which}): epsilon may be too small to tell, or no gradient reaches the pixels"]
