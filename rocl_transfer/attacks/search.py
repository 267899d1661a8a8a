"""What all attacks have in common: they search for many samples at once, and a sample that is broken leaves at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from rocl_transfer.attacks.frozen import frozen
from rocl_transfer.attacks.gate import admit
from rocl_transfer.options import require

Network = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [0, 1] -> logits (N, K), float32


class Outcome:
    """What a search found for each of N samples.

    Attributes:
        adversarial: (N, C, H, W): an image in the ball that breaks the sample; where none was found, the clean one.
        margin: (N,): the lowest margin (see :func:`~rocl_transfer.attacks.margins.margin`) of an image in the ball; inf if none was looked at.
    """

    def __init__(self, images: Tensor) -> None:
        self.adversarial = images.clone()
        self.margin = torch.full((len(images),), torch.inf, device=images.device)

    @property
    def broken(self) -> Tensor:
        """(N,) bool."""
        return self.margin < 0

    def note(self, position: Tensor, images: Tensor, margins: Tensor) -> Tensor:
        """Take down ``images`` of the ball, looked at for the samples at ``position``; returns which of them are wrong."""
        margins = torch.where(margins.isnan(), torch.inf, margins)  # where the network has no answer, nothing was found
        wrong = margins < 0
        self.margin[position] = torch.minimum(self.margin[position], margins)
        if wrong.any():
            self.adversarial[position[wrong]] = images[wrong]
        return wrong


@dataclass
class ActiveSamples:
    """Tensors of one row for each sample still under attack; attacks add their own."""

    position: Tensor  # (N,): which sample of the outcome
    images: Tensor
    labels: Tensor

    def keep(self, chosen: Tensor) -> None:
        """Drop the other rows of every tensor."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[chosen])

    def __len__(self) -> int:
        return len(self.position)


class Attack(ABC):
    """``runs`` searches per sample (restarts or targets), of which one has to succeed."""

    norm: str
    epsilon: Any  # a float; PGD also takes one per image

    @property
    @abstractmethod
    def name(self) -> str:
        """What results call it."""

    @property
    @abstractmethod
    def runs(self) -> int:
        """Searches per sample."""

    @property
    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Evaluations of the network in one run: (forward alone, forward and backward)."""

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """What the record says of it beside name, norm and epsilon."""

    def alike(self, other: "Attack") -> bool:
        """Whether ``other``, of the same name and ball, searches in the same way."""
        return type(self) is type(other) and self.conditions() == other.conditions()

    @abstractmethod
    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """One run for each sample; what it finds does not depend on the samples beside it.

        Args:
            network: Deterministic, its parameters frozen.
            images: (N, C, H, W), float32 in [0, 1].
            labels: (N,), int64.
            runs: (N,), int64: which run of the sample this is.
            seeds: (N,), int64: everything random in a sample's runs follows from its seed.
            at_once: How many images the network is best asked of at once: a search may look ahead while N are fewer.
        """

    @torch.inference_mode(False)
    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images for ``model``, the clean image where none was found; random draws follow from torch's global generator.

        Args:
            model: Images (N, C, H, W) in [0, 1] -> logits (N, K). Attacked in eval mode with frozen parameters and left as it came in.
            images: (N, C, H, W), floats in [0, 1]; never written into.
            labels: (N,), whole numbers.

        Returns:
            (N, C, H, W), float32, on the model's device.

        Raises:
            UserError: The images are no floats in [0, 1], the labels are not the model's classes, or the model gives no logits (N, K).
        """
        model, images, labels = admit(model, images, labels)

        def network(images: Tensor) -> Tensor:
            logits: Tensor = model(images).float()
            return logits

        adversarial = images.clone()
        seeds = torch.randint(2**62, (len(images),)).to(images.device)
        with frozen(model), torch.no_grad():
            standing = torch.nonzero(model(images).argmax(1) == labels).flatten()
            for run in range(self.runs):
                if not len(standing):
                    break
                found = self.search(network, images[standing], labels[standing], torch.full_like(standing, run), seeds[standing])
                adversarial[standing] = found.adversarial
                standing = standing[~found.broken]
        return adversarial


def check_counts(attack: str, least: int = 1, **counts: int) -> None:
    """Refuse numbers of steps, runs or queries with which ``attack`` is none.

    Raises:
        UserError: One is no whole number, or below ``least``.
    """
    for name, count in counts.items():
        require(isinstance(count, Integral) and count >= least, f"the number of {name} of {attack} is {count}: give a whole number, {least} or more")


def ascend(network: Network, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K), each sample's loss (N,), and its gradient in the pixels; ``loss`` takes the logits."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = network(images)
        losses = loss(logits)
        (gradient,) = torch.autograd.grad(losses.sum(), images)
    return logits.detach(), losses.detach(), gradient.nan_to_num_(0, 0, 0)  # one bad pixel must not carry the whole image away
