"""What a step of each objective costs: network passes an image, and seconds, in turn in the same run, as ratios against TRADES.

    python benchmarks/objective_steps.py [--model resnet20_cifar] [--image_size 32] [--batch_size 128] [--steps 5] [--repeats 5] [--bf16]

Passes are counted by ``rows.passes``. All attacks but N-FGSM's take the same number of steps, so the passes differ by what the objectives do with
them. The convolutions' share is the time of as many passes through the network's convolutions alone, which no other code could undercut.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rows import passes
from torch import nn

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
        against = AttackOptions(epsilon=attack.epsilon, kind="nfgsm") if method == "nfgsm" else attack
        return AdversarialTraining(classifier, AdversarialTraining.Options(method="at" if method == "nfgsm" else method, attack=against))

    def contrasted(method: str) -> Objective:
        kind, encoder = PRETRAINING[method], backbone()
        given = {} if method == "simclr" else {"attack": attack}
        return kind(encoder, kind.make_projector(encoder.num_features), Augmentation(), kind.Options(**given))

    makers = {
        supervised: ("trades", "standard", "nfgsm", "at"),
        contrasted: ("simclr", "rocl", "acl", "dynacl"),
        distilled: ("fare", "deacl", "lore"),
    }
    return {method: make(method) for make, methods in makers.items() for method in methods}


def stepper(objective: Objective, count: int, size: int, bf16: bool) -> Callable[[], None]:
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = OptimizerOptions(name="adamw", lr=1e-3, weight_decay=1e-4).create(objective)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    batch = Batch(images, torch.arange(count) % 10, (1,))

    def step() -> None:
        objective.train()
        objective.begin_step(0, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def convolutions(name: str, count: int, size: int, bf16: bool) -> Callable[[], None]:
    """Forward and back through every convolution of the network, each by itself: three passes."""
    network, inputs = create_backbone(name, size).to(memory_format=torch.channels_last), {}
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(lambda module, args, out: inputs.__setitem__(module, (args[0].detach(), out.detach()))) for conv in convs]
    network(torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    kind = torch.bfloat16 if bf16 else torch.float32
    pairs = [(conv.to(kind), image.to(kind).requires_grad_(conv is not convs[0]), out.to(kind)) for conv, (image, out) in inputs.items()]

    def step() -> None:
        for conv, image, out in pairs:
            conv(image).backward(out)
            image.grad = conv.weight.grad = None

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    words = parser.parse_args()
    made = objectives(words.model, words.image_size, AttackOptions(epsilon=8 / 255, step_size=2 / 255, steps=words.steps))
    taken = {name: stepper(objective, words.batch_size, words.image_size, words.bf16) for name, objective in made.items()}
    taken["convolutions"] = convolutions(words.model, words.batch_size, words.image_size, words.bf16)
    seconds: dict[str, list[float]] = {name: [] for name in taken}
    for number in range(words.repeats + 1):  # the first warms up
        for name, step in taken.items():
            began = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - began)
    where = f"{'bf16' if words.bf16 else 'float32'}, torch {torch.__version__}, {torch.get_num_threads()} threads, cpu"
    one_pass = statistics.median(seconds.pop("convolutions")) / 3
    print(f"{words.model}, {words.image_size} px, batch {words.batch_size}, {words.steps} attack steps, {where}\n")
    head = ["objective", "passes an image", "seconds a step", "against TRADES", "range", "images/s", "convolutions' share"]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for name, times in seconds.items():
        ratios = sorted(mine / reference for mine, reference in zip(times, seconds["trades"], strict=True))
        middle = statistics.median(times)
        batchnorm = getattr(made[name], "normalizes", True)
        number = passes("at" if name == "nfgsm" else name, 1 if name == "nfgsm" else words.steps, batchnorm=batchnorm)
        cells = [f"{number}", f"{middle:.2f}", f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"]
        print("| " + " | ".join([name, *cells, f"{words.batch_size / middle:.0f}", f"{100 * number * one_pass / middle:.0f} %"]) + " |")


if __name__ == "__main__":
    main()
