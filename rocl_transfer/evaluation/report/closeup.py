"""One image as an adversary sees it: what a model makes of it as the perturbation grows, and where its answer flips."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rocl_transfer.attacks import PGD, check_images, device_of, threat_model
from rocl_transfer.data import generators
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.margin import FlipOptions, smallest_epsilon
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.models import PixelModel
from rocl_transfer.options import Number

RADII = 8


@dataclass(frozen=True)
class Closeup:
    """What a classifier makes of one image and of its perturbations.

    Attributes:
        class_names: One a probability.
        epsilons: (R + 1,) radii, rising from 0 to the one asked for.
        probabilities: (R + 1, K): at each radius, of the image that PGD finds there; the first row is the clean image.
        clean: (3, H, W) in [0, 1].
        adversarial: (3, H, W): what PGD finds at the largest radius.
        flips_at: The smallest radius found at which PGD changes the answer; inf if none up to ``searched`` does.
        searched: The largest radius that was tried for it.
    """

    class_names: tuple[str, ...]
    epsilons: Tensor
    probabilities: Tensor
    clean: Tensor
    adversarial: Tensor
    flips_at: float
    searched: float

    @property
    def before(self) -> tuple[str, float]:
        """The answer to the clean image, and its probability."""
        return self._answer(0)

    @property
    def after(self) -> tuple[str, float]:
        """The answer to the adversarial image, and its probability."""
        return self._answer(-1)

    @property
    def largest_change(self) -> float:
        """Largest change of any value of any pixel."""
        return float((self.adversarial - self.clean).abs().max())

    def perturbation(self) -> Tensor:
        """(3, H, W) in [0, 1]: the perturbation enlarged to the full range, grey where nothing changes."""
        return 0.5 + (self.adversarial - self.clean) / (2 * max(self.largest_change, 1e-12))

    def leading(self, most: int = 4) -> list[int]:
        """The classes whose probability is largest at any radius, at most ``most``."""
        return self.probabilities.amax(0).argsort(descending=True, stable=True)[:most].tolist()

    def _answer(self, row: int) -> tuple[str, float]:
        probability, label = self.probabilities[row].max(0)
        return self.class_names[int(label)], float(probability)


@torch.inference_mode(False)
def close_up(
    model: PixelModel, image: Tensor, *, epsilon: float = 8 / 255, steps: int = 20, norm: str = "linf", upper: float = 64 / 255, seed: int = 0
) -> Closeup:  # fmt: skip
    """Attack ``image`` by PGD at radii up to ``epsilon``, and look for the smallest that flips the answer.

    All attacks start from the same random point of their ball and climb away from the model's own answer to the clean image.

    Args:
        model: A classifier; attacked in eval mode, in float32, and left as it came in.
        image: (3, H, W), uint8 or floats in [0, 1].
        epsilon: The largest radius that is looked at, in [0, 1] pixel units; 0 looks at the clean image alone.
        steps: Gradient steps of PGD, each of a tenth of the radius.
        norm: Norm of the ball: linf or l2.
        upper: The largest radius tried for the smallest one.
        seed: For the random start.

    Raises:
        UserError: The image is no (3, H, W), its pixels are not in [0, 1], the model has no classes, or a radius or the steps cannot be meant.
    """
    if image.dim() != 3 or not model.class_names:
        what = "the model has no classes" if image.dim() == 3 else f"the image has the shape {tuple(image.shape)}"
        raise UserError(f"{what}: give a classifier and one image (3, H, W)")
    if not (math.isfinite(epsilon) and epsilon >= 0) or steps < 1:
        raise UserError(f"epsilon is {epsilon} and the steps are {steps}: give a radius of 0 or more, and 1 step or more")
    threat_model(norm, epsilon or 1.0)
    options = FlipOptions(norm=norm, steps=steps, max_epsilon=Number(upper))  # type: ignore[arg-type]  # it checks the norm
    clean = check_images(image[None], bytes_too=True).to(device_of(model, image.device))
    clean = clean.float() / 255 if clean.dtype == torch.uint8 else clean.float()
    mode = model.training
    model.eval()
    try:
        with full_precision(), torch.no_grad():
            label = model(clean).argmax(1)
            epsilons = torch.linspace(0, epsilon, RADII + 1 if epsilon else 1)
            seen = torch.cat([clean, _perturbed(model, clean, label, epsilons[1:], steps, norm, seed)])
            probabilities = model(seen).softmax(1).cpu()
    finally:
        model.train(mode)
    flips = smallest_epsilon(model, clean, label, options, seed=[seed])
    return Closeup(model.class_names, epsilons, probabilities, seen[0].cpu(), seen[-1].cpu(), float(flips), upper)


def _perturbed(model: PixelModel, clean: Tensor, label: Tensor, epsilons: Tensor, steps: int, norm: str, seed: int) -> Tensor:
    """(R, 3, H, W): what PGD finds at each radius; radii of one image are attacked at once, each from the start that it would have alone."""
    count = len(epsilons)
    if not count:
        return clean[:0]
    attack = PGD(epsilons.view(-1, 1, 1, 1).to(clean.device), steps=steps, norm=norm)
    starts = generators([seed] * count, "attack", clean.device)
    return attack.perturb(model, clean.expand(count, -1, -1, -1).contiguous(), label.expand(count), starts)
