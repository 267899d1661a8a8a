"""Adversarial fine-tuning in plain PyTorch: TRADES on digits, with a running average of the weights and a radius that grows.

    python examples/adversarial_finetuning.py [--epochs 20]

Any timm network with a linear head will do; this one starts from random weights, so the radius is 0 for the first tenth of the training and whole
after half of it: at its full radius from the first step, TRADES often never leaves chance.
"""

import argparse

import torch
from torch import Tensor

from rocl_transfer.attacks import PGD, AttackOptions
from rocl_transfer.data import Augmentation, Batch, derive_seed, load_images, store_images
from rocl_transfer.evaluation import Results, evaluate
from rocl_transfer.models import PixelModel, add_head, create_backbone
from rocl_transfer.objectives import AdversarialTraining

# Shifted by up to two of 16 pixels; a mirrored digit would be another one.
SHIFTED = Augmentation(jitter_probability=0, grey_probability=0, flip_probability=0, crop_area=(1, 1), shift=1 / 8)


def digits(split: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, 16, 16) and labels (N,): put your own two tensors here."""
    images = getattr(load_images("digits", image_size=16), split)
    store = store_images(images, 16, torch.device("cpu"))
    return next(store.batches([torch.arange(len(store))])), images.labels


def finetune(model: PixelModel, images: Tensor, labels: Tensor, epochs: int, batch_size: int = 128, lr: float = 4e-3, seed: int = 0) -> PixelModel:
    """``model`` trained against an adversary; what comes back is the running average of its weights."""
    options = AdversarialTraining.Options(
        method="trades", attack=AttackOptions(epsilon=0.1, steps=5), ramp=(0.1, 0.5), ema_decay=0.99, augmentation=SHIFTED
    )  # fmt: skip
    objective = AdversarialTraining(model, options).train()
    optimizer = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], lr=lr, weight_decay=1e-4)
    total = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
    for step in range(total):
        objective.begin_step(step, total)  # the radius
        chosen = torch.randperm(len(images))[:batch_size]
        losses = objective(Batch(images[chosen], labels[chosen], seeds=(derive_seed(seed, step),)))
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        objective.end_step()  # the running average
        if step % 20 == 0 or step == total - 1:
            print(f"step {step + 1}/{total}  " + "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items()))
    return objective.exported.eval()


def main(epochs: int = 20, most: int | None = None) -> Results:
    """Train and measure; ``most`` takes fewer images."""
    torch.manual_seed(0)
    images, labels = (part[:most] for part in digits("train"))
    model = add_head(create_backbone("resnet8_cifar", image_size=16), [str(digit) for digit in range(10)])
    model = finetune(model, images, labels, epochs, min(128, len(images)))
    results = evaluate(model, *(part[:most] for part in digits("test")), attacks=[PGD(0.05), PGD(0.1)])
    print(*results.evaluations, sep="\n")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    main(parser.parse_args().epochs)
