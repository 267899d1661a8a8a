"""How far each image is from another answer: the smallest radius at which an attack finds one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import PGD, admit, device_of, frozen, threat_model
from rocl_transfer.data import derive_seed, generators
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.options import Number, require

# Where the search begins, so that it tries the radii people report: 1/255, 2/255, 4/255, 8/255, ...
_FIRST = 4 / 255
# Float32 pixels near 1 lie 6e-8 apart, a step of PGD is a tenth of its radius.
_FINEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class FlipOptions:
    """What PGD tries in order to flip an answer.

    Args:
        norm: Norm of the ball: linf or l2.
        steps: Gradient steps of PGD. It starts at a random point, and each step is epsilon / 10: fewer than 20 cannot cross the ball.
        max_epsilon: The largest epsilon tried, in [0, 1] pixel units, a number or a fraction. An answer that stands it has ``inf``.
    """

    norm: Literal["linf", "l2"] = "linf"
    steps: int = 20
    max_epsilon: Number = Number(64 / 255)

    def __post_init__(self) -> None:
        require(0 < self.max_epsilon < math.inf, f"max_epsilon is {self.max_epsilon}: give a radius above 0, such as 64/255")
        above = self.norm == "linf" and self.max_epsilon > 1
        require(not above, f"max_epsilon is {self.max_epsilon}: pixels are in [0, 1], so write 64/255 rather than 64")
        threat_model(self.norm, self.max_epsilon)
        require(self.steps > 0, f"steps is {self.steps}: it must be 1 or more")


_BY_DEFAULT = FlipOptions()


@torch.inference_mode(False)
def smallest_epsilon(
    model: nn.Module, images: Tensor, labels: Tensor, options: FlipOptions = _BY_DEFAULT, *, precision: float = 1 / 32,
    batch_size: int | None = None, seed: int | Sequence[int] = 0,
) -> Tensor:  # fmt: skip
    """The smallest radius found, for each image, at which PGD (random start, step epsilon / 10) makes ``model`` answer something else.

    An upper bound of the true distance: at the radius returned there is another answer, a stronger attack may find one nearer. Radii are
    doubled, or halved, until one fails and the next succeeds; the gap between the two is then halved until it is narrow enough. Each image's
    random start has its own seed, the same at every radius, so an image's radius does not depend on the images beside it.

    Args:
        model: Images (N, C, H, W) in [0, 1] -> logits (N, K). Attacked in eval mode, in float32, and left as it came in.
        images: (N, C, H, W), floats in [0, 1]; never written into.
        labels: (N,), whole numbers: the truth, or the model's own answers.
        options: Ball, steps and the largest radius tried. Another one leaves smaller results as they are.
        precision: How far, as a share of the radius returned, the largest failing one may lie below it (never asked to less than 1e-5).
        batch_size: Images attacked at once (default: by their pixels).
        seed: For the random starts: one from which each image's is derived by its position, as ``evaluate`` does, or a sequence of one per image.

    Returns:
        (N,) float32, on the model's device: 0 if the model's answer is not the label to begin with, inf if no radius up to
        ``options.max_epsilon`` changed it.

    Raises:
        UserError: Images, labels and seeds differ in number or there are none, pixels are no floats in [0, 1], labels are not the model's classes,
            the model gives no logits (N, K), or precision or batch size are not above 0.
    """
    seeds = [derive_seed(seed, index) for index in range(len(images))] if isinstance(seed, int) else list(seed)
    if not len(images) == len(labels) == len(seeds) or not seeds:
        raise UserError(f"{len(images)} images, {len(labels)} labels and {len(seeds)} seeds were given: give as many of each, and at least one")
    require(precision > 0, f"the precision is {precision}: give a number above 0")
    require(batch_size is None or batch_size > 0, f"batch_size is {batch_size}: give 1 or more, or leave it out")
    found = []
    with full_precision(), torch.no_grad():
        network, images, labels = admit(model, images, labels, move=False)
        device = device_of(network, images.device)
        for chosen in torch.arange(len(images)).split(batch_size or images_at_once(images.shape, device)):
            part, truth = images[chosen].to(device), labels[chosen].to(device)
            search = _Search(network, part, truth, options, [seeds[index] for index in chosen.tolist()])
            with frozen(network):
                found.append(search.run(options.max_epsilon, precision))
    return torch.cat(found)


class _Search:
    """Doubling, then bisection, over a batch in which each image has its own radius; only the undecided ones are attacked.

    Args:
        model: Frozen.
        images: (N, C, H, W).
        labels: (N,).
        options: Ball and steps.
        seeds: One per image.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, options: FlipOptions, seeds: Sequence[int]) -> None:
        self.model, self.images, self.labels, self.options, self.seeds = model, images, labels, options, seeds

    def flips(self, chosen: Tensor, radii: Tensor) -> Tensor:
        """Whether the attack with ``radii`` changes the answers to the images ``chosen``."""
        starts = generators([self.seeds[index] for index in chosen.tolist()], "attack", self.images.device)
        attack = PGD(radii.view(-1, 1, 1, 1), steps=self.options.steps, norm=self.options.norm)
        images, labels = self.images[chosen], self.labels[chosen]
        flipped: Tensor = self.model(attack.perturb(self.model, images, labels, starts)).argmax(1) != labels
        return flipped

    def run(self, upper: float, precision: float) -> Tensor:
        """(N,): see :func:`smallest_epsilon`."""
        wrong = self.model(self.images).argmax(1) != self.labels
        low = torch.zeros(len(wrong), device=wrong.device)  # fails here
        high = torch.where(wrong, 0.0, math.inf)  # succeeds here
        radius = torch.full_like(low, _FIRST)
        while len(chosen := _undecided(low, high, upper, precision)):
            # A radius beyond the limit stands for the limit, so that where the search looks does not depend on it.
            flipped = self.flips(chosen, radius[chosen].clamp(max=upper))
            high[chosen] = torch.where(flipped, radius[chosen], high[chosen])
            low[chosen] = torch.where(flipped, low[chosen], radius[chosen])
            radius = torch.where(high.isinf(), 2 * low, (low + high) / 2)
        return torch.where(high.isinf(), high, high.clamp(max=upper))


def _undecided(low: Tensor, high: Tensor, upper: float, precision: float) -> Tensor:
    """Positions whose search is not finished."""
    wide = high - low > (precision * high).clamp(min=_FINEST)
    return torch.nonzero(torch.where(high.isinf(), low < upper, wide)).flatten()
