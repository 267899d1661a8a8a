"""What can be wrong with a model before it is attacked: found and said, since it makes every number after it mean something else."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocl_transfer.attacks import ask, check_classes, frozen, untouched
from rocl_transfer.attacks.search import ascend
from rocl_transfer.evaluation.precision import full_precision


@dataclass(frozen=True)
class Inspection:
    """What was seen of a model on a few images.

    Attributes:
        warnings: One sentence each.
        random: Whether its answers change from call to call.
        zero_gradients: Share of images whose loss has no gradient in any pixel.
        classes: K.
    """

    warnings: tuple[str, ...]
    random: bool
    zero_gradients: float
    classes: int


def inspect_model(model: nn.Module, images: Tensor, labels: Tensor, name: str = "the model") -> Inspection:
    """Look at the model on ``images`` (N, 3, H, W) in [0, 1] with ``labels`` (N,); sentences call it ``name``.

    Raises:
        UserError: It does not take the images, or gives no finite logits (N, K).
    """
    warnings = []
    model = untouched(model)
    if any(part.training for part in model.modules()):
        warnings.append(f"{name} came in training mode: it is measured in eval mode")
    with full_precision(), frozen(model), torch.no_grad():
        first = ask(model, images, name)
        check_classes(labels, first.shape[1], name)
        second = model(images).float()
        random = not torch.equal(first, second)
        if random and torch.allclose(first, second, rtol=1e-4, atol=1e-5 * float(first.abs().max())):
            random = False  # a GPU's sums in another order
        if random:
            warnings.append(f"{name}'s answers are random: one pass says little, and attacks that take it for a function overstate its robustness")
        probabilities = bool((first >= 0).all() and (first <= 1).all() and torch.allclose(first.sum(1), torch.ones_like(first[:, 0]), atol=1e-3))
        if probabilities:
            warnings.append(f"{name}'s outputs are probabilities: losses made for logits have small gradients on them; give the logits instead")
        try:
            _, _, gradient = ascend(model, images, lambda logits: F.cross_entropy(logits.float(), labels, reduction="none"))
            zero = float((gradient == 0).flatten(1).all(1).float().mean())  # gradients that are not finite count as none
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # the output is cut off from the input
            zero = 1.0
    if zero > 0:
        warnings.append(f"the loss has no gradient in any pixel for {100 * zero:.0f} % of the images: gradient attacks cannot see these")
    return Inspection(tuple(warnings), random, zero, int(first.shape[1]))
