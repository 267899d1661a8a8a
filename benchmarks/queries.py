"""What AutoAttack's search could still save: queries that were made before, and time outside the convolutions.

    python benchmarks/queries.py [MODEL DATA] [--epsilon 0.1] [--samples 40] [--batch_size 256]

Every image that an attack asks the network about is hashed; one that was asked about before has a known answer. Then a pass of the network that
attacks search on is timed beside its convolutions alone, in the same run, forward and with the gradient of the pixels.
"""

import argparse
import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import frozen
from rocl_transfer.data import load_images, store_splits, stratified_sample
from rocl_transfer.evaluation import named_attacks
from rocl_transfer.evaluation.protocols import parts_of
from rocl_transfer.evaluation.samples import pixels_of
from rocl_transfer.evaluation.search_network import search_network
from rocl_transfer.hub import load_classifier


def count(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> None:
    seen: set[bytes] = set()
    asked: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    name = ""

    def network(asked_about: Tensor) -> Tensor:
        for image in asked_about.detach().contiguous().numpy():
            digest = hashlib.blake2b(image.tobytes(), digest_size=12).digest()
            asked[name] += 1
            repeated[name] += digest in seen
            seen.add(digest)
        logits: Tensor = model(asked_about).float()
        return logits

    standing = (model(images).argmax(1) == labels).nonzero().flatten()
    seeds = torch.randint(2**62, (len(images),), generator=torch.Generator().manual_seed(0))
    print("| attack | samples | queries | made before |\n| --- | --- | --- | --- |")
    for attack in parts_of(named_attacks("standard", epsilon, "linf", len(model(images[:1])[0]))[0]):
        name, before = attack.name, len(standing)
        for run in range(attack.runs):
            if len(standing):
                chosen = images[standing], labels[standing], torch.full_like(standing, run), seeds[standing]
                standing = standing[~attack.search(network, *chosen).broken]
        print(f"| {name} | {before} | {asked[name]:,} | {100 * repeated[name] / max(asked[name], 1):.1f} % |", flush=True)


def milliseconds(function: Callable[[], Any], images: int) -> float:
    """Median of nine, per image."""
    function()
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken) / images


def share(model: nn.Module, images: Tensor) -> None:
    network = search_network(model, images[:8])
    images = images.contiguous(memory_format=torch.channels_last)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(lambda module, args, out: calls.append((module, args[0], out))) for conv in convs]
    network(images)
    for hook in hooks:
        hook.remove()

    def climb(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor | None = None) -> None:
        with torch.enable_grad():
            leaf = at.clone().requires_grad_(True)
            out = function(leaf)
            torch.autograd.grad(out.sum() if along is None else out, leaf, along)

    alone = milliseconds(lambda: [conv(image) for conv, image, _ in calls], len(images))
    whole = milliseconds(lambda: network(images), len(images))
    alone_back = milliseconds(lambda: [climb(conv, image, out) for conv, image, out in calls], len(images))
    whole_back = milliseconds(lambda: climb(network, images), len(images))
    print(f"forward {whole:.4f} ms an image, its convolutions {alone:.4f} = {100 * alone / whole:.0f} %; ", end="")
    print(f"with the gradient {whole_back:.4f} and {alone_back:.4f} = {100 * alone_back / whole_back:.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="model_cards/resnet8_cifar.r_le_digits")
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_classifier(options.model)
    data = load_images(options.data, image_size=model.input_size)
    data, stores = store_splits(data, ("test",), torch.device("cpu"))
    chosen = stratified_sample(data.test.labels, max(options.samples, options.batch_size), 0)
    images, labels = pixels_of(next(iter(stores["test"].batches([chosen])))), data.test.labels[chosen]
    with frozen(model), torch.no_grad():
        share(model, images[: options.batch_size])
        count(model, images[: options.samples], labels[: options.samples], options.epsilon)


if __name__ == "__main__":
    main()
