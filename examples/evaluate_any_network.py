"""How robust is any network? Yours needs nothing of this package: a torch module from images in [0, 1] to logits is enough.

    python examples/evaluate_any_network.py

A small network is trained on digits in plain PyTorch and then asked three questions: is anything odd about it, how often is it right under
AutoAttack, and how small a change of each image flips its answer (20 seconds on a CPU core).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocl_transfer.data import load_images, store_images
from rocl_transfer.evaluation import FlipOptions, Results, evaluate, inspect_model, smallest_epsilon


class Yours(nn.Module):
    """Any network. Its normalisation stands inside, so that an epsilon means the same to every network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> logits (N, 10)."""
        logits: Tensor = self.layers((images - 0.5) / 0.25)
        return logits


def digits(split: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, 16, 16) and labels (N,): put your own two tensors here."""
    images = getattr(load_images("digits", image_size=16), split)
    store = store_images(images, 16, torch.device("cpu"))
    return next(store.batches([torch.arange(len(store))])), images.labels


def train(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Plain training."""
    network = Yours().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen].float() / 255), labels[chosen]).backward()
        optimizer.step()
    return network.eval()


def main(steps: int = 300, most: int = 100, attacks: str = "standard") -> tuple[Results, Tensor]:
    """Train and measure on ``most`` test images; ``attacks`` fast is AutoAttack's first two."""
    torch.manual_seed(0)
    network = train(*digits("train"), steps)
    images, labels = (part[:most] for part in digits("test"))
    pixels = images.float() / 255

    # Things that make numbers meaningless: random outputs, gradients that vanish, images that change each other's answers.
    seen = inspect_model(network, pixels[:64], labels[:64])
    print(f"{seen.classes} classes;", "; ".join(seen.warnings) or "nothing odd about it")

    # AutoAttack: four attacks, of which an image has to stand all. Verdicts of every image are in results.verdicts.
    results = evaluate(network, images, labels, attacks=attacks, epsilon=8 / 255)
    print(*results.evaluations, sep="\n")

    # For each image the smallest epsilon at which PGD changes the answer: an upper bound of its distance from another class.
    flips = smallest_epsilon(network, pixels, labels, FlipOptions(max_epsilon=32 / 255))
    quarters = flips.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    print("epsilon that flips a quarter, half, three quarters:", ", ".join(f"{255 * value:.1f}/255" for value in quarters))
    return results, flips


if __name__ == "__main__":
    main()
