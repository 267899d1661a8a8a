"""RoCL in plain PyTorch: features that resist perturbations, learned from handwritten digits without a label.

    python examples/rocl.py [--epochs 28]

The objective is a torch module: uint8 images in, a loss out; views, attack and the forward passes of all views are inside it. The loop around it
is yours. At the end a linear head is trained on clean features and measured under PGD (two to three minutes on a CPU core).
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.attacks import PGD, AttackOptions
from rocl_transfer.data import Augmentation, Batch, derive_seed, load_images, store_images
from rocl_transfer.evaluation import Results, evaluate
from rocl_transfer.models import PixelModel, add_head, create_backbone, projector
from rocl_transfer.objectives import RoCL

# Digits may be turned, zoomed and shifted; mirrored or cropped to a stroke they would be other digits.
VIEWS = Augmentation(
    brightness=(0.6, 1), contrast=(1, 1), saturation=(1, 1), hue=(0, 0), jitter_probability=1, grey_probability=0,
    flip_probability=0, crop_area=(1, 1), rotation=(-20, 20), scale=(0.8, 1.25), shift=0.2,
)  # fmt: skip


def digits(split: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, 16, 16) and labels (N,): put your own two tensors here."""
    images = getattr(load_images("digits", image_size=16), split)
    store = store_images(images, 16, torch.device("cpu"))
    return next(store.batches([torch.arange(len(store))])), images.labels


def pretrain(images: Tensor, epochs: int, batch_size: int = 128, lr: float = 4e-3, seed: int = 0) -> PixelModel:
    """A backbone that has never seen a label."""
    torch.manual_seed(seed)
    encoder = create_backbone("resnet8_cifar", image_size=images.shape[-1])
    options = RoCL.Options(attack=AttackOptions(epsilon=0.1, step_size=0.025, steps=5))
    objective = RoCL(encoder, projector(encoder.num_features), VIEWS, options).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=lr, weight_decay=1e-4)
    total = epochs * (len(images) // batch_size)
    for step in range(total):
        for group in optimizer.param_groups:  # warm-up over the first quarter, then a half cosine
            group["lr"] = lr * min(4 * (step + 1) / total, (1 + math.cos(math.pi * step / total)) / 2)
        chosen = torch.randperm(len(images))[:batch_size]
        losses = objective(Batch(images[chosen], None, seeds=(derive_seed(seed, step),)))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        if step % 20 == 0 or step == total - 1:
            print(f"step {step + 1}/{total}  " + "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items()))
    return objective.exported.eval()


def linear_head(backbone: PixelModel, images: Tensor, labels: Tensor, steps: int = 500) -> PixelModel:
    """``backbone`` with a linear head, trained on clean features; the backbone stays as it is."""
    classifier = add_head(backbone, [str(digit) for digit in range(10)]).eval()
    with torch.no_grad():
        features = torch.cat([classifier.features(part.float() / 255) for part in images.split(256)])
    optimizer = torch.optim.AdamW(classifier.head.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(steps):
        loss = F.cross_entropy(classifier.head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier


def main(epochs: int = 28, most: int | None = None) -> Results:
    """Train and measure; ``most`` takes fewer images."""
    images, labels = (part[:most] for part in digits("train"))
    classifier = linear_head(pretrain(images, epochs, min(128, len(images))), images, labels)
    results = evaluate(classifier, *(part[:most] for part in digits("test")), attacks=[PGD(0.05), PGD(0.1)])
    print(*results.evaluations, sep="\n")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=28)
    main(parser.parse_args().epochs)
