"""How fast a RoCL step is, against one structured as the official code is, in turn in the same run.

    python benchmarks/rocl_step.py --model resnet18_cifar --batch_size 64

The reference step is written from the description of the official code, plainly: per-image PIL views, float32, NCHW, the target view encoded anew
at every attack step, gradients taken for the parameters as well, a forward of its own for the regulariser. Ours computes the same loss, "exact";
"fast" is another function (the regulariser from the main forward; under bf16 autocast where the device has units for it), with --compile through
torch.compile. Ours are the steps that training takes: buffers kept, means over the processes, and on a GPU the device's choice of taking the step.

On a GPU reference and exact step are timed a second time with TF32 convolutions, which is torch's default and what training computes float32 in.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch
from rocl_transfer.models import create_backbone, projector
from rocl_transfer.objectives import RoCL, nt_xent
from rocl_transfer.training import OptimizerOptions
from rocl_transfer.training.bf16 import bf16_factor
from rocl_transfer.training.update import Update

EPSILON, STEP_SIZE, STEPS, TEMPERATURE = 0.0314, 0.007, 7, 0.5
ATTACK = AttackOptions(epsilon=EPSILON, step_size=STEP_SIZE, steps=STEPS)
TF32 = ", TF32"  # rows of the same function with convolutions in TF32
# Network passes per image, a forward counting 1, a backward to the input alone 1, a full backward 2; 7 steps, 2 views in the regulariser, 3 in main.
PASSES = {"reference": STEPS * 4 + 3 * (2 + 3), "exact": 1 + STEPS * 2 + 3 * (2 + 3), "fast": 1 + STEPS * 2 + 3 * 3}


def passes(name: str) -> int:
    """Of a row."""
    return PASSES[name.removesuffix(TF32)]


class Clock:
    """Seconds by phase, with the device waited for at each border."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] += time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*arguments: object) -> Tensor:
            with self.phase(name):
                return function(*arguments)

        return wrapped


class Reference:
    """The official code's structure."""

    autocast = False

    def __init__(self, objective: RoCL, pictures: list[Image.Image], device: torch.device) -> None:
        self.objective, self.pictures, self.device = objective, pictures, device
        self.optimizer = OptimizerOptions(name="lars", lr=0.24, weight_decay=1e-6).create(objective)
        self.pipeline = v2.Compose([
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2), v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(pictures[0].size[0], scale=(0.08, 1.0)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        ])  # fmt: skip

    def step(self, clock: Clock) -> float:
        module = self.objective
        with clock.phase("data"):
            first, second = (torch.stack([self.pipeline(picture) for picture in self.pictures]).to(self.device) for _ in range(2))
        with clock.phase("attack"):
            module.eval()
            adversarial = (first + (2 * torch.rand_like(first) - 1) * EPSILON).clamp(0, 1)
            for _ in range(STEPS):
                adversarial = adversarial.detach().requires_grad_()
                z = torch.stack([module.project(adversarial), module.project(second)])
                module.zero_grad()
                nt_xent(z, z, TEMPERATURE).backward()
                stepped = (adversarial.detach() + STEP_SIZE * adversarial.grad.sign()).clamp(0, 1)
                adversarial = torch.minimum(torch.maximum(stepped, first - EPSILON), first + EPSILON)
            module.train()
        with clock.phase("forward-backward"):
            z = torch.stack([module.project(adversarial), module.project(second)])
            regularizer = nt_xent(z, z, TEMPERATURE)
            z = torch.stack([module.project(view) for view in (first, second, adversarial)])
            loss = nt_xent(z, z, TEMPERATURE) + regularizer / 256
            self.optimizer.zero_grad()
            loss.backward()
        with clock.phase("optimizer"):
            self.optimizer.step()
        return loss.item()


class Exact:
    """Ours, with the same numbers: target encoded once, parameters frozen in the attack, batched views, channels-last."""

    def __init__(self, objective: RoCL, images: Tensor, fast: bool = False) -> None:
        self.objective = objective.to(memory_format=torch.channels_last)
        self.autocast = fast and has_bf16_units(images.device)
        self.batch = Batch(images, None, (1,))
        AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision for all
        accelerator = Accelerator(cpu=images.device.type == "cpu", mixed_precision="bf16" if self.autocast else "no")
        self.update = Update(accelerator, objective, OptimizerOptions(name="lars", lr=0.24, weight_decay=1e-6).create(objective), None)
        self.update.learn_at(0.24)
        self.taken = 0

    def step(self, clock: Clock) -> float:
        whole = Clock(clock.device)
        module, views, perturb = self.objective, self.objective.views, self.objective.perturb
        module.views, module.perturb = clock.timed("data", views), clock.timed("attack", perturb)
        before = sum(clock.seconds[name] for name in ("data", "attack"))
        with whole.phase("all"):
            _, means = self.update.compute(self.batch, self.taken, 1000, (0, 0))
        clock.seconds["forward-backward"] += whole.seconds["all"] - (sum(clock.seconds[name] for name in ("data", "attack")) - before)
        module.views, module.perturb = views, perturb
        with clock.phase("optimizer"):
            if clock.device.type == "cpu":  # as training does
                self.update.apply()
            else:
                self.update.apply_where(torch.isfinite(means).all())
        self.taken += 1
        return float(means[0])


def has_bf16_units(device: torch.device) -> bool:
    """A GPU, or a CPU that does not emulate bf16: found out in less than a tenth of a second, or said."""
    return device.type == "cuda" or bf16_factor() < 1


def matrix_rate(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> float:
    """FLOP/s of a matrix product as measured here: what a step is held against."""
    size = 8192 if device.type == "cuda" else 1024
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, clock = torch.rand(size, size, device=device).to(dtype), Clock(device)
    rates, began = [], time.perf_counter()
    while len(rates) < 10 and (not rates or time.perf_counter() - began < 5):
        clock.seconds.clear()
        with clock.phase("product"):
            a @ a
        rates.append(2 * size**3 / clock.seconds["product"])
    return max(rates)


def pass_flops(objective: RoCL, size: int, device: torch.device) -> int:
    """FLOP of one image's pass forward, as torch counts them: matrix products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        objective.project(torch.rand(2, 3, size, size, device=device))
    return counter.get_total_flops() // 2


def alternate(steps: dict[str, Reference | Exact], repeats: int, device: torch.device) -> tuple[dict, dict, dict]:
    """Seconds by phase of every counted step, seconds of each one's first step, and its peak memory on a GPU in GiB."""
    clocks, first, peaks = {name: [] for name in steps}, {}, {}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            clock = Clock(device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name.endswith(TF32)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step.step(clock)
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated() / 2**30
            if repeat:
                clocks[name].append(clock.seconds)
            else:
                first[name] = sum(clock.seconds.values())
                print(f"{name}: the first step took {first[name]:.1f} s", flush=True)
    return clocks, first, peaks


def print_table(clocks: dict[str, list[dict[str, float]]], batch_size: int) -> dict[str, float]:
    """The table and the ratios; returns the median seconds of a step of each."""
    medians = {name: statistics.median(sum(seconds.values()) for seconds in rows) for name, rows in clocks.items()}
    print("| step | images/s | ms | data | attack | forward-backward | optimizer | passes per image |\n| --- |" + " --- |" * 7)
    for name, rows in clocks.items():
        phases = [statistics.median(seconds[phase] for seconds in rows) for phase in ("data", "attack", "forward-backward", "optimizer")]
        cells = " | ".join(f"{1000 * seconds:.0f}" for seconds in phases)
        print(f"| {name} | {batch_size / medians[name]:.1f} | {1000 * medians[name]:.0f} | {cells} | {passes(name)} |")
    pairs = [("reference", "exact"), ("reference", "fast"), ("reference" + TF32, "exact" + TF32), ("reference" + TF32, "fast")]
    for slow, name in [pair for pair in pairs if pair[0] in clocks]:
        ratios = [sum(a.values()) / sum(b.values()) for a, b in zip(clocks[slow], clocks[name], strict=True)]
        print(f"\nratio {slow} / {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="compile the fast step; its first steps are not counted")
    parser.add_argument("--repeats", type=int, default=3, help="counted steps of each, after one that is not")
    words = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    images = torch.randint(0, 256, (words.batch_size, 3, words.image_size, words.image_size), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    def objective(**options: bool) -> RoCL:
        torch.manual_seed(0)
        encoder = create_backbone(words.model, words.image_size)
        return RoCL(encoder, projector(encoder.num_features), Augmentation(), RoCL.Options(attack=ATTACK, **options)).to(device)

    steps = {"reference": Reference(objective(), pictures, device), "exact": Exact(objective(), images.to(device))}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        steps |= {f"{name}{TF32}": step for name, step in steps.items()}  # TF32 is set before each step
    steps |= {
        "fast": Exact(objective(shared_regularizer=True, compile=words.compile), images.to(device), fast=True),
    }
    flops = pass_flops(steps["exact"].objective, words.image_size, device)
    clocks, first, peaks = alternate(steps, words.repeats, device)
    where = f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{words.model}, {words.image_size} px, batch {words.batch_size}, {where}\n")
    medians = print_table(clocks, words.batch_size)
    if words.compile:
        print(f"\ncompilation: {first['fast'] - medians['fast']:.0f} s, the first fast step beyond a later one")
    print(f"\na pass forward: {flops / 1e9:.3f} GFLOP an image")
    for name, step in steps.items():
        dtype = torch.bfloat16 if getattr(step, "autocast", False) else torch.float32
        tf32 = name.endswith(TF32)
        kind = "tf32" if tf32 else str(dtype)[6:]
        achieved, rate = flops * passes(name) * words.batch_size / medians[name], matrix_rate(device, dtype, tf32)
        print(f"{name}: {achieved / 1e12:.3f} TFLOP/s of {rate / 1e12:.3f} in a {kind} matrix product ({achieved / rate:.0%})")
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory: {', '.join(f'{name} {peak:.1f} GiB' for name, peak in peaks.items()) or f'{whole:.1f} GiB of the host, all three together'}")


if __name__ == "__main__":
    main()
