"""How many unlabelled images robust pre-training needs: r-LE against their number, at the same network passes, from scratch and by robustify.

    python benchmarks/few_images.py [--images 50 150 450 1293] [--seeds 3] [--rows rocl fare fare_all]
    python benchmarks/few_images.py --data path/to/cifar10 --model resnet20_cifar --epsilon 8/255 --images 500 2000 10000

``rocl`` begins with random weights. ``fare`` begins with a SimCLR that saw the same images, in a quarter of the passes; ``fare_all`` with one that
saw all images, as a published backbone would have, in as many. All images are as many as the largest of ``--images``, drawn from the data if it has
more; smaller sets are parts of larger ones. No label is used before the head. The passes are the same for every cell, all images together: fewer
images are seen more often. The batch is the same as well, at most the smallest number of images. ``--budget`` is passes per image with all of them.
The last epoch is exported, so that no other image chooses it. The r-LE head, the measuring instrument, is trained with labels on all images. Rows are
kept in rows.jsonl, so an interrupted benchmark is resumed. Prints the table; ``--draw docs/few_images.png`` draws it.
"""

import argparse
import csv
import itertools
import shutil
from pathlib import Path

import numpy as np
from objectives import TEACHER, add_task, epochs, learn, radius, seeded, written
from rows import CONFIGS, accuracies, begin, kept, linear_probe, run, seconds, spread

ROWS = {"rocl": "RoCL from scratch", "fare": "robustify, its start saw the same images", "fare_all": "robustify, its start saw all images"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_task(parser)
    parser.add_argument("--images", nargs="+", type=int, default=[50, 150, 450, 1293])
    parser.add_argument("--budget", type=int, default=728, help="network passes an image with all images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--head_epochs", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/few_images"))
    parser.add_argument("--draw", type=Path, help="picture of the table")
    options = parser.parse_args()
    begin()
    options.size, sizes = written(options, max(options.images))
    options.all = sizes["train"]
    # Not the largest that each cell allows: RoCL on all digits has 66.7 % with batches of 128 and 71.7 with 50, in the same passes.
    options.batch_size = min(options.batch_size, *options.images)
    folder = options.output_dir / "data"
    for number in options.images:
        write_few(folder, number)
    # The seed first: one whole table is there before another begins.
    chosen = itertools.product(range(options.seeds), options.images, options.rows)
    same = {"budget": options.budget, "batch_size": options.batch_size}
    keys = [{"seed": seed, "images": number, "row": row, **same} for seed, number, row in chosen]
    rows = kept(options.output_dir / "rows.jsonl", keys, lambda key: measured(key, options))
    print(table(rows, options))
    if options.draw is not None:
        draw(rows, options)


def write_few(folder: Path, number: int) -> None:
    """``few-N.csv``: N training images drawn without their labels, and all others that are held out."""
    with (folder / "all.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    train = [line for line in lines if line[2] == "train"]
    if number > len(train):
        raise SystemExit(f"--images {number}: there are {len(train)}")
    drawn = set(np.random.default_rng(0).permutation(len(train))[:number].tolist())
    few = [line for position, line in enumerate(train) if position in drawn]
    with (folder / f"few-{number}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *few, *(line for line in lines if line[2] != "train")])


def planned(options: argparse.Namespace, folder: Path, number: int) -> argparse.Namespace:
    """The options of trainings on ``number`` images: as many passes together, hence more epochs."""
    return argparse.Namespace(**{**vars(options), "output_dir": folder, "budget": round(options.budget * options.all / number)})


def measured(key: dict, options: argparse.Namespace) -> dict:
    """One row; of its run folders nothing is kept but the SimCLR that saw all images."""
    number, seed, row = key["images"], key["seed"], key["row"].removesuffix("_all")
    here, data, start = options.output_dir / f"{key['row']}-{number}-{seed}", (options.output_dir / "data").resolve(), None
    few = planned(options, here, number)
    if key["row"] == "fare_all":
        whole = planned(options, options.output_dir / "whole", options.all)
        whole.budget *= TEACHER
        start = learn(whole, "simclr", seed, options.size, images=data / "all.csv")
    trained = learn(few, row, seed, options.size, start, data / f"few-{number}.csv")
    parts = [trained] if row == "rocl" else [start or here / f"teacher-{seed}" / "trained", trained]
    took, head = round(sum(seconds(part) for part in parts), 1), here / "r_le"
    if (trained / "results.json").exists():
        attack = ["--attack.epsilon", options.epsilon, "--attack.steps", options.steps, "--attack.step_size", "auto"]
        words = ["--model.name", trained, "--data.name", data / "all.csv", "--data.image_size", options.size]
        measure = ["--epochs", options.head_epochs, "--evaluation.epsilons", f"[{options.epsilon}]", *seeded(seed)]
        run(linear_probe, head, "--config", CONFIGS / "digits_r_le.yaml", *words, *attack, *measure)
    found = accuracies(head)
    shutil.rmtree(here, ignore_errors=True)
    return {"epochs": epochs(few, row), "accuracy": found, "seconds": took}


def at(rows: list[dict], place: str, **wanted: object) -> list[float | None]:
    """Accuracies at a radius of the rows that are like ``wanted``."""
    found = [row["accuracy"] for row in rows if wanted.items() <= row.items()]
    return [None if part is None else part[place] for part in found]


def table(rows: list[dict], options: argparse.Namespace) -> str:
    """r-LE in %, mean (lowest-highest) over seeds."""
    head = ["images without labels", *(f"{ROWS[row]}: {what}" for row in options.rows for what in ("clean", "PGD-20"))]
    lines = [f"{options.data}, {options.model}, radius {options.epsilon}, {options.budget * options.all:,} image passes a cell:", ""]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for number in options.images:
        cells = [spread(at(rows, place, images=number, row=row)) for row in options.rows for place in ("0", radius(options))]
        lines.append(f"| {number:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict], options: argparse.Namespace) -> None:
    """Mean and range over seeds against the number of images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=130, figsize=(5.2, 3.3))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for row in options.rows:
        alive = {number: [value for value in at(rows, radius(options), images=number, row=row) if value is not None] for number in options.images}
        numbers = [number for number, values in alive.items() if values]
        low, high, mean = ([function(alive[number]) for number in numbers] for function in (min, max, lambda values: sum(values) / len(values)))
        axis.fill_between(numbers, low, high, alpha=0.25, linewidth=0)
        axis.plot(numbers, mean, marker="o", label=ROWS[row])
    axis.set(xscale="log", xlabel="unlabelled images", ylabel=f"r-LE accuracy in %, PGD-20 at {options.epsilon}", ylim=(0, None))
    axis.set_xticks(options.images, [f"{number:,}" for number in options.images], minor=False)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.3)
    figure.savefig(options.draw, metadata={"Software": None})


if __name__ == "__main__":
    main()
