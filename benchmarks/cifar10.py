"""Reference models of natural images: small ResNets for CIFAR-10, made by the rows of recipes/configs/cifar10_*.yaml and measured with AutoAttack.

    python benchmarks/cifar10.py --data path/to/cifar10 [--rows nfgsm twin] [--mixed_precision bf16] [--search_precision bf16]

Rows: ``nfgsm`` (N-FGSM from random weights, the control), ``twin`` (an ordinary ResNet-20, robustified without labels, its head untouched),
``twin-r-le`` (a robust linear head on the twin), ``rocl-r-le`` and ``rocl-ft`` (RoCL from random weights, then r-LE or N-FGSM fine-tuning). Every
part is a recipe's command line, as the header of its YAML file has it. What is there is not made again (so
``cp -r model_cards/... runs/cifar10/twin`` stands for the twin and its teacher, with 0 minutes), and a part that was cut short is resumed.
Prints the table of benchmarks/RESULTS.md: clean, PGD-20 and AutoAttack of the same test images, with 95 % intervals, and the minutes.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from rows import CONFIGS, evaluate, finetune, linear_probe, pretrain, robustify, run, seconds


@dataclass(frozen=True)
class Part:
    """One run of a recipe, on the model that another part left."""

    recipe: ModuleType
    config: str
    start: str | None = None


@dataclass(frozen=True)
class Row:
    """A model and the radii (of 255) that it is measured at."""

    part: str
    what: str
    radii: tuple[int, ...] = (8,)


PARTS = {
    "nfgsm": Part(finetune, "cifar10_nfgsm_resnet20.yaml"),
    "standard": Part(finetune, "cifar10_standard_resnet20.yaml"),
    "twin": Part(robustify, "cifar10_robustify_resnet20.yaml", "standard"),
    "twin-r-le": Part(linear_probe, "cifar10_r_le.yaml", "twin"),
    "rocl": Part(pretrain, "cifar10_rocl_resnet20.yaml"),
    "rocl-r-le": Part(linear_probe, "cifar10_r_le.yaml", "rocl"),
    "rocl-ft": Part(finetune, "cifar10_nfgsm_finetune.yaml", "rocl"),
}
ROWS = (
    Row("nfgsm", "N-FGSM from random weights"),
    Row("twin", "an ordinary network, robustified at 4/255 without labels", (4, 8)),
    Row("twin-r-le", "its twin, a robust linear head (r-LE)", (4, 8)),
    Row("rocl-r-le", "RoCL, a robust linear head (r-LE)"),
    Row("rocl-ft", "RoCL, N-FGSM fine-tuning"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder, or its name on the Hub")
    parser.add_argument("--title", default="CIFAR-10 (JPEG q75)", help="what cards and table call it")
    parser.add_argument("--rows", nargs="+", choices=[row.part for row in ROWS], default=[row.part for row in ROWS])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--samples", type=int, default=1000, help="test images that a model is measured on")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of the trainings")
    parser.add_argument("--search_precision", choices=("fp32", "bf16"), default="fp32", help="of attacks; successes are judged in fp32")
    parser.add_argument("--words", nargs="*", default=[], help="more options for every training, such as max_steps=2")
    options = parser.parse_args()
    os.environ["ACCELERATE_MIXED_PRECISION"] = options.mixed_precision
    for row in ROWS:
        if row.part in options.rows:
            make(row.part, options)
            for radius in row.radii:
                for attacks in ("paper", "standard"):
                    measure(row.part, radius, attacks, options)
    print(table([row for row in ROWS if row.part in options.rows], options))


def make(name: str, options: argparse.Namespace) -> None:
    """The part's run folder, and what it stands on. A published model that is copied there stands for its part."""
    part, folder = PARTS[name], options.output_dir / name
    if part.start is not None and not (folder / "results.json").exists():
        make(part.start, options)
    start = [] if part.start is None else ["--model.name", options.output_dir / part.start]
    more = [f"--{word}" for word in options.words]
    run(part.recipe, folder, "--config", CONFIGS / part.config, "--data.name", options.data, "--data.title", options.title, *start, *more)
    if (folder / "ended").exists():
        sys.exit(f"{folder}: {(folder / 'ended').read_text()}")


def measure(name: str, radius: int, attacks: str, options: argparse.Namespace) -> None:
    words = ["--model.name", options.output_dir / name, "--data.name", options.data, "--data.title", options.title]
    words += ["--attacks", attacks, "--epsilon", f"{radius}/255", "--samples", options.samples]
    words += ["--search_precision", options.search_precision]
    run(evaluate, options.output_dir / f"{name}-{attacks}-{radius}", *words)


def table(rows: list[Row], options: argparse.Namespace) -> str:
    lines = ["", f"{options.title}, {options.samples:,} test images, accuracy in % (95 % interval), minutes of training and of AutoAttack:", ""]
    lines += ["| model | clean | radius | PGD-20 | AutoAttack | training | attack |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for radius in row.radii:
            found = {attacks: evaluations(options.output_dir / f"{row.part}-{attacks}-{radius}") for attacks in ("paper", "standard")}
            cells = [shown(found["standard"]["clean"]), f"{radius}/255", shown(found["paper"]["pgd-20"]), shown(found["standard"]["autoattack"])]
            attack = minutes(options.output_dir / f"{row.part}-standard-{radius}")
            lines.append(f"| {row.what} | {' | '.join(cells)} | {trained(row.part, options.output_dir)} | {attack} |")
    return "\n".join(lines)


def evaluations(folder: Path) -> dict[str, dict]:
    return {entry["name"]: entry for entry in json.loads((folder / "results.json").read_text())["evaluations"]}


def shown(entry: dict) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def trained(name: str, output: Path) -> str:
    """Minutes of a part and of all that it stands on, in turn."""
    part = PARTS[name]
    own = minutes(output / name)
    return own if part.start is None else f"{trained(part.start, output)} + {own}"


def minutes(folder: Path) -> str:
    return f"{seconds(folder) / 60:.0f}"


if __name__ == "__main__":
    main()
