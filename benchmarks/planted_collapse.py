"""A planted catastrophic overfitting: FGSM from the image itself, without noise, on CIFAR-10. The guard has to see it.

    python benchmarks/planted_collapse.py --data path/to/cifar10 [--epsilon 8/255] [--images 10000] [--epochs 20] [--words optimizer.weight_decay=0]

No option of the recipes attacks like this; here the random start is taken away from PGD of one step. Prints validation epoch by epoch, and the
guard's sentence; the status is 1 if there is none.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from rows import CONFIGS, begin, finetune, run

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.attacks.threat_models import Linf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder, or its name on the Hub")
    parser.add_argument("--epsilon", default="8/255")
    parser.add_argument("--images", type=int, default=10_000, help="training images; the rest of the 50,000 is held out")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/planted"))
    parser.add_argument("--words", nargs="*", default=[], help="more options of the training, such as augmentation.shift=0")
    options = parser.parse_args()
    begin()
    with_noise = AttackOptions.ascent
    AttackOptions.ascent = lambda *given, **named: dataclasses.replace(with_noise(*given, **named), start=Linf(0.0))  # type: ignore[method-assign]
    attack = ["--attack.kind", "pgd", "--attack.steps", 1, "--attack.epsilon", options.epsilon, "--attack.step_size", options.epsilon]
    data = ["--data.name", options.data, "--data.validation_fraction", 1 - options.images / 50_000]
    words = ["--epochs", options.epochs, "--ramp", "[0, 0]", "--rollbacks", 0, "--evaluation.steps", 1]
    words += [f"--{word}" for word in options.words]
    run(finetune, options.output_dir, "--config", CONFIGS / "cifar10_nfgsm_resnet20.yaml", *data, *attack, *words)
    for line in (options.output_dir / "metrics.jsonl").read_text().splitlines():
        seen = json.loads(line)
        if "validation_robust_accuracy" in seen:
            names = ("validation_accuracy", "validation_robust_accuracy", "epoch_robust_accuracy")
            clean, robust, trained = (f"{100 * seen[name]:.1f}" for name in names)
            print(f"epoch {seen['epoch'] + 1}: {clean} % clean, {robust} % under PGD-10, {trained} % under FGSM in training")
    ended = options.output_dir / "ended"
    sys.exit(0 if ended.exists() and not print(ended.read_text()) else 1)


if __name__ == "__main__":
    main()
