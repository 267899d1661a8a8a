"""What a step of each objective costs: network passes an image, and seconds, in turn in the same run, as ratios against TRADES.

    python benchmarks/objective_steps.py [--model resnet20_cifar] [--image_size 32] [--batch_size 128] [--steps 5] [--repeats 5]

Passes are counted by ``rows.passes``. All attacks take the same number of steps, so the passes differ by what the objectives do with them.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rows import passes

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch, light_views
from rocl_transfer.models import add_head, create_backbone
from rocl_transfer.objectives import PRETRAINING, AdversarialTraining, Distillation, Objective
from rocl_transfer.training import OptimizerOptions


def objectives(name: str, size: int, attack: AttackOptions) -> dict[str, Objective]:
    """Each on a network of its own."""

    def backbone():
        torch.manual_seed(0)
        return create_backbone(name, size)

    def distilled(method: str) -> Objective:
        student = backbone()
        return Distillation(student, copy.deepcopy(student), light_views(), Distillation.Options(method=method, attack=attack))

    def supervised(method: str) -> Objective:
        classifier = add_head(backbone(), [str(label) for label in range(10)])
        return AdversarialTraining(classifier, AdversarialTraining.Options(method=method, attack=attack))

    def contrasted(method: str) -> Objective:
        kind, encoder = PRETRAINING[method], backbone()
        return kind(encoder, kind.make_projector(encoder.num_features), Augmentation(), kind.Options(attack=attack))

    makers = {supervised: ("trades", "at"), contrasted: ("rocl", "acl", "dynacl"), distilled: ("fare", "deacl", "lore")}
    return {method: make(method) for make, methods in makers.items() for method in methods}


def stepper(objective: Objective, count: int, size: int) -> Callable[[], None]:
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = OptimizerOptions(name="adamw", lr=1e-3, weight_decay=1e-4).create(objective)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    batch = Batch(images, torch.arange(count) % 10, (1,))

    def step() -> None:
        objective.train()
        objective.begin_step(0, 1)
        objective(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    words = parser.parse_args()
    made = objectives(words.model, words.image_size, AttackOptions(epsilon=8 / 255, step_size=2 / 255, steps=words.steps))
    taken = {name: stepper(objective, words.batch_size, words.image_size) for name, objective in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in taken}
    for number in range(words.repeats + 1):  # the first warms up
        for name, step in taken.items():
            began = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - began)
    where = f"torch {torch.__version__}, {torch.get_num_threads()} threads, cpu"
    print(f"{words.model}, {words.image_size} px, batch {words.batch_size}, {words.steps} attack steps, {where}\n")
    print("| objective | passes an image | seconds a step | against TRADES | range |\n" + "| --- " * 5 + "|")
    for name, times in seconds.items():
        ratios = sorted(mine / reference for mine, reference in zip(times, seconds["trades"], strict=True))
        middle = statistics.median(times)
        number = passes(name, words.steps, batchnorm=getattr(made[name], "normalizes", True))
        print(f"| {name} | {number} | {middle:.2f} | {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |")


if __name__ == "__main__":
    main()
