"""What robust pre-training brings to real data: RoCL, SimCLR and random starts, adapted by LE, r-LE, AT and TRADES, with all labels and a tenth.

    python benchmarks/transfer.py --cifar10 path/to/cifar10 --clothing path/to/clothing --output_dir runs/transfer

Every cell is a run of the recipes, through their command lines. The images are written once as PNG files and CSVs of paths, labels and splits; a
tenth of the labels is another CSV of the same images, so pre-training always sees all of them. Prints the tables of RESULTS.md; a run that is there
is not repeated, so a benchmark that was cut short is resumed.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rows import CONFIGS, begin, finetune, linear_probe, pretrain, run

from rocl_transfer.data import ImageData, load_images
from rocl_transfer.data.decode import decode
from rocl_transfer.data.splits import stratified_cut

STARTS, ADAPTATIONS, SHARES = ("rocl", "simclr", "random"), ("le", "r_le", "at", "trades"), ("all", "tenth")


@dataclass(frozen=True)
class Task:
    """One dataset, and the sizes that let all of it run in minutes on two cores."""

    size: int
    model: str
    images: int | None
    epsilon: str
    config: str | None
    pretrain_epochs: int
    adapt_epochs: int


TASKS = {
    "digits": Task(16, "resnet8_cifar", None, "0.1", "digits", 20, 6),
    "cifar10": Task(32, "test_resnet", 1200, "4/255", None, 12, 6),
    "clothing": Task(32, "test_resnet", 1200, "4/255", None, 12, 6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", help="folder of CIFAR-10 as parquet")
    parser.add_argument("--clothing", help="image folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/transfer"))
    options = parser.parse_args()
    began = time.perf_counter()
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), begin) as pool:
        for name, source in {"digits": "digits", "cifar10": options.cifar10, "clothing": options.clothing}.items():
            if source is not None:
                task, folder = TASKS[name], options.output_dir / name
                sizes = write_images(load_images(source, image_size=task.size), task, folder)
                # The longest first, so that no process is left alone with one at the end.
                waiting = [pool.submit(adapt, task, folder, start, seed) for start, seed in itertools.product(STARTS, range(options.seeds))]
                for job in waiting:
                    job.result()
                print(table(name, task, folder, sizes, options.seeds), flush=True)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes")


def write_images(data: ImageData, task: Task, folder: Path) -> dict[str, int]:
    """PNGs, ``all.csv`` and ``tenth.csv``; returns how many images each split has."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    sizes, rows, few = {}, [], []
    share = min(1.0, (task.images or len(data.train)) / len(data.train))
    for split, images in {"train": data.train, "validation": data.validation, "test": data.test}.items():
        assert images is not None
        labels = images.labels.numpy()
        kept = stratified_cut(labels, len(images), share * (len(images) > 1000), 0)[1] if share < 1 else np.arange(len(images))
        kept = kept if len(kept) else np.arange(len(images))
        sizes[split] = len(kept)
        tenth = set(kept[stratified_cut(labels[kept], len(kept), 0.1, 1)[1]].tolist())
        for position in kept.tolist():
            path = folder / "images" / f"{split}-{position}.png"
            if not path.exists():
                pixels = decode(images.rows.encoded(int(images.indices[position])), task.size, split)
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
            row = [f"images/{path.name}", data.class_names[labels[position]], split]
            rows.append(row)
            if split != "train" or position in tenth:
                few.append(row)
    for name, chosen in {"all": rows, "tenth": few}.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", "label", "split"], *chosen])
    return sizes


def adapt(task: Task, folder: Path, start: str, seed: int) -> None:
    """Pre-train (or not), then adapt in every way."""
    runs = folder / f"{start}-{seed}"
    seeded = ["--seed", seed, "--log_every", 1000, "--checkpoint_every", 100_000]
    model = ["--model.name", task.model, "--model.pretrained", "false"]
    if start != "random":
        method = ["--config", CONFIGS / f"digits_{start}.yaml"] if task.config == "digits" else natural(task, start)
        data = ["--data.name", folder / "all.csv", "--data.image_size", task.size, "--model.name", task.model]
        run(pretrain, runs / "pretrain", *method, *data, "--epochs", task.pretrain_epochs, *seeded, "--monitor_every", 100)
        model = ["--model.name", runs / "pretrain"]
    measured = ["--evaluation.epsilons", f"[{task.epsilon}]"]
    flip = ["--augmentation.flip_probability", 0] if task.config == "digits" else []
    for share, method in itertools.product(SHARES, ADAPTATIONS):
        words = [*model, "--data.name", folder / f"{share}.csv", "--data.image_size", task.size, *seeded, *measured]
        attack = ["--attack.epsilon", task.epsilon]
        if method in ("le", "r_le"):
            given = [*attack, "--attack.step_size", "null", "--attack.steps", 3, "--epochs", 5] if method == "r_le" else []
            run(linear_probe, runs / f"{method}-{share}", "--config", CONFIGS / f"digits_{method}.yaml", *words, *given)
        else:
            # A tenth of the images gets the steps of a third of them.
            epochs = task.adapt_epochs if share == "all" else 3 * task.adapt_epochs
            steps = ["--attack.steps", 3, "--monitor_every", epochs // 3, "--epochs", epochs, "--batch_size", 64]
            run(finetune, runs / f"{method}-{share}", *words, *attack, *steps, *flip, "--method", method)


def natural(task: Task, start: str) -> list[object]:
    """Pre-training on photographs: RoCL's views."""
    attack = ["--objective.attack.epsilon", task.epsilon, "--objective.attack.steps", 3] if start == "rocl" else []
    optimizer = ["--optimizer.name", "adamw", "--optimizer.lr", "2e-3", "--optimizer.weight_decay", "1e-4", "--optimizer.warmup_epochs", 3]
    return ["--objective.method", start, *attack, *optimizer, "--optimizer.warmup_lr", 0, "--batch_size", 128]


def table(name: str, task: Task, folder: Path, sizes: dict[str, int], seeds: int) -> str:
    """Clean / robust accuracy in %, mean (lowest-highest) over seeds."""
    lines = [
        "",
        f"{name}, {task.size} px, {task.model}, {sizes['train']} training images, PGD-20 linf {task.epsilon} on {sizes['test']} test images:",
        "",
        "| labels | start | " + " | ".join(f"{method.replace('_', '-')} clean | robust" for method in ADAPTATIONS) + " |",
        "| --- | --- |" + " --- | --- |" * len(ADAPTATIONS),
    ]
    for share, start in itertools.product(SHARES, STARTS):
        cells = []
        for method in ADAPTATIONS:
            files = [folder / f"{start}-{seed}" / f"{method}-{share}" / "results.json" for seed in range(seeds)]
            found = [json.loads(file.read_text())["evaluations"] for file in files if file.exists()]
            ended = f", {seeds - len(found)} ended by the guard" if len(found) < seeds else ""
            for which in (0, 1):
                values = [100 * entries[which]["accuracy"] for entries in found]
                cells.append((f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else "-") + (ended if which else ""))
        lines.append(f"| {share} | {start} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
