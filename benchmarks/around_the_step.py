"""What pre-training's and the probe's shortcuts beside the step are worth, each against the plain way in the same run.

    python benchmarks/around_the_step.py [probe] [views] [loss] [steps]

probe: LE over features computed once against an encoder's pass in every epoch, to the same head; for a network too slow to do that 150 times, from
two such epochs. views: a batch's views at once against one image at a time with torchvision on PIL images. loss: peak memory of NT-Xent with the
rows of its matrix in turn, on one rank of 64 with a global batch of 32,768. steps: one step of r-LE, AT and TRADES with PGD-10 against plain loops
(NCHW, gradients for the weights at every attack step, BatchNorm apart).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from rocl_transfer.attacks import PGD, AttackOptions
from rocl_transfer.data import Augmentation, Batch, Batches, Resident, Sampler, generators, load_images, store_images
from rocl_transfer.evaluation import compute_features
from rocl_transfer.models import PixelModel, add_head, create_backbone
from rocl_transfer.objectives import AdversarialTraining, LinearProbe, Objective, RobustProbe, contrastive, nt_xent
from rocl_transfer.training import Cadence, Checkpoints, OptimizerOptions, Span, Watch, keep_memory, start, train

EPOCHS, BATCH = 150, 128
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")  # as training chooses it


def now() -> float:
    """Seconds, with what the device was asked for done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def probe(architecture: str, size: int, counted: int, images: int) -> None:
    """Seconds of LE both ways; ``counted`` epochs of the plain one are run."""
    data = load_images("digits", image_size=size, validation_fraction=0)
    chosen = data.train.subset(np.arange(images))
    store, labels = store_images(chosen, size, DEVICE), chosen.labels
    learning = OptimizerOptions(
        name="momentum", lr=0.1, weight_decay=5e-4, schedule="steps", warmup_epochs=0, warmup_lr=0, milestones=(0.2, 0.33, 0.67)
    )
    schedule = learning.over(EPOCHS)
    sampler = Sampler(images, BATCH, 0)

    def fresh():
        torch.manual_seed(0)
        return add_head(create_backbone(architecture, size), data.class_names).eval().to(DEVICE, memory_format=torch.channels_last)

    plain = fresh()
    optimizer = learning.create(LinearProbe(plain))
    began = now()
    for epoch in range(counted):
        for group in optimizer.param_groups:
            group["lr"] = schedule(epoch)
        for batch in Batches(store, labels, sampler).epoch(epoch, 0):
            with torch.no_grad():
                features = plain.features(batch.inputs.float() / 255)
            optimizer.zero_grad()
            F.cross_entropy(plain.head(features), batch.labels).backward()
            optimizer.step()
    slow = (now() - began) / counted * EPOCHS

    ours = fresh()
    with tempfile.TemporaryDirectory() as folder:
        accelerator = start(folder, 0)
        began = now()
        objective = LinearProbe(ours)
        batches = Batches(Resident(compute_features(ours, store)), labels, sampler)
        watch = Watch(cadence=Cadence(checkpoint=10**9, monitor=10**9))
        checkpoints = Checkpoints(folder, 1, {})
        train(accelerator, objective, learning.create(objective), schedule, batches, checkpoints, span=Span(resume="none"), watch=watch)
        fast = now() - began
    print(f"LE, {architecture}, {images} images of {size} px, {EPOCHS} epochs: {slow:.1f} s with a pass an epoch ({counted} of them run),", end=" ")
    print(f"{fast:.1f} s over cached features: {slow / fast:.0f} times as fast", end="" if counted == EPOCHS else "\n")
    if counted == EPOCHS:
        apart = max(float((a - b).detach().abs().max()) for a, b in zip(plain.head.parameters(), ours.head.parameters(), strict=True))
        print(f", heads differ by at most {apart:.1e}")


def views(size: int, count: int = 256) -> None:
    """Images a second of one view each, on one core; and on a GPU, where training there draws them."""
    torch.set_num_threads(1)
    keep_memory()  # as training does
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pipeline = v2.Compose([
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2), v2.RandomHorizontalFlip(),
        v2.RandomResizedCrop(size, scale=(0.08, 1.0)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    ours, ratios, rates = Augmentation(), [], []
    for repeat in range(8):
        began = time.perf_counter()
        torch.stack([pipeline(picture) for picture in pictures])
        middle = time.perf_counter()
        ours(images.float() / 255, generators((repeat,), "views"))
        end = time.perf_counter()
        ratios.append((middle - began) / (end - middle))
        rates.append((count / (middle - began), count / (end - middle)))
    pil, batched = (statistics.median(column) for column in zip(*rates[1:], strict=True))
    spread = f"{statistics.median(ratios[1:]):.1f} ({min(ratios[1:]):.1f} to {max(ratios[1:]):.1f})"
    print(f"views, {size} px, one core: {pil:.0f} images/s one by one, {batched:.0f} in a batch; ratio {spread}")
    if DEVICE.type == "cuda":
        there, seconds = images.to(DEVICE), []
        for repeat in range(8):
            began = now()
            ours(there.float() / 255, generators((repeat,), "views"))
            seconds.append(now() - began)
        print(f"views, {size} px, {torch.cuda.get_device_name(0)}: {count / statistics.median(seconds[1:]):.0f} images/s in a batch of {count}")


def loss(at_once: bool, ranks: int = 64, batch: int = 32768, dimensions: int = 128) -> None:
    """Peak memory of the loss and its gradient, beyond what holds embeddings and keys."""
    local = batch // ranks
    keys = nn.functional.normalize(torch.randn(3, batch, dimensions), dim=-1)
    anchors = keys[:, :local].clone().requires_grad_()
    if at_once:
        contrastive._ENTRIES = 2**62
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    nt_xent(anchors, keys, 0.5).backward()
    seconds = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    how = "the whole matrix" if at_once else "rows in turn"
    print(f"NT-Xent, global batch {batch:,}, one rank of {ranks}, 3 views, {how}: {peak:.2f} GiB beyond the keys, {seconds:.1f} s")


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, method: str) -> None:
    def climbed(logits: Tensor, clean: Tensor) -> Tensor:
        if method != "trades":
            return F.cross_entropy(logits, labels)
        return F.kl_div(F.log_softmax(logits, 1), F.softmax(clean, 1), reduction="batchmean")

    model.eval()
    clean = model(images).detach()
    adversarial = (images + torch.empty_like(images).uniform_(-8 / 255, 8 / 255)).clamp(0, 1)
    for _ in range(10):
        adversarial.requires_grad_()
        climbed(model(adversarial), clean).backward()
        stepped = adversarial.detach() + 2 / 255 * adversarial.grad.sign()
        adversarial = torch.minimum(torch.maximum(stepped, images - 8 / 255), images + 8 / 255).clamp(0, 1)
    model.train(method != "r-LE")
    optimizer.zero_grad()
    loss = F.cross_entropy(model(adversarial), labels)
    if method == "trades":
        clean = model(images)
        loss = F.cross_entropy(clean, labels) + 6 * climbed(model(adversarial), clean)
    loss.backward()
    optimizer.step()


def steps(architecture: str = "resnet18_cifar", size: int = 32, count: int = 32, repeats: int = 3) -> None:
    """Seconds of a step both ways, in turn."""
    images, labels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8), torch.randint(0, 10, (count,))
    images, labels = images.to(DEVICE), labels.to(DEVICE)

    def classifier() -> PixelModel:
        torch.manual_seed(0)
        return add_head(create_backbone(architecture, size), [str(label) for label in range(10)]).to(DEVICE)

    def ours(method: str, model: PixelModel) -> Objective:
        if method == "r-LE":
            return RobustProbe(model, PGD(8 / 255, step_size=2 / 255, steps=10))
        as_it_is = Augmentation(jitter_probability=0, grey_probability=0, flip_probability=0, crop_area=(1, 1))
        attack = AttackOptions(epsilon=8 / 255, step_size=2 / 255, steps=10)
        return AdversarialTraining(model, AdversarialTraining.Options(method=method, attack=attack, augmentation=as_it_is))

    for method in ("r-LE", "at", "trades"):
        plain, objective = classifier(), ours(method, classifier()).to(memory_format=torch.channels_last)
        plain_optimizer = torch.optim.SGD(plain.head.parameters() if method == "r-LE" else plain.parameters(), 0.1, 0.9)
        optimizer = OptimizerOptions(name="momentum", lr=0.1, weight_decay=0.0).create(objective)
        seconds = []
        for repeat in range(repeats + 1):
            began = now()
            plain_step(plain, plain_optimizer, images / 255, labels, method)
            middle = now()
            objective.train()(Batch(images, labels, (repeat,)))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append((middle - began, now() - middle))
        slow, fast = (statistics.median(column) for column in zip(*seconds[1:], strict=True))
        ratios = [a / b for a, b in seconds[1:]]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{method}, {architecture}, {count} images of {size} px, PGD-10: a plain step {slow:.2f} s, ours {fast:.2f} s; ratio {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    whole = ["probe", "views", "loss", "steps"]
    parser.add_argument("parts", nargs="*", default=whole, choices=[*whole, "loss-in-turn", "loss-whole"])
    for part in parser.parse_args().parts:
        if part == "probe":
            probe("resnet8_cifar", 16, EPOCHS, 1024)
            probe("resnet18_cifar", 32, 2, 1024)
        elif part == "views":
            views(32)
            views(96)
        elif part == "loss":  # a process each: a peak never falls
            for how in ("loss-whole", "loss-in-turn"):
                subprocess.run([sys.executable, __file__, how], check=True)
        elif part == "steps":
            steps()
        else:
            loss(part == "loss-whole")


if __name__ == "__main__":
    main()
