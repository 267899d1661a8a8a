"""How far steps of several sizes climb on a network that stands still: what the rule behind ``--attack.step_size auto`` was chosen by.

    python benchmarks/step_rule.py [--epsilons 0.1] [--steps 2 3 5 10] [--images 256]

On the published digits classifier (model_cards/), whose weights an attack from a random start climbs: accuracy in %, cross-entropy, and, climbed for
itself, the squared distance of the features from the clean ones. ``falls F`` begins with F radii and ends with F / steps of them.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import rocl_transfer as rt
from rocl_transfer.attacks import AttackOptions, GradientAscent, Linf, frozen
from rocl_transfer.data import load_images, store_splits

MODEL = Path(__file__).parents[1] / "model_cards" / "resnet8_cifar.r_le_digits"


def rules(epsilon: float, steps: int) -> dict[str, GradientAscent]:
    threat = Linf(epsilon)
    known = {
        "auto": AttackOptions(epsilon=epsilon, steps=steps).ascent(),
        "paper": AttackOptions(epsilon=epsilon, steps=steps, step_size=None).ascent(),
    }
    known |= {f"{radii:g}": GradientAscent(threat, radii * epsilon, steps) for radii in (1 / 8, 1 / 4, 1 / 2, 1, 2)}
    return known | {f"falls {radii:g}": GradientAscent(threat, radii * epsilon, steps, falls=True) for radii in (1, 1.25, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.1])
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 3, 5, 10])
    parser.add_argument("--images", type=int, default=256)
    words = parser.parse_args()
    torch.set_num_threads(1)
    model = rt.load_classifier(str(MODEL))
    data, stores = store_splits(load_images("digits", image_size=16), ["test"], torch.device("cpu"))
    images = next(iter(stores["test"].batches([torch.arange(min(words.images, len(data.test)))]))).float() / 255
    labels = data.test.labels[: len(images)]
    with frozen(model):
        clean = model.features(images)

        def entropy(x):
            return F.cross_entropy(model(x), labels, reduction="none")

        def distance(x):
            return (model.features(x) - clean).square().sum(1)

        columns = list(rules(0.1, 1))
        print("| epsilon | steps | " + " | ".join(columns) + " |\n" + "| --- " * (2 + len(columns)) + "|", flush=True)
        for epsilon in words.epsilons:
            for steps in words.steps:
                cells = []
                for ascent in rules(epsilon, steps).values():
                    moved, far = (
                        ascent(images, lambda x, loss=loss: loss(x).sum(), [torch.Generator().manual_seed(1)]) for loss in (entropy, distance)
                    )
                    right = (model(moved).argmax(1) == labels).float().mean().item()
                    cells.append(f"{100 * right:.1f} / {entropy(moved).mean().item():.3f} / {distance(far).mean().item():.2f}")
                print(f"| {epsilon:g} | {steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
