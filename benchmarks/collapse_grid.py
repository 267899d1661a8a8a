"""Short adversarial fine-tunings over methods, families and learning rates: each must end alive, or be stopped by the guard with its sentence.

    python benchmarks/collapse_grid.py --data path/to/images --output_dir runs/grid

Two methods x four families x three learning rates that span a factor of 30 around the family's default. A run whose exported classifier is at chance,
or right on nothing under attack, is a silent collapse: the status is 1 if there is one, or if a run at the default rate did not end alive. A run that
is there is not repeated. Prints the table of RESULTS.md.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from rocl_transfer.models import create_backbone, family

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.py"
sys.path.insert(0, str(RECIPE.parent))
from finetune import FAMILIES  # noqa: E402

MODELS = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit")
METHODS = ("at", "trades")
FACTORS = (30**-0.5, 1.0, 30**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epsilon", default="0.05")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/grid"))
    options, rest = parser.parse_known_args()
    print("| network | method | learning rate | status | rolled back | clean % | robust % | how it ended |\n" + "| --- " * 8 + "|", flush=True)
    bad = 0
    for model, method, factor in itertools.product(MODELS, METHODS, FACTORS):
        rate = factor * FAMILIES[family(create_backbone(model, 32).net)]["lr"]
        folder = options.output_dir / f"{model}-{method}-{rate:.2g}"
        words = ["--data.name", options.data, "--attack.epsilon", options.epsilon, "--epochs", str(options.epochs), *rest]
        status, sentence = run(folder, model, method, [*words, "--optimizer.lr", f"{rate:.6g}"])
        line, silent = judged(folder, status, sentence)
        bad += silent or (factor == 1 and status != 0)
        print(f"| {model} | {method} | {rate:.2g}{' (default)' if factor == 1 else ''} | {status} | {line} |", flush=True)
    print(f"\n{bad} runs collapsed silently, or at the default rate")
    sys.exit(bad > 0)


def run(folder: Path, model: str, method: str, words: list[str]) -> tuple[int, str]:
    """Status and last line of one fine-tuning."""
    ended = folder / "ended.json"
    if not ended.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(RECIPE), "--model.name", model, "--model.pretrained", "false", "--data.image_size", "32", "--method", method]
        began = time.perf_counter()
        done = subprocess.run([*command, "--attack.steps", "3", "--output_dir", str(folder), *words], capture_output=True, text=True, check=False)
        ended.write_text(json.dumps({"status": done.returncode, "last": done.stderr.splitlines()[-1], "seconds": time.perf_counter() - began}))
    content = json.loads(ended.read_text())
    return content["status"], content["last"]


def judged(folder: Path, status: int, sentence: str) -> tuple[str, bool]:
    """The rest of the table's line, and whether the run collapsed without a word: judged by the test images, which the guard never saw."""
    if status:
        told = sentence.removeprefix("error: ").split(". ")[0]
        return f"- | - | - | {told[:160]}", not sentence.startswith("error: training ")
    record = json.loads((folder / "results.json").read_text())
    clean, robust = (
        next(e for e in record["evaluations"] if e.get("epsilon", 0) == epsilon) for epsilon in (0, record["config"]["attack"]["epsilon"])
    )
    back = len(record["training"]["rollbacks"])
    dead = clean["interval"][0] <= 1 / record["dataset"]["classes"] or robust["accuracy"] == 0
    return f"{back} | {100 * clean['accuracy']:.1f} | {100 * robust['accuracy']:.1f} | {'at chance' if dead else 'alive'}", dead


if __name__ == "__main__":
    main()
