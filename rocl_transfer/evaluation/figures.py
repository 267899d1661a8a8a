"""Pictures for the card. They need matplotlib, an extra: without it there are none, and the log says so."""

import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import PGD
from rocl_transfer.data import generators
from rocl_transfer.evaluation.results import Results

log = logging.getLogger("rocl_transfer")


def _axes(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=120, **options)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


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
    figure, axes = _axes(1, len(names), figsize=(3.4 * len(names), 2.8))
    for axis, name in zip(axes[0], names, strict=True):
        by_step, by_epoch = ([(line["step"], line[key]) for line in lines if key in line] for key in (name, f"epoch_{name}"))
        points = by_epoch if len(by_epoch) >= 3 else by_step
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", color="tab:blue")
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.grid(alpha=0.3)
    figure.savefig(target)


def draw_robustness(results: Results, target: Path) -> None:
    """Accuracy over epsilon with its 95 % interval; epsilon 0 is the clean accuracy."""
    points = sorted([(e.epsilon or 0.0, e.accuracy, *e.interval) for e in results.evaluations])
    epsilon, accuracy, low, high = zip(*points, strict=True)
    attack = results.evaluations[-1]
    figure, axes = _axes(figsize=(4.4, 3.0))
    axis = axes[0, 0]
    axis.fill_between(epsilon, low, high, alpha=0.2, color="tab:blue", linewidth=0)
    axis.plot(epsilon, accuracy, marker="o", color="tab:blue")
    axis.set(xlabel=f"epsilon ({attack.norm}, pixels in [0, 1])", ylabel="accuracy", ylim=(0, 1), title=f"{attack.name}, n = {attack.n}")
    axis.grid(alpha=0.3)
    figure.savefig(target)


def draw_adversarial(model: nn.Module, images: Tensor, labels: Tensor, attack: PGD, class_names: Sequence[str], target: Path) -> None:
    """A column an image: clean, perturbation, adversarial, with what the model says of it.

    Args:
        model: Images (N, 3, H, W) in [0, 1] -> logits.
        images: The few to be shown, float in [0, 1].
        labels: (N,).
        attack: What perturbs them.
        class_names: One a logit.
        target: The picture's file.
    """
    adversarial = attack(model, images, labels, generators(range(len(images)), "figure", images.device))
    with torch.no_grad():
        says = [[class_names[int(i)] for i in model(x).argmax(1)] for x in (images, adversarial)]
    delta = adversarial - images
    shown = delta / (2 * delta.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)) + 0.5
    n = len(images)
    figure, axes = _axes(3, n, figsize=(1.15 * n, 4.1))
    for column in range(n):
        rows = zip((images, shown, adversarial), (says[0][column], "", says[1][column]), strict=True)
        for row, (pictures, title) in enumerate(rows):
            axis = axes[row, column]
            axis.imshow(pictures[column].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_title(title, fontsize=8, color="black" if not title or title == class_names[int(labels[column])] else "tab:red")
            axis.axis("off")
    figure.suptitle(f"{attack.norm} {attack.epsilon:.3g}, {attack.steps} steps; wrong answers in red", fontsize=8)
    figure.savefig(target)
