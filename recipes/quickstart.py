"""See robustness appear without labels: RoCL beside SimCLR on real scans of digits, on two CPU cores, without network.

    python recipes/quickstart.py

Both methods get the same backbone, data, views and number of epochs; then each gets a linear head on clean images (LE) and one on adversarial
images (r-LE). Leaves the run folders {rocl,simclr}/{pretrain,le,r-le} and prints one table of what was measured.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

import linear_probe
import pretrain
from rocl_transfer.config import command_line, parse
from rocl_transfer.training import RunOptions

CONFIGS = Path(__file__).parent / "configs"
WARMUP = 8  # epochs, in the configurations of both pre-trainings
METHODS = {"rocl": "RoCL", "simclr": "SimCLR"}
PROBES = {"le": "LE", "r-le": "r-LE"}


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(RunOptions):
    """RoCL beside SimCLR on the bundled digits: pre-training, LE and r-LE of each, one table. Options given here go to every part.

    Args:
        output_dir: Where the six run folders go.
        epochs: Epochs of each of the two pre-trainings.
        batch_size: Images per step of the two pre-trainings.
    """

    output_dir: str = "runs/quickstart"
    epochs: int = 28
    batch_size: int = 128


def main(config: QuickstartConfig) -> Path:
    output = Path(config.output_dir)
    shared = list(given(config))
    parts = iter(range(1, 7))
    for method in METHODS:
        folder = output / method
        file = CONFIGS / f"digits_{method}.yaml"
        own = ["--epochs", str(config.epochs), "--batch_size", str(config.batch_size)]
        if config.epochs <= WARMUP:
            own += ["--optimizer.warmup_epochs", str(config.epochs // 3)]
        say(f"[{next(parts)}/6] {METHODS[method]}: pre-training without labels")
        pretrain.main(parse(pretrain.PretrainConfig, ["--config", str(file), "--output_dir", str(folder / "pretrain"), *own, *shared]))
        for probe in PROBES:
            file = CONFIGS / f"digits_{probe.replace('-', '_')}.yaml"
            say(f"[{next(parts)}/6] {METHODS[method]}: linear head, {PROBES[probe]}")
            model = ["--model.name", str(folder / "pretrain")]
            linear_probe.main(parse(linear_probe.ProbeConfig, ["--config", str(file), *model, "--output_dir", str(folder / probe), *shared]))
    if PartialState().is_main_process:
        print(table(output))
    return output


def say(line: str) -> None:
    if PartialState().is_main_process:
        print(line, file=sys.stderr)


def given(config: QuickstartConfig) -> Iterator[str]:
    """The options that differ from the quick start's defaults, as words for all its parts."""
    default = QuickstartConfig()
    for option in dataclasses.fields(RunOptions):
        value = getattr(config, option.name)
        if option.name not in ("output_dir", "epochs", "batch_size") and value != getattr(default, option.name):
            yield from (f"--{option.name}", str(value))


def table(output: Path) -> str:
    """The accuracies in the four results records."""
    lines = []
    for method, method_name in METHODS.items():
        for probe, probe_name in PROBES.items():
            evaluations = json.loads((output / method / probe / "results.json").read_text(encoding="utf-8"))["evaluations"]
            cells = "".join(f"{100 * entry['accuracy']:8.1f}" for entry in evaluations)
            lines.append(f"  {method_name:<7} {probe_name:<5}{cells}")
    attack = evaluations[-1]
    columns = "".join(f"{'clean' if entry['name'] == 'clean' else format(entry['epsilon'], 'g'):>8}" for entry in evaluations)
    return "\n".join([
        "",
        f"Accuracy in % on {attack['n']} held-out digits, clean and under {attack['name'].upper()} by {attack['norm']} epsilon (pixels in [0, 1]).",
        "The backbones were trained without labels; LE: head trained on clean images, r-LE: on adversarial ones.",
        "",
        f"  {'':<7} {'':<5}{columns}",
        *lines,
        "",
        f"weights, results.json and cards: {output}/{{{','.join(METHODS)}}}/{{pretrain,{','.join(PROBES)}}}",
    ])  # fmt: skip


if __name__ == "__main__":
    command_line(main, QuickstartConfig)
