"""What a training spends beside its steps: validation, checkpoints and the rest, as shares of its time; and what comes before and after it.

    python benchmarks/overhead.py [--data digits] [--image_size 32] [--model resnet8_cifar] [--epochs 10] [--words data.validation_fraction=0.1]

Pretrain (kNN monitor), robustify (a student watched beside its teacher) and finetune (TRADES, N-FGSM) run with their defaults, in this process.
"""

import argparse
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rows import begin, finetune, pretrain, robustify, run

from rocl_transfer.training import loop
from rocl_transfer.training.checkpoints import Checkpoints
from rocl_transfer.training.metrics import MetricsLogger
from rocl_transfer.training.step_runner import StepRunner

PARTS = {
    "training": (loop._Loop, "run"),
    "steps": (StepRunner, "run_step"),
    "validation": (MetricsLogger, "_validate"),
    "checkpoints": (Checkpoints, "save"),
}


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds that the parts take."""
    seconds: dict[str, float] = defaultdict(float)
    before = {name: getattr(kind, method) for name, (kind, method) in PARTS.items()}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[name] += time.perf_counter() - began

        return wrapped

    for name, (kind, method) in PARTS.items():
        setattr(kind, method, clocked(name, before[name]))
    try:
        yield seconds
    finally:
        for name, (kind, method) in PARTS.items():
            setattr(kind, method, before[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--model", default="resnet8_cifar")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--words", nargs="*", default=[], help="more options for every training, such as data.validation_fraction=0.1")
    options = parser.parse_args()
    begin()
    data = ["--data.name", options.data, "--data.image_size", options.image_size]
    shared = [*data, "--epochs", options.epochs, *(f"--{word}" for word in options.words)]
    untrained = ["--model.name", options.model, "--model.pretrained", "false", "--evaluation.steps", 1]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        runs: list[tuple[str, Any, list[object]]] = [
            ("pretrain (RoCL)", pretrain, ["--model.name", options.model, "--optimizer.warmup_epochs", 1]),
            ("finetune (TRADES)", finetune, untrained),
            ("finetune (N-FGSM)", finetune, [*untrained, "--method", "at", "--attack.kind", "nfgsm"]),
            ("robustify (FARE)", robustify, ["--model.name", folder / "pretrain (RoCL)", "--evaluation.steps", 1]),
        ]
        head = ["recipe", "training, s", *list(PARTS)[1:], "the rest", "before and after, s"]
        print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
        for name, recipe, words in runs:
            began = time.perf_counter()
            with timed() as seconds:
                run(recipe, folder / name, *shared, *words)
            whole = seconds.pop("training")
            beside = time.perf_counter() - began - whole
            shares = [seconds[part] / whole for part in list(PARTS)[1:]]
            cells = [f"{100 * share:.1f} %" for share in (*shares, 1 - sum(shares))]
            print("| " + " | ".join([name, f"{whole:.1f}", *cells, f"{beside:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
