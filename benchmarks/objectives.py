"""Every objective at equal compute: what a network learns without labels for the same number of network passes an image, the teacher's included.

    python benchmarks/objectives.py [--data digits] [--budget 728] [--seeds 3] [--rows rocl acl] [--ways le r_le trades]
    python benchmarks/objectives.py --data path/to/cifar10 --model resnet20_cifar --epsilon 8/255

A pass forward counts 1, back to the pixels 1, a full one back 2 (``rows.passes``). ``simclr``, ``rocl``, ``acl`` and ``dynacl`` begin with random
weights and spend the budget on epochs; ``fare``, ``deacl`` and ``lore`` spend a quarter of it on the SimCLR that they start from. The budget of
728 is the quick start's 28 epochs of RoCL. Each backbone is then adapted by LE, r-LE and TRADES on a tenth of the labels, and measured clean and by
PGD-20; the best of a row's seeds (r-LE) by AutoAttack as well. Images are written once as PNG files and CSVs, as benchmarks/transfer.py does. Every
run that is there is kept, so an interrupted benchmark is resumed. Prints the table of RESULTS.md: seconds of the pre-training beside its passes.
"""

import argparse
import json
from pathlib import Path

from rows import CONFIGS, accuracies, begin, evaluate, finetune, linear_probe, passes, pretrain, robustify, run, seconds, spread
from transfer import Task, write_images

from rocl_transfer.data import load_images
from rocl_transfer.models import create_backbone
from rocl_transfer.objectives import PRETRAINING

SCRATCH, TWINS = ("simclr", "rocl", "acl", "dynacl"), ("fare", "deacl", "lore")
WAYS = ("le", "r_le", "trades")
TEACHER = 0.25  # of the budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_task(parser)
    parser.add_argument("--images", type=int, help="training images (default: all)")
    parser.add_argument("--budget", type=int, default=728, help="network passes an image")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=(*SCRATCH, *TWINS), default=[*SCRATCH, *TWINS])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--head_epochs", type=int, default=8, help="of r-LE; LE has six times as many, TRADES twice")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--autoattack", type=int, default=1000, help="test images that the best r-LE head of a row is attacked on; 0 for none")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/objectives"))
    options = parser.parse_args()
    begin()
    size, sizes = written(options, options.images)
    # The seed first, so that every row has one before any has two.
    for seed in range(options.seeds):
        for row in options.rows:
            adapt(options, row, seed, size)
    for row in options.rows:
        attack_best(options, row)
    print(table(options, sizes))


def add_task(parser: argparse.ArgumentParser) -> None:
    """The data, the network and what it is trained against."""
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="resnet8_cifar")
    parser.add_argument("--epsilon", default="0.1", help="that is trained against and measured at")
    parser.add_argument("--steps", type=int, default=5)


def written(options: argparse.Namespace, images: int | None) -> tuple[int, dict[str, int]]:
    """Side in pixels, and sizes of the splits, of the images that are written as files into ``data``, once."""
    size, folder = 16 if options.data == "digits" else 32, options.output_dir / "data"
    if not (folder / "sizes.json").exists():
        task = Task(size, options.model, images, options.epsilon, None, 0, 0)
        sizes = write_images(load_images(options.data, image_size=size), task, folder)
        (folder / "sizes.json").write_text(json.dumps(sizes))
    return size, json.loads((folder / "sizes.json").read_text())


def cost(options: argparse.Namespace, name: str) -> float:
    """Passes an image and epoch."""
    norms = any("BatchNorm" in type(part).__name__ for part in create_backbone(options.model, 32).modules())
    return passes(name, options.steps, batchnorm=norms)


def epochs(options: argparse.Namespace, row: str) -> dict[str, int]:
    """The epochs of a row's trainings, in their order, within the budget."""
    planned = {"simclr": max(1, round(TEACHER * options.budget / cost(options, "simclr")))} if row in TWINS else {}
    left = options.budget - sum(number * cost(options, name) for name, number in planned.items())
    return {**planned, row: max(2, round(left / cost(options, row)))}


def spent(options: argparse.Namespace, row: str) -> float:
    return sum(number * cost(options, name) for name, number in epochs(options, row).items())


def views(options: argparse.Namespace, group: str) -> list[object]:
    """Digits must not be mirrored; photographs have each method's own views."""
    if options.data != "digits":
        return []
    given = {"brightness": "[0.6, 1]", "contrast": "[1, 1]", "saturation": "[1, 1]", "hue": "[0, 0]", "jitter_probability": 1, "grey_probability": 0}
    given |= {"flip_probability": 0, "crop_area": "[1, 1]", "rotation": "[-20, 20]", "scale": "[0.8, 1.25]", "shift": 0.2}
    return [word for name, value in given.items() for word in (f"--{group}.{name}", value)]


def learn(options: argparse.Namespace, row: str, seed: int, size: int, start: Path | None = None, images: Path | None = None) -> Path:
    """The row's backbone, and before it the teacher, where it has one and ``start`` gives none."""
    images = images or options.output_dir / "data" / "all.csv"
    shared = ["--data.name", images, "--data.image_size", size, *seeded(seed), "--batch_size", options.batch_size]
    for name, number in epochs(options, row).items():
        is_teacher = name != row
        if is_teacher and start is not None:
            continue
        folder = options.output_dir / (f"teacher-{seed}" if is_teacher else f"{row}-{seed}") / "trained"
        if start is None:
            attack = PRETRAINING[name].Options().__dict__.get("attack")
            given = ["--objective.attack.epsilon", options.epsilon, "--objective.attack.steps", options.steps] if attack is not None else []
            optimizer = {
                "name": "adamw",
                "lr": "4e-3",
                "weight_decay": "1e-4",
                "schedule": "cosine",
                "warmup_epochs": round(number * 2 / 7),
                "warmup_lr": 0,
            }
            rates = [word for option, value in optimizer.items() for word in (f"--optimizer.{option}", value)]
            words = ["--model.name", options.model, "--objective.method", name, *given, *rates, *views(options, "views")]
            run(pretrain, folder, *shared, *words, "--epochs", number)
        else:
            weight = ["--clean_weight", 0.5] if name == "fare" else []
            words = ["--model.name", start, "--method", name, *weight, "--attack.epsilon", options.epsilon, "--attack.steps", options.steps]
            rates = ["--optimizer.name", "adamw", "--optimizer.lr", "2e-3", "--optimizer.weight_decay", "1e-4", "--evaluation.steps", 1]
            run(robustify, folder, *shared, *words, *rates, *views(options, "views"), "--epochs", number)
        start = folder
    assert start is not None
    return start


def seeded(seed: int) -> list[object]:
    return ["--seed", seed, "--log_every", 1000, "--checkpoint_every", 100_000, "--monitor_every", 100_000]


def adapt(options: argparse.Namespace, row: str, seed: int, size: int) -> None:
    """Pre-train, then every way of adaptation."""
    backbone, data = learn(options, row, seed, size), options.output_dir / "data"
    if not (backbone / "results.json").exists():
        return  # its guard ended it, which the table says
    words = ["--model.name", backbone, "--data.image_size", size, *seeded(seed), "--evaluation.epsilons", f"[{options.epsilon}]"]
    attack = ["--attack.epsilon", options.epsilon, "--attack.steps", options.steps]
    for way in options.ways:
        folder, number = backbone.parent / way, options.head_epochs
        if way == "trades":
            flip = ["--augmentation.flip_probability", 0] if options.data == "digits" else []
            given = ["--method", "trades", *attack, *flip, "--batch_size", 64, "--epochs", 2 * number]
            run(finetune, folder, *words, "--data.name", data / "tenth.csv", *given)
        else:
            given = [*attack, "--attack.step_size", "auto", "--epochs", number] if way == "r_le" else ["--epochs", 6 * number]
            run(linear_probe, folder, "--config", CONFIGS / f"digits_{way}.yaml", *words, "--data.name", data / "all.csv", *given)


def measured(options: argparse.Namespace, row: str, way: str) -> list[dict[str, float] | None]:
    return [accuracies(options.output_dir / f"{row}-{seed}" / way) for seed in range(options.seeds)]


def radius(options: argparse.Namespace) -> str:
    numerator, _, denominator = options.epsilon.partition("/")
    return f"{float(numerator) / float(denominator or 1):g}"


def best(options: argparse.Namespace, row: str) -> Path | None:
    """The r-LE head of the seed that stood PGD-20 best."""
    found = [(part[radius(options)], seed) for seed, part in enumerate(measured(options, row, "r_le")) if part is not None]
    return options.output_dir / f"{row}-{max(found)[1]}" / "r_le" if found else None


def attack_best(options: argparse.Namespace, row: str) -> None:
    head = best(options, row)
    if head is not None and options.autoattack:
        words = ["--model.name", head, "--data.name", options.output_dir / "data" / "all.csv", "--epsilon", options.epsilon, "--update_card", "false"]
        run(evaluate, head.parent / "autoattack", *words, "--samples", options.autoattack)


def table(options: argparse.Namespace, sizes: dict[str, int]) -> str:
    """Accuracy in %, mean (lowest-highest) over seeds."""
    columns = [column for way in options.ways for column in (f"{way.replace('_', '-')} clean", "PGD-20")]
    head = ["objective", "epochs", "passes an image", "seconds", *columns, "AutoAttack (best r-LE)"]
    lines = [f"{options.data}, {options.model}, {sizes['train']} images without labels, radius {options.epsilon}, {options.steps} steps:", ""]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in options.rows:
        parts = ["teacher"] if row in TWINS else []
        took = [sum(seconds(options.output_dir / f"{part}-{seed}" / "trained") for part in (*parts, row)) for seed in range(options.seeds)]
        cells = [" + ".join(map(str, epochs(options, row).values())), f"{spent(options, row):g}", f"{sum(took) / len(took):.0f}"]
        for way in options.ways:
            found = measured(options, row, way)
            cells += [spread([None if part is None else part[place] for part in found]) for place in ("0", radius(options))]
        head_of_best = best(options, row)
        attacked = None if head_of_best is None else accuracies(head_of_best.parent / "autoattack")
        lines.append(f"| {row} | " + " | ".join([*cells, "-" if attacked is None else f"{attacked['autoattack']:.1f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
