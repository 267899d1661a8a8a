"""What a pre-training costs on many GPUs, from the network's counted operations and bytes and from rates that are given.

    python benchmarks/scaling.py --rate 250 --decode 230

Operations and the bytes that a training step keeps for its backward pass are counted on a real network, with meta tensors: no rate of this machine
goes in. ``docs/scaling.md`` says what the numbers mean.
"""

import argparse
from dataclasses import dataclass

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import rocl_transfer  # noqa: F401 - registers the small-image ResNets

FAST = 24  # network passes an image of RoCL with the shared regulariser; see benchmarks/rocl_step.py
GPUS = (1, 8, 256)
VIEWS, DIMENSIONS, SIMILARITIES = 3, 128, 2**24  # of the main loss; at once


@dataclass(frozen=True)
class Plan:
    """A pre-training: data, network, length, images a step on each GPU, and whether they are decoded as they come."""

    name: str
    model: str
    pixels: int
    images: float
    epochs: int
    batch: int  # a GPU
    streamed: bool
    passes: int = FAST
    views: int = VIEWS  # that training keeps for its backward pass


PLANS = (
    Plan("CIFAR-10, the paper's", "resnet18_cifar", 32, 5e4, 1000, 512, False),
    Plan("ImageNet", "resnet50", 224, 1.281e6, 200, 128, True),
    Plan("100 M images", "vit_base_patch16_224", 224, 1e8, 10, 128, True),
    Plan("rocl_64px.yaml, Tiny-ImageNet", "resnet18_cifar", 64, 1e5, 400, 512, False, 26),
    Plan("rocl_96px.yaml, STL-10", "resnet34", 96, 1.05e5, 400, 512, False, 26),
    Plan("imagenet_rocl_resnet50.yaml", "resnet50", 224, 1.281e6, 200, 128, True, 16),
    Plan("imagenet_fare_clip_vit_b32.yaml", "vit_base_patch32_clip_quickgelu_224", 224, 1.281e6, 2, 128, True, 24, 1),
)


def count(model: str, pixels: int) -> tuple[float, float, float]:
    """Operations of an image's forward pass, bytes of one view of it that training keeps (32 bits a number), parameters."""
    with torch.device("meta"):
        network = timm.create_model(model, num_classes=0).train()
        images = torch.empty(2, 3, pixels, pixels)
    with FlopCounterMode(display=False) as counter:
        network(images)
    own = {id(parameter) for parameter in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # or an address would be given twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in own and tensor.is_floating_point():
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    return counter.get_total_flops() / 2, sum(kept.values()) / 2, sum(parameter.numel() for parameter in network.parameters())


def duration(seconds: float) -> str:
    days, hours = seconds / 86400, seconds / 3600
    return f"{days:.1f} d" if days >= 2 else f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.0f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=250.0, help="TFLOP/s that a step reaches on one GPU")
    parser.add_argument("--decode", type=float, default=230.0, help="images that one core decodes a second")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s between GPUs of different nodes, each way")
    words = parser.parse_args()
    counted = {plan: count(plan.model, plan.pixels) for plan in PLANS}
    speed = {plan: words.rate * 1e12 / (plan.passes * flops) for plan, (flops, *_) in counted.items()}

    print("| run | GFLOP a pass | M parameters | kept for backward, a view, bf16 | images/s a GPU | 1 GPU | 8 GPUs | 256 GPUs |")
    print("| --- |" + " --- |" * 7)
    for plan, (flops, kept, parameters) in counted.items():
        times = " | ".join(duration(plan.images * plan.epochs / speed[plan] / n) for n in GPUS)
        what = f"{plan.name}: {plan.model}, {plan.epochs} epochs"
        print(f"| {what} | {flops / 1e9:.2f} | {parameters / 1e6:.1f} | {kept / 2 / 2**20:.0f} MiB | {speed[plan]:,.0f} | {times} |")

    print("\n| run | GPUs | global batch | keys | similarity matrix, whole | held at once | over the network, of a step | cores that decode |")
    print("| --- |" + " --- |" * 7)
    for plan, (_, _, parameters) in counted.items():
        for n in GPUS:
            world, mebi = plan.batch * n, 2**20
            keys, matrix = VIEWS * world * DIMENSIONS * 4, VIEWS * plan.batch * VIEWS * world * 4
            if plan.views < VIEWS:  # without negatives there are no keys
                keys = matrix = 0
            # An all-gather of the keys, an all-reduce of the gradients; within a node both are hidden.
            traffic = (keys * (n - 1) / n + 2 * 4 * parameters) / (words.network * 1e9) if n > 8 else 0.0
            cores = f"{speed[plan] * n / words.decode:,.0f}" if plan.streamed else "none"
            sizes = f"{keys / mebi:.1f} MiB | {matrix / mebi:.0f} MiB | {min(matrix, 4 * SIMILARITIES) / mebi:.0f} MiB"
            print(f"| {plan.name} | {n} | {world:,} | {sizes} | {1000 * traffic:.1f} of {1000 * plan.batch / speed[plan]:.0f} ms | {cores} |")

    print()
    for plan, (_, kept, parameters) in counted.items():
        views, state = plan.views * plan.batch * kept / 2 / 2**30, 12 * parameters / 2**30
        what = f"{plan.views} views" if plan.views > 1 else "one view"
        print(f"{plan.name}: {what} of {plan.batch} images: {views:.1f} GiB kept a GPU in bf16; weights, gradients, momentum {state:.2f} GiB")


if __name__ == "__main__":
    main()
