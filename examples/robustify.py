"""A robust twin of your classifier in plain PyTorch, without a label: its features of perturbed images become the original's of clean ones.

    python examples/robustify.py [--epochs 20]

First an ordinary classifier of digits is trained, as yours would have been. Then the twin is distilled from it (FARE), and both are measured under
PGD. The head is the original's, untouched: only the features learn (75 seconds on a CPU core).
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.attacks import PGD, AttackOptions
from rocl_transfer.data import Augmentation, Batch, derive_seed, load_images, store_images
from rocl_transfer.evaluation import Results, evaluate
from rocl_transfer.models import PixelModel, add_head, create_backbone, select_trainable
from rocl_transfer.objectives import Distillation

# Shifted by up to two of 16 pixels; a mirrored digit would be another one.
SHIFTED = Augmentation(jitter_probability=0, grey_probability=0, flip_probability=0, crop_area=(1, 1), shift=1 / 8)


def digits(split: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, 16, 16) and labels (N,): put your own two tensors here."""
    images = getattr(load_images("digits", image_size=16), split)
    store = store_images(images, 16, torch.device("cpu"))
    return next(store.batches([torch.arange(len(store))])), images.labels


def train(images: Tensor, labels: Tensor, epochs: int, batch_size: int) -> PixelModel:
    """An ordinary classifier."""
    model = add_head(create_backbone("resnet8_cifar", image_size=images.shape[-1]), [str(digit) for digit in range(10)]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(epochs * (len(images) // batch_size)):
        chosen = torch.randperm(len(images))[:batch_size]
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen].float() / 255), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


def robustify(model: PixelModel, images: Tensor, epochs: int, batch_size: int, lr: float = 4e-3, seed: int = 0) -> PixelModel:
    """The robust twin of ``model``, which stays as it is. ``images`` need no labels."""
    teacher, student = model, copy.deepcopy(model)
    select_trainable(student, "all", head=False)  # the head stays
    with torch.no_grad():
        scale = float(teacher.features(images[:512].float() / 255).square().sum(1).mean())
    options = Distillation.Options(attack=AttackOptions(epsilon=0.1, steps=5), clean_weight=0.5)
    objective = Distillation(student, teacher, SHIFTED, options, scale).train()
    optimizer = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], lr=lr)
    total = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
    for step in range(total):
        objective.begin_step(step, total)
        chosen = torch.randperm(len(images))[:batch_size]
        losses = objective(Batch(images[chosen], None, seeds=(derive_seed(seed, step),)))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
        objective.end_step()
        if step % 20 == 0 or step == total - 1:
            print(f"step {step + 1}/{total}  " + "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items()))
    return objective.exported.eval()


def main(epochs: int = 20, most: int | None = None) -> tuple[Results, Results]:
    """Before and after; ``most`` takes fewer images."""
    torch.manual_seed(0)
    images, labels = (part[:most] for part in digits("train"))
    before = train(images, labels, epochs, batch_size := min(128, len(images)))
    after = robustify(before, images, epochs, batch_size)
    test = [part[:most] for part in digits("test")]
    measured = [evaluate(model, *test, attacks=[PGD(0.05), PGD(0.1)]) for model in (before, after)]
    for when, results in zip(("before", "after"), measured, strict=True):
        print(f"{when}:", *results.evaluations, sep="\n  ")
    return measured[0], measured[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    main(parser.parse_args().epochs)
