"""What a step of each objective costs: network passes an image, and seconds, in turn in the same run, as ratios against TRADES.

    python benchmarks/objective_steps.py [--model resnet20_cifar] [--image_size 32] [--batch_size 128] [--steps 5] [--repeats 5]

A pass forward counts 1, a backward pass to the pixels alone 1, a full backward pass 2. All attacks take the same number of steps, so the passes
differ by what the objectives do with them.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch, light_views
from rocl_transfer.models import add_head, create_backbone, projector
from rocl_transfer.objectives import AdversarialTraining, Distillation, Objective, RoCL
from rocl_transfer.training import create_optimizer


def objectives(name: str, size: int, attack: AttackOptions) -> dict[str, tuple[int, Objective]]:
    """Each with its network passes an image."""
    steps = attack.steps

    def backbone():
        torch.manual_seed(0)
        return create_backbone(name, size)

    def distilled(method: str) -> Objective:
        student = backbone()
        return Distillation(student, copy.deepcopy(student), light_views(), Distillation.Options(method=method, attack=attack))

    def supervised(method: str) -> Objective:
        classifier = add_head(backbone(), [str(label) for label in range(10)])
        return AdversarialTraining(classifier, AdversarialTraining.Options(method=method, attack=attack))

    encoder = backbone()
    made: dict[str, tuple[int, Objective]] = {
        # TRADES: the clean answer, the attack, then a full pass of clean and of adversarial images.
        "trades": (1 + 2 * steps + 2 * 3, supervised("trades")),
        "at": (2 * steps + 3, supervised("at")),
        # The target once, the attack, a full pass of two views for the regulariser and of three for the main loss.
        "rocl": (1 + 2 * steps + 5 * 3, RoCL(encoder, projector(encoder.num_features), Augmentation(), RoCL.Options(attack=attack))),
    }
    for method in ("fare", "deacl", "lore"):
        objective = distilled(method)
        both = getattr(objective, "normalizes", False) or method != "fare"
        made[method] = (1 + 2 * steps + (2 if both else 1) * 3, objective)  # the teacher, the attack, the student
    return made


def stepper(objective: Objective, count: int, size: int) -> Callable[[], None]:
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer(objective, "adamw", 1e-3, 1e-4)
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
    taken = {name: stepper(objective, words.batch_size, words.image_size) for name, (_, objective) in made.items()}
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
        print(f"| {name} | {made[name][0]} | {middle:.2f} | {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |")


if __name__ == "__main__":
    main()
