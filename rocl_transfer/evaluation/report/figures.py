"""Pictures for the card. They need matplotlib, an extra: without it there are none, and the log says so."""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rocl_transfer.attacks import Attack
from rocl_transfer.evaluation.report.pictures import Pictures
from rocl_transfer.evaluation.results import Results

log = logging.getLogger("rocl_transfer")


@contextmanager
def drawn(
    target: Path | io.StringIO, rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], sharex: bool = False, **saved: Any
) -> Iterator[tuple[Any, Any]]:  # fmt: skip
    """A figure and its axes (rows, columns), written when what is drawn inside is done.

    Args:
        target: Where to.
        rows: How many there are below each other.
        columns: How many there are beside each other.
        figsize: In inches.
        sharex: Whether all axes have one scale.
        saved: What else matplotlib's ``savefig`` takes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):  # a class or a folder called "$x$" is no formula
        figure = Figure(layout="constrained", dpi=120, figsize=figsize)
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex)
        _save(figure, target, saved)


def can_draw() -> bool:
    """Whether matplotlib is there; says so if not."""
    there = find_spec("matplotlib") is not None
    if not there:
        log.info("no figures are drawn: they need matplotlib (pip install 'rocl-transfer[plots]')")
    return there


def draw_training(metrics: Path, target: Path) -> None:
    """The losses, and what the monitor saw, over the steps of a ``metrics.jsonl``.

    Means of whole epochs where there are three or more: windows of steps rise and fall with whether an epoch's last, smaller batch is among them.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    beside = {"step", "epoch", "lr", "images_per_second", "memory_bytes", "last", "rolled_back_from", "lr_factor"}
    names = [name for name in dict.fromkeys(key for line in lines for key in line) if name not in beside and not name.startswith("epoch_")]
    with drawn(target, 1, len(names), figsize=(3.4 * len(names), 2.8)) as (_, axes):
        for axis, name in zip(axes[0], names, strict=True):
            by_step, by_epoch = ([(line["step"], line[key]) for line in lines if key in line] for key in (name, f"epoch_{name}"))
            points = by_epoch if len(by_epoch) >= 3 else by_step
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", color="tab:blue")
            axis.set(xlabel="step", title=name.replace("_", " "))
            axis.grid(alpha=0.3)


def draw_robustness(results: Results, target: Path) -> None:
    """Accuracy over epsilon with its 95 % interval; epsilon 0 is the clean accuracy."""
    points = sorted([(e.epsilon or 0.0, e.accuracy, *e.interval) for e in results.evaluations])
    epsilon, accuracy, low, high = zip(*points, strict=True)
    attack = results.evaluations[-1]
    with drawn(target, figsize=(4.4, 3.0)) as (_, axes):
        axis = axes[0, 0]
        axis.fill_between(epsilon, low, high, alpha=0.2, color="tab:blue", linewidth=0)
        axis.plot(epsilon, accuracy, marker="o", color="tab:blue")
        axis.set(xlabel=f"epsilon ({attack.norm}, pixels in [0, 1])", ylabel="accuracy", ylim=(0, 1), title=f"{attack.name}, n = {attack.n}")
        axis.grid(alpha=0.3)


def draw_adversarial(pictures: Pictures, attack: Attack, class_names: Sequence[str], target: Path) -> None:
    """One column per sample: clean, perturbation, adversarial, with what the model said of it in the evaluation.

    Args:
        pictures: What is shown.
        attack: What found them.
        class_names: One a logit.
        target: The picture's file.
    """
    says = [[class_names[int(i)] for i in answers] for answers in (pictures.clean_answers, pictures.adversarial_answers)]
    delta = pictures.adversarial - pictures.clean
    scaled = delta / (2 * delta.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)) + 0.5
    n = len(pictures.clean)
    with drawn(target, 3, n, figsize=(1.15 * n, 4.1)) as (figure, axes):
        for column in range(n):
            rows = zip((pictures.clean, scaled, pictures.adversarial), (says[0][column], "", says[1][column]), strict=True)
            for row, (images, title) in enumerate(rows):
                axis = axes[row, column]
                axis.imshow(images[column].permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_title(title, fontsize=8, color="black" if not title or title == class_names[int(pictures.labels[column])] else "tab:red")
                axis.axis("off")
        figure.suptitle(f"{attack.name}, {attack.norm} {float(attack.epsilon):.3g}; wrong answers in red, grey where nothing was found", fontsize=8)


def _save(figure: Any, target: Path | io.StringIO, saved: Mapping[str, Any]) -> None:
    """Letters that matplotlib's font lacks are boxes in the picture, which is said once, not for each letter; on a page the browser has fonts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(target, **saved)
    others = [warning for warning in caught if "lyph" not in str(warning.message)]
    name = target.name if isinstance(target, Path) else "page"
    if len(others) < len(caught) and isinstance(target, Path):
        log.info("%s: the font lacks letters of the names, boxes stand for them", name)
    for warning in others:
        log.info("%s: %s", name, warning.message)


def svg_broken(rows: Sequence[tuple[str, int]], n: int) -> str:
    """A waterfall from all samples down to those that still stand, as SVG for a page.

    Args:
        rows: (what, samples) from the top: wrong from the start, broken by each part of an ensemble, still standing.
        n: All samples.
    """

    def draw(axis: Any) -> None:
        left = float(n)
        for row, (_, count) in enumerate(rows):
            left -= count
            last = row == len(rows) - 1
            start = 0.0 if last else left
            axis.barh(row, 100 * count / n, left=100 * start / n, color="tab:blue" if last else "tab:orange" if row else "tab:gray", height=0.7)
            right = start + count > 0.8 * n
            axis.annotate(
                f"{count} ({100 * count / n:.1f} %)", (100 * (start if right else start + count) / n, row), (-4 if right else 4, 0),
                textcoords="offset points", va="center", ha="right" if right else "left",
            )  # fmt: skip
            if not last:
                axis.plot([100 * left / n] * 2, [row - 0.35, row + 1.35], color="black", linewidth=0.6, alpha=0.5)
        axis.set(xlabel="% of samples", xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
        axis.set_yticklabels([_short(name) for name, _ in rows])
        axis.grid(alpha=0.3, axis="x")

    return _svg("broken", "What is broken by which attack", 0.75 + 0.3 * len(rows), draw)


def svg_curve(points: Sequence[Mapping[str, Any]], mean: float | None, to: float | None, title: str) -> str:
    """Accuracy over epsilon with its 95 % interval, as SVG for a page.

    Args:
        points: Each ``epsilon``, ``accuracy`` and ``interval``.
        mean: Expected robustness, a dashed line.
        to: The epsilon as far as it is the mean (default: the last).
        title: The attack.
    """

    def draw(axis: Any) -> None:
        rows = sorted((p["epsilon"], p["accuracy"], *(p.get("interval") or [p["accuracy"]] * 2)) for p in points)
        epsilon, *shares = zip(*rows, strict=True)
        accuracy, low, high = ([100 * share for share in row] for row in shares)
        axis.fill_between(epsilon, low, high, alpha=0.2, color="tab:blue", linewidth=0, label="95 % interval")
        axis.plot(epsilon, accuracy, marker="o", markersize=4, color="tab:blue", label="accuracy")
        if mean is not None:
            axis.plot(
                [0, to or epsilon[-1]],
                [100 * mean] * 2,
                color="tab:orange",
                linestyle="--",
                linewidth=1.2,
                label=f"expected robustness {100 * mean:.2f} %",
            )
        axis.set(xlabel="epsilon (pixels in [0, 1])", ylabel="accuracy %", ylim=(0, 100), title=_short(title, 60))
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8, framealpha=0.8)

    return _svg("curve", "Accuracy over epsilon", 3.2, draw)


def svg_classes(rows: Sequence[Mapping[str, Any] | None]) -> str:
    """Clean and robust accuracy of classes as horizontal bars, as SVG for a page.

    Args:
        rows: From the top, each ``name``, ``clean`` and ``robust``; None is a gap.
    """

    def draw(axis: Any) -> None:
        shown = [(place, row) for place, row in enumerate(rows) if row is not None]
        places = [place for place, _ in shown]
        axis.barh(places, [100 * row["clean"] for _, row in shown], color="#bcd6e8", height=0.78, label="clean")
        axis.barh(places, [100 * row["robust"] for _, row in shown], color="tab:blue", height=0.46, label="robust")
        axis.set(xlabel="accuracy %", xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), yticks=places)
        axis.set_yticklabels([_short(str(row["name"])) for _, row in shown])
        axis.grid(alpha=0.3, axis="x")
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8, frameon=False)

    return _svg("classes", "Clean and robust accuracy of each class", 0.9 + 0.22 * len(rows), draw)


def _short(text: str, most: int = 24) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(name: str, label: str, height: float, draw: Callable[[Any], None]) -> str:
    """An ``<svg>`` that shares a document with others: every id has ``name`` before it."""
    from matplotlib import rc_context

    # A browser has fonts for what matplotlib's own cannot show.
    options = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "axes.titlesize": 9}
    buffer, nothing = io.StringIO(), dict.fromkeys(["Creator", "Date", "Format", "Type"])
    with rc_context(options), drawn(buffer, figsize=(5.2, height), format="svg", metadata=nothing) as (_, axes):
        axes[0, 0].set_axisbelow(True)
        axes[0, 0].spines[["top", "right"]].set_visible(False)
        draw(axes[0, 0])
    text = buffer.getvalue()
    text = text[text.index("<svg ") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    named = re.compile(r'((?<=\s)id="|url\(#|href="#)')
    return re.sub(r"<[^>]+>", lambda tag: named.sub(rf"\g<1>{name}-", tag[0]), text)
