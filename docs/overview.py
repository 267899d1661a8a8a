"""Draw docs/overview.png: a digit, what an attack adds to it, the result; and accuracy over epsilon with and without robust pre-training.

    python docs/overview.py

The images: the robust example in model_cards/, PGD-20 at L-inf 0.1 on the first test digit that stands it and the first that does not. The curves:
the table of three seeds in benchmarks/RESULTS.md.
"""

import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import rocl_transfer as rt
from rocl_transfer.data import load_images, store_splits

ROOT = Path(__file__).resolve().parents[1]
EPSILON = 0.1
CURVES = (("RoCL", "r-LE", "tab:blue", "RoCL: against an adversary"), ("SimCLR", "LE", "tab:orange", "SimCLR: without one"))


def quick_start(text: str) -> dict[tuple[str, str], list[tuple[float, float, float, float]]]:
    """(epsilon, mean, lowest, highest) of each row of the quick start's table in RESULTS.md, by backbone and head."""
    section = text.split("## Quick start")[1].split("\n## ")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    epsilons = [0.0 if name == "clean" else float(name.removeprefix("epsilon ")) for name in head[2:]]
    curves = {}
    for backbone, kind, *cells in rows:
        if len(cells) != len(epsilons):
            break  # the next table
        numbers = [tuple(map(float, re.fullmatch(r"([\d.]+) \(([\d.]+)-([\d.]+)\)", cell).groups())) for cell in cells]  # type: ignore[union-attr]
        curves[backbone, kind] = [(epsilon, *three) for epsilon, three in zip(epsilons, numbers, strict=True)]
    return curves


def draw_images(axes: Any) -> None:
    """One row per image: clean, perturbation (grey is 0), adversarial."""
    model = rt.load_classifier(str(ROOT / "model_cards" / "resnet8_cifar.r_le_digits"))
    data = load_images("digits", image_size=model.input_size)
    data, stores = store_splits(data, ["test"], torch.device("cpu"))
    images, labels = next(iter(stores["test"].batches([torch.arange(60)]))).float() / 255, data.test.labels[:60]
    adversarial = rt.PGD(epsilon=EPSILON, steps=20)(model, images, labels)
    with torch.no_grad():
        before, after = model(images).argmax(1), model(adversarial).argmax(1)
    stands, falls = (int(mask.nonzero()[0]) for mask in ((before == labels) & (after == labels), (before == labels) & (after != labels)))
    for row, i in enumerate((stands, falls)):
        shown = (images[i], 0.5 + (adversarial[i] - images[i]) / (2 * EPSILON), adversarial[i])
        titles = (f"“{model.class_names[int(before[i])]}”", f"± {EPSILON}", f"“{model.class_names[int(after[i])]}”")
        for axis, picture, title in zip(axes[row], shown, titles, strict=True):
            axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_title(title, fontsize=11, color="tab:red" if row and axis is axes[row][2] else "black")
            axis.axis("off")


def draw_curves(axis: Any) -> None:
    """Mean and range of three seeds."""
    curves = quick_start((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"))
    for backbone, kind, colour, label in CURVES:
        epsilon, mean, low, high = zip(*curves[backbone, kind], strict=True)
        axis.fill_between(epsilon, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(epsilon, mean, marker="o", color=colour, label=label)
    axis.set(xlabel="epsilon (L-inf, pixels in [0, 1])", ylabel="accuracy in %, PGD-20", ylim=(0, 102), xlim=(0, None))
    axis.set_title("Pre-trained without labels", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.3)


def main() -> None:
    """Draw the picture into its place."""
    figure = Figure(layout="constrained", dpi=130, figsize=(8.6, 3.3))
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    draw_images(left.subplots(2, 3))
    draw_curves(right.subplots())
    figure.savefig(ROOT / "docs" / "overview.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
