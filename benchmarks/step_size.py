"""Whether a step size has to be chosen: training against attacks of several radii and numbers of steps, a grid of step sizes beside auto, on digits.

    python benchmarks/step_size.py [--methods robustify rocl] [--seeds 3] [--epsilons 0.025 0.05 0.1 0.2] [--steps 3 5 10]

Steps are in radii; ``auto`` falls, ``paper`` is RoCL's 0.223. Every row is a training and a robust linear head on it (digits_r_le.yaml, the same
for all), measured by PGD-20 at every radius. Rows are kept in rows.jsonl, so an interrupted benchmark is resumed. Prints two tables: r-LE at the
radius that was trained against, a column for each step size; and r-LE at every radius by the radius that auto trained against.
"""

import argparse
import itertools
import shutil
from pathlib import Path

from rows import CONFIGS, accuracies, begin, kept, linear_probe, pretrain, robustify, run, seconds, spread

GRID = ("auto", "paper", "0.125", "0.25", "0.5", "1", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=("robustify", "rocl"), default=["robustify", "rocl"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.025, 0.05, 0.1, 0.2])
    parser.add_argument("--steps", nargs="+", type=int, default=[3, 5, 10])
    parser.add_argument("--grid", nargs="+", choices=GRID, default=list(GRID))
    parser.add_argument("--epochs", type=int, default=4, help="of robustify")
    parser.add_argument("--pretrain_epochs", type=int, default=28, help="of RoCL and of the SimCLR that robustify starts from")
    parser.add_argument("--batch_size", type=int, default=128, help="of RoCL: smaller ones learn in fewer epochs")
    parser.add_argument("--head_epochs", type=int, default=8)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/step_size"))
    options = parser.parse_args()
    begin()
    # The seed first: one whole table is there before another begins.
    chosen = itertools.product(range(options.seeds), options.methods, options.steps, options.epsilons, options.grid)
    keys = [dict(zip(("seed", "method", "steps", "epsilon", "step"), key, strict=True)) for key in chosen]
    lengths = {"robustify": {"epochs": options.epochs}, "rocl": {"epochs": options.pretrain_epochs, "batch_size": options.batch_size}}
    keys = [{**key, **lengths[key["method"]]} for key in keys]
    rows = kept(options.output_dir / "rows.jsonl", keys, lambda key: measured(key, options))
    print(tables(rows, options))


def pretraining(method: str, epochs: int) -> list[object]:
    return ["--config", CONFIGS / f"digits_{method}.yaml", "--epochs", epochs, "--optimizer.warmup_epochs", min(8, epochs // 3)]


def measured(key: dict, options: argparse.Namespace) -> dict:
    """One row; of its run folders nothing is kept but the teacher."""
    seeded = ["--seed", key["seed"], "--log_every", 1000, "--checkpoint_every", 100_000, "--monitor_every", 1000]
    here = options.output_dir / "row"
    shutil.rmtree(here, ignore_errors=True)
    step = {"auto": "auto", "paper": "null"}.get(key["step"]) or f"{key['epsilon'] * float(key['step']):.9g}"
    attack = {"epsilon": key["epsilon"], "steps": key["steps"], "step_size": step}
    if key["method"] == "robustify":
        teacher = options.output_dir / f"teacher-{key['seed']}"
        run(pretrain, teacher, *pretraining("simclr", options.pretrain_epochs), *seeded)
        given = [word for name, value in attack.items() for word in (f"--attack.{name}", value)]
        start = ["--config", CONFIGS / "digits_robustify.yaml", "--model.name", teacher, "--evaluation.steps", 1]
        run(robustify, here / "trained", *start, *given, "--epochs", key["epochs"], *seeded)
    else:
        given = [word for name, value in attack.items() for word in (f"--objective.attack.{name}", value)]
        run(pretrain, here / "trained", *pretraining("rocl", key["epochs"]), "--batch_size", key["batch_size"], *given, *seeded)
    radii = f"[{', '.join(map(str, options.epsilons))}]"
    head = ["--config", CONFIGS / "digits_r_le.yaml", "--model.name", here / "trained", "--epochs", options.head_epochs]
    if not (here / "trained" / "ended").exists():
        run(linear_probe, here / "head", *head, "--evaluation.epsilons", radii, *seeded)
    took = round(seconds(here / "trained"), 1)
    found = accuracies(here / "head")
    shutil.rmtree(here, ignore_errors=True)
    return {"accuracy": found, "seconds": took}


def tables(rows: list[dict], options: argparse.Namespace) -> str:
    """r-LE in %, mean (lowest-highest) over seeds."""

    def cell(radius: float, **wanted: object) -> str:
        found = [row["accuracy"] for row in rows if wanted.items() <= row.items()]
        return spread([None if part is None else part[f"{radius:g}"] for part in found])

    lines = ["", "| method | steps | radius | " + " | ".join(options.grid) + " |", "| --- " * (3 + len(options.grid)) + "|"]
    for method, steps, epsilon in itertools.product(options.methods, options.steps, options.epsilons):
        cells = [cell(epsilon, method=method, steps=steps, epsilon=epsilon, step=step) for step in options.grid]
        lines.append(f"| {method} | {steps} | {epsilon:g} | " + " | ".join(cells) + " |")
    tests = [0, *options.epsilons]
    head = " | ".join("clean" if radius == 0 else f"at {radius:g}" for radius in tests)
    lines += ["", f"| method | steps | trained against (auto) | {head} |", "| --- " * (3 + len(tests)) + "|"]
    for method, steps, epsilon in itertools.product(options.methods, options.steps, options.epsilons if "auto" in options.grid else ()):
        cells = [cell(radius, method=method, steps=steps, epsilon=epsilon, step="auto") for radius in tests]
        lines.append(f"| {method} | {steps} | {epsilon:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
