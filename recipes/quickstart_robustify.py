"""See a network become robust without labels: the quick start's SimCLR classifier, its head untouched, before and after, in two minutes more.

    python recipes/quickstart_robustify.py

Takes what recipes/quickstart.py left in runs/quickstart (SimCLR and its linear head), distils it into its robust twin on the same digits without
their labels, and trains a robust head (r-LE) on the twin. Leaves the run folders robustify/{twin,r-le} beside those and prints one table.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

import linear_probe
import robustify
from quickstart import CONFIGS, say
from rocl_transfer.config import command_line, parse
from rocl_transfer.errors import UserError
from rocl_transfer.options import require


@dataclass(frozen=True, kw_only=True)
class QuickstartRobustifyConfig:
    """The quick start's SimCLR classifier made robust without labels.

    Args:
        output_dir: Where the quick start left its run folders.
        seed: Seed of every random draw.
        epochs: Epochs of the distillation.
    """

    output_dir: str = "runs/quickstart"
    seed: int = 0
    epochs: int = 10

    def __post_init__(self) -> None:
        require(self.epochs > 1, f"--epochs is {self.epochs}: give 2 or more, the first is the warm-up")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")


def main(config: QuickstartRobustifyConfig) -> Path:
    output = Path(config.output_dir)
    start = output / "simclr" / "le"
    if not (start / "results.json").is_file():
        raise UserError(f"{start} holds no finished run: start recipes/quickstart.py first, or name its folder with --output_dir")
    twin, probe = output / "robustify" / "twin", output / "robustify" / "r-le"
    words = ["--model.name", str(start), "--output_dir", str(twin), "--epochs", str(config.epochs), "--seed", str(config.seed)]
    say("[1/2] the classifier's robust twin, without labels")
    robustify.main(parse(robustify.RobustifyConfig, ["--config", str(CONFIGS / "digits_robustify.yaml"), *words]))
    say("[2/2] a robust linear head on the twin")
    words = ["--model.name", str(twin), "--output_dir", str(probe), "--seed", str(config.seed)]
    linear_probe.main(parse(linear_probe.ProbeConfig, ["--config", str(CONFIGS / "digits_r_le.yaml"), *words]))
    if PartialState().is_main_process:
        print(table(output))
    return output


def table(output: Path) -> str:
    """Accuracies from the three results records, at the radii that all of them have."""
    rows = {
        "SimCLR, its LE head": output / "simclr" / "le",
        "its twin, the same head": output / "robustify" / "twin",
        "its twin, an r-LE head": output / "robustify" / "r-le",
    }
    found = {name: accuracies(folder) for name, folder in rows.items()}
    radii = [radius for radius in next(iter(found.values())) if all(radius in row for row in found.values())]
    columns = "".join(f"{'clean' if radius == 0 else format(radius, 'g'):>8}" for radius in radii)
    lines = [f"  {name:<24}" + "".join(f"{100 * row[radius]:8.1f}" for radius in radii) for name, row in found.items()]
    agreement = json.loads((output / "robustify" / "twin" / "results.json").read_text(encoding="utf-8"))["report"]["before_after"]["agreement"]
    before, after = (100 * part[-1]["accuracy"] for part in agreement)
    return "\n".join([
        "",
        "Accuracy in % on held-out digits, clean and under PGD-20 by linf epsilon (pixels in [0, 1]). The twin saw no labels.",
        "",
        f"  {'':<24}{columns}",
        *lines,
        "",
        f"Without a label: {before:.1f} % of the images keep the teacher's answer under attack (epsilon {agreement[0][-1]['epsilon']:g}) before, "
        f"{after:.1f} % after.",
        f"weights, results.json and cards: {output}/robustify/{{twin,r-le}}",
    ])  # fmt: skip


def accuracies(folder: Path) -> dict[float, float]:
    """Accuracy by radius; 0 is clean."""
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {entry.get("epsilon", 0.0): entry["accuracy"] for entry in record["evaluations"] if entry["name"] in ("clean", "pgd-20")}


if __name__ == "__main__":
    command_line(main, QuickstartRobustifyConfig)
