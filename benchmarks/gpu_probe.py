"""What the time of a RoCL training step is spent on, on this machine's GPU: whole steps as training takes them, then passes by layout and arithmetic.

    python benchmarks/gpu_probe.py [--model resnet18_cifar] [--images 512] [--seconds 150] [--output runs/gpu/probe.jsonl]

Prints a line for each measurement and appends it as a JSON object to the output. On a CPU it runs with few images, to try the script.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch
from rocl_transfer.models import create_backbone, fold, hold_bf16, projector
from rocl_transfer.objectives import RoCL
from rocl_transfer.training import OptimizerOptions
from rocl_transfer.training.runtime import tuned_kernels
from rocl_transfer.training.update import Update

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
ARRANGEMENTS = (  # arithmetic, channels-last, folded, cudnn.benchmark, compiled; the first matter most
    ("bf16", True, True, False, False), ("bf16", True, True, True, False), ("bf16", True, True, False, True),
    ("bf16", True, False, False, False), ("fp32", False, False, False, False), ("fp32", True, False, False, False),
    ("fp32", False, True, False, False), ("fp32", True, True, False, False), ("tf32", True, False, False, False),
    ("tf32", False, False, False, False), ("bf16", False, True, False, False),
)  # fmt: skip


class Notes:
    """Prints and appends what was measured, as long as the time allows."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.ends = path, time.perf_counter() + seconds
        path.parent.mkdir(parents=True, exist_ok=True)

    def over(self, share: float = 1.0, whole: float = 0.0) -> bool:
        return time.perf_counter() > self.ends - (1 - share) * whole

    def __call__(self, **values: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        print(" | ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()), flush=True)


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(function: Callable[[], object], count: int) -> tuple[float, float]:
    """(ms a call with the device's work, ms that the host needs to ask for it)."""
    for _ in range(2 if CUDA else 1):
        function()
    wait()
    began = time.perf_counter()
    for _ in range(count):
        function()
    asked = time.perf_counter() - began
    wait()
    return 1e3 * (time.perf_counter() - began) / count, 1e3 * asked / count


def passes(words: argparse.Namespace, note: Notes) -> None:
    """A frozen network on the images: forward, and forward with the gradient of the pixels."""
    torch.manual_seed(0)
    plain = create_backbone(words.model, words.size).to(DEVICE).eval().requires_grad_(False)
    images = torch.rand(words.images, 3, words.size, words.size, device=DEVICE)
    for kind, last, folded, tuned, compiled in ARRANGEMENTS if CUDA else ARRANGEMENTS[3:5]:
        if note.over():
            return
        net = fold(plain) if folded else plain
        net = net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        if kind == "bf16" and folded:
            hold_bf16(net)
        if compiled:
            net.compile(dynamic=False)
        one_pass(net, images, kind, tuned, note, channels_last=last, folded=folded, compiled=compiled)


def one_pass(net: torch.nn.Module, images: torch.Tensor, kind: str, tuned: bool, note: Notes, **how: bool) -> None:
    def forward() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == "bf16"):
            return net(images)

    def gradient() -> torch.Tensor:
        leaf = images.clone().requires_grad_(True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == "bf16"):
            return torch.autograd.grad(net(leaf).float().sum(), leaf)[0]

    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, kind == "tf32"
    with tuned_kernels(tuned):
        there, _ = timed(forward, 10 if CUDA else 1)
        back, host = timed(gradient, 10 if CUDA else 1)
    torch.backends.cudnn.allow_tf32 = before
    note(what="pass", images=len(images), arithmetic=kind, benchmark=tuned, **how, forward_ms=there, gradient_ms=back, host_ms=host)


def step_of(words: argparse.Namespace, images: int, compiled: bool) -> Callable[[], None]:
    """A training step on as many ``images``, in bf16 on a GPU."""
    torch.manual_seed(0)
    encoder = create_backbone(words.model, words.size)
    options = RoCL.Options(attack=AttackOptions(), shared_regularizer=True, compile=compiled)
    objective = RoCL(encoder, projector(encoder.num_features), Augmentation(), options).to(DEVICE).to(memory_format=torch.channels_last)
    accelerator = Accelerator(cpu=not CUDA, mixed_precision="bf16" if CUDA else "no")
    update = Update(accelerator, objective, OptimizerOptions(name="lars", lr=0.1, weight_decay=1e-6).create(objective), None)
    update.learn_at(0.1)
    pixels = torch.randint(0, 256, (images, 3, words.size, words.size), dtype=torch.uint8).to(DEVICE)
    batch, count = Batch(pixels, None, (1, 2)), [0]

    def step() -> None:
        _, means = update.compute(batch, count[0], 1000, (0, 0))
        update.apply_where(torch.isfinite(means).all())
        count[0] += 1

    return step


def steps(words: argparse.Namespace, note: Notes) -> None:
    """Whole steps, asked for one after another as the loop does: eager, compiled, each with cudnn.benchmark; then what they are made of."""
    few = min(words.images, 16)  # the device has next to nothing to do: what is left is the host's time
    note(what="host", images=few, ms=timed(step_of(words, few, False), 5 if CUDA else 1)[0])
    for compiled, tuned in ((False, False), (False, True), (True, False), (True, True)) if CUDA else ((False, False),):
        if note.over(0.65, words.seconds):
            return
        with tuned_kernels(tuned):
            began = time.perf_counter()
            step = step_of(words, words.images, compiled)
            step()
            wait()
            first = time.perf_counter() - began
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            whole, _ = timed(step, 20 if CUDA else 1)
        peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
        rate = 1e3 * words.images / whole
        note(what="step", images=words.images, compiled=compiled, benchmark=tuned, ms=whole, images_per_second=rate, first_s=first, peak_gib=peak)
        if CUDA and not tuned:
            kernels_of(step, compiled, note)


def kernels_of(step: Callable[[], None], compiled: bool, note: Notes) -> None:
    """Which kernels a step is made of, the longest first."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        wait()
    kernels = [row for row in seen.key_averages() if str(row.device_type).endswith("CUDA")]
    total = sum(row.self_device_time_total for row in kernels)
    note(what="kernels", compiled=compiled, launches=sum(row.count for row in kernels), device_ms=total / 1e3)
    for row in sorted(kernels, key=lambda row: -row.self_device_time_total)[:18]:
        note(what="kernel", compiled=compiled, ms=row.self_device_time_total / 1e3, count=row.count, name=row.key[:90])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--size", type=int, default=32, help="of the images, px")
    parser.add_argument("--images", type=int, default=512 if CUDA else 8)
    parser.add_argument("--seconds", type=float, default=150, help="no measurement begins later; two thirds of it for whole steps")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu/probe.jsonl"))
    words = parser.parse_args()
    note = Notes(words.output, words.seconds)
    name = torch.cuda.get_device_name(0) if CUDA else f"CPU, {torch.get_num_threads()} threads"
    note(what="machine", name=name, torch=torch.__version__, cudnn=torch.backends.cudnn.version())
    steps(words, note)
    passes(words, note)


if __name__ == "__main__":
    main()
