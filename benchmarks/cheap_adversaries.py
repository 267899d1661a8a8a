"""What an attack of few steps costs in robustness and saves in network passes: fine-tuning, RoCL and robustify on digits.

    python benchmarks/cheap_adversaries.py [--methods at trades rocl robustify] [--seeds 3] [--output_dir runs/cheap_adversaries]

``at`` and ``trades`` train from random weights against PGD of several numbers of steps, one that grows (``1..7``) and N-FGSM, once for the same
epochs and, against fewer steps, once for the epochs that take the passes of the most steps. ``rocl`` and ``robustify`` (of the SimCLR backbone
that is trained in the same way) get the same epochs for all, and a robust linear head (digits_r_le.yaml). Step sizes are automatic. Measured by
PGD-20 at 0.1 on 360 test images. Rows are kept in rows.jsonl, so an interrupted benchmark is resumed.
"""

import argparse
import shutil
from pathlib import Path

from rows import CONFIGS, accuracies, begin, finetune, kept, linear_probe, passes, pretrain, robustify, run, seconds, spread

ATTACKS = {
    "at": ("nfgsm", "1", "2", "3", "1..7", "7", "10"),
    "trades": ("2", "3", "10"),
    "rocl": ("nfgsm", "1", "2", "3", "5", "7"),
    "robustify": ("nfgsm", "1", "2", "3", "5", "7"),
}
RADIUS = "0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--attacks", nargs="+", help="of those above (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of at and trades")
    parser.add_argument("--pretrain_epochs", type=int, default=28, help="of RoCL and of the SimCLR that robustify starts from")
    parser.add_argument("--robustify_epochs", type=int, default=10)
    parser.add_argument("--head_epochs", type=int, default=8)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cheap_adversaries"))
    options = parser.parse_args()
    begin()
    keys = []
    for seed in range(options.seeds):  # the seed first: one whole table is there before another begins
        for method in options.methods:
            for attack in ATTACKS[method]:
                if options.attacks is None or attack in options.attacks:
                    keys += [{"seed": seed, "method": method, "attack": attack, "epochs": epochs} for epochs in lengths(method, attack, options)]
    print(table(kept(options.output_dir / "rows.jsonl", keys, lambda key: measured(key, options))))


def average_steps(attack: str) -> float:
    """Of a training; N-FGSM's one."""
    first, _, last = attack.partition("..")
    return (int(first) + int(last)) / 2 if last else 1 if attack == "nfgsm" else int(attack)


def cost(method: str, attack: str) -> float:
    """Network passes an image and epoch."""
    return passes("fare" if method == "robustify" else method, average_steps(attack))


def lengths(method: str, attack: str, options: argparse.Namespace) -> list[int]:
    """Epochs: as many as all, and where there are labels as many as take the passes of the method's most steps."""
    if method in ("rocl", "robustify"):
        return [options.pretrain_epochs if method == "rocl" else options.robustify_epochs]
    equal = round(options.epochs * cost(method, ATTACKS[method][-1]) / cost(method, attack))
    return list(dict.fromkeys((options.epochs, equal)))


def attacked(attack: str, prefix: str = "--attack") -> list[object]:
    if attack == "nfgsm":
        return [f"{prefix}.epsilon", RADIUS, f"{prefix}.kind", "nfgsm", f"{prefix}.steps", 1, f"{prefix}.step_size", "auto"]
    first, _, last = attack.partition("..")
    growing = [f"{prefix}.first_steps", first] if last else []
    return [f"{prefix}.epsilon", RADIUS, f"{prefix}.steps", last or first, f"{prefix}.step_size", "auto", *growing]


def measured(key: dict, options: argparse.Namespace) -> dict:
    """One row; of its run folders nothing is kept but the teacher."""
    seeded = ["--seed", key["seed"], "--log_every", 1000, "--checkpoint_every", 100_000, "--monitor_every", 1000]
    here, method, epochs = options.output_dir / "row", key["method"], key["epochs"]
    shutil.rmtree(here, ignore_errors=True)
    measure = ["--evaluation.epsilons", f"[{RADIUS}]"]
    if method in ("at", "trades"):
        data = ["--data.name", "digits", "--data.image_size", 16, "--model.name", "resnet8_cifar", "--model.pretrained", "false"]
        words = ["--method", method, "--augmentation.flip_probability", 0, "--batch_size", 64, "--epochs", epochs]
        run(finetune, here / "trained", *data, *words, *attacked(key["attack"]), *measure, *seeded)
        answered = here / "trained"
    else:
        pretraining = ["--epochs", options.pretrain_epochs, "--optimizer.warmup_epochs", min(8, options.pretrain_epochs // 3), *seeded]
        if method == "rocl":
            config = CONFIGS / "digits_rocl.yaml"
            run(pretrain, here / "trained", "--config", config, *pretraining, *attacked(key["attack"], "--objective.attack"))
        else:
            teacher = options.output_dir / f"teacher-{key['seed']}"
            run(pretrain, teacher, "--config", CONFIGS / "digits_simclr.yaml", *pretraining)
            words = ["--config", CONFIGS / "digits_robustify.yaml", "--model.name", teacher, "--evaluation.steps", 1, "--epochs", epochs]
            run(robustify, here / "trained", *words, *attacked(key["attack"]), *seeded)
        if not (here / "trained" / "ended").exists():
            head = ["--config", CONFIGS / "digits_r_le.yaml", "--model.name", here / "trained", "--epochs", options.head_epochs]
            run(linear_probe, here / "head", *head, *measure, *seeded)
        answered = here / "head"
    found, took = accuracies(answered), round(seconds(here / "trained"), 1)
    shutil.rmtree(here, ignore_errors=True)
    return {"accuracy": found, "seconds": took}


def table(rows: list[dict]) -> str:
    """Accuracy in %, mean (lowest-highest) over seeds."""
    head = ["method", "attack", "epochs", "passes an image", "seconds", "clean", f"PGD-20 at {RADIUS}"]
    lines = ["", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for method, attack, epochs in dict.fromkeys((row["method"], row["attack"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["method"], row["attack"], row["epochs"]) == (method, attack, epochs)]
        took = sum(row["seconds"] for row in own) / len(own)
        found = [spread([row["accuracy"] and row["accuracy"][radius] for row in own]) for radius in ("0", RADIUS)]
        lines.append(f"| {method} | {attack} | {epochs} | {epochs * cost(method, attack):.0f} | {took:.0f} | {found[0]} | {found[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
