"""The picture of a comparison. It needs matplotlib, see :func:`~rocl_transfer.evaluation.report.figures.can_draw`."""

from pathlib import Path

from rocl_transfer.evaluation.comparison.compare import Comparison
from rocl_transfer.evaluation.report.figures import drawn

COLOURS = {"better": "tab:blue", "worse": "tab:red", "no difference shown": "tab:gray"}
TALLEST = 400  # inches; matplotlib refuses pictures of 2**16 pixels and more


def draw_comparison(comparison: Comparison, target: Path) -> None:
    """A forest plot: one panel per evaluation, in it one row per pair with the difference in points and its 95 % interval."""
    keys = list(dict.fromkeys(one.evaluation for one in comparison.differences))
    rows = len(comparison.differences) // len(keys)
    names = "\n".join(f"{letter}: {run.shown}" for letter, run in comparison.runs.items())
    height = min(TALLEST, len(keys) * (0.55 + 0.27 * rows) + 0.19 * len(comparison.runs) + 0.6)
    with drawn(target, len(keys), figsize=(7.0, height), sharex=True) as (figure, axes):
        panels = axes[:, 0]
        for axis, key in zip(panels, keys, strict=True):
            shown = [one for one in comparison.differences if one.evaluation == key]
            for row, one in enumerate(shown):
                low, high = (100 * end for end in one.interval)
                axis.plot([low, high], [row, row], color=COLOURS[one.conclusion], linewidth=2)
                axis.plot(100 * one.difference, row, marker="o", color=COLOURS[one.conclusion])
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(rows), [f"{one.second} - {one.first}" for one in shown])
            axis.set_ylim(rows - 0.5, -0.5)
            axis.set_title(f"{key}, n = {shown[0].n}", fontsize=9, loc="left")
            axis.grid(axis="x", alpha=0.3)
        panels[-1].set_xlabel("difference in accuracy, points, with 95 % interval\nblue: better, red: worse, gray: no difference shown")
        figure.suptitle(names, fontsize=8, x=0.02, ha="left")
