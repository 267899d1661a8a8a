"""Whether the fast step learns what the exact one does: RoCL on digits, r-LE, PGD-20, over seeds.

    python benchmarks/quality.py --seeds 5

"fast" is the regulariser from the main forward pass, and bf16 autocast where the device has units for it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import torch
from rocl_step import has_bf16_units

ROOT = Path(__file__).parents[1]


def run(recipe: str, *words: str) -> None:
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, str(ROOT / "recipes" / recipe), *words], env=environment, check=True, capture_output=True)


def measure(folder: Path, row: str, seed: int, extra: list[str]) -> dict[str, float]:
    here, seeded = folder / f"{row}-{seed}", ["--seed", str(seed), "--log_every", "100"]
    configs = ROOT / "recipes" / "configs"
    run("pretrain.py", "--config", str(configs / "digits_rocl.yaml"), *seeded, *extra, "--output_dir", str(here / "pre"))
    run(
        "linear_probe.py",
        "--config",
        str(configs / "digits_r_le.yaml"),
        *seeded,
        "--model.name",
        str(here / "pre"),
        "--output_dir",
        str(here / "r-le"),
    )
    record = json.loads((here / "r-le" / "results.json").read_text())
    return {entry["name"] + (f" {entry['epsilon']:g}" if "epsilon" in entry else ""): 100 * entry["accuracy"] for entry in record["evaluations"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--folder", default="runs/quality")
    words = parser.parse_args()
    bf16 = has_bf16_units(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows = {"exact": [], "fast": ["--objective.shared_regularizer", "true"]}
    if bf16:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    found: dict[str, dict[str, list[float]]] = {row: defaultdict(list) for row in rows}
    for seed in range(words.first, words.first + words.seeds):
        for row, extra in rows.items():
            if bf16:
                os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if row == "fast" else "no"
            for name, accuracy in measure(Path(words.folder), row, seed, extra).items():
                found[row][name].append(accuracy)
            print(f"seed {seed}, {row}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in found[row].items()), flush=True)
    print("\n| step | " + " | ".join(found["exact"]) + " |\n| --- |" + " --- |" * len(found["exact"]))
    for row, columns in found.items():
        cells = " | ".join(f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})" for values in columns.values())
        print(f"| {row} | {cells} |")


if __name__ == "__main__":
    main()
