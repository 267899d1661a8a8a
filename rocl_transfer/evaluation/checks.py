"""What can be wrong with a model before it is attacked: found and said, since it makes every number after it mean something else."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rocl_transfer.attacks import ask, check_classes, frozen, untouched
from rocl_transfer.attacks.search import ascend
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.precision import full_precision

log = logging.getLogger("rocl_transfer")

# Shares of the logits' spread. Other batches round differently: float32 networks by 1e-5 at most, in half precision by 1e-2.
_SAME, _SAME_IN_HALF = 1e-3, 5e-2
COARSE = 0.01  # of the spread: what the logits cannot tell apart
FEW = 0.02  # of the images: more that tie, or stand still, are no chance


@dataclass(frozen=True)
class Inspection:
    """What was seen of a model on a few images.

    Attributes:
        warnings: One sentence each.
        random: Whether its answers change from call to call.
        zero_gradients: Share of images whose loss has no gradient in any pixel.
        classes: K.
        precision: What it computes in: float32, float64, or the half precision that comes up anywhere in a pass.
        spacing: Distance of two neighbouring numbers at an image's largest logit, as a share of the spread of its logits (median of the images).
        ties: Share of images whose first two classes have the same logit.
        still: Share of images whose logits stay the same to the last digit when every pixel moves by 1/255.
        beside: How far other images in the batch move an image's logits, as a share of their spread (the largest of the images).
    """

    warnings: tuple[str, ...]
    random: bool
    zero_gradients: float
    classes: int
    precision: str = "float32"
    spacing: float = 0.0
    ties: float = 0.0
    still: float = 0.0
    beside: float = 0.0

    @property
    def coarse(self) -> bool:
        """Whether attacks cannot follow the answers, which come in steps."""
        return self.spacing > COARSE or self.ties > FEW or self.still > FEW


def inspect_model(model: nn.Module, images: Tensor, labels: Tensor, name: str = "the model") -> Inspection:
    """Look at the model on the first of ``images`` (N, 3, H, W) in [0, 1] with ``labels`` (N,); sentences call it ``name``.

    Looked at are 64 images up to 64 px, fewer of larger ones: each costs about twelve passes.

    Raises:
        UserError: It does not take the images, alone or several at once, or gives no finite logits (N, K) of the labels' classes.
    """
    count = max(8, min(64, 2**18 // (images.shape[-2] * images.shape[-1])))
    images, labels, model = images[:count], labels[:count], untouched(model)
    warnings = [f"{name} came in training mode: it is measured in eval mode"] if any(part.training for part in model.modules()) else []
    if model.one_at_a_time:
        warnings.append(f"{name} was shown one image a pass, on purpose: of its answers to several at once this says nothing")
    with full_precision(), frozen(model), torch.no_grad():
        logits = ask(model, images, name)
        check_classes(labels, logits.shape[1], name)
        dtype = _precision(model, images[:2])
        if dtype not in (torch.float32, torch.float64):
            warnings.append(f"{name} computes in {_plain(dtype)}, in whole or in part: its numbers are those of {_plain(dtype)}, not of float32")
        random = _is_random(model, images, logits)
        if random:
            warnings.append(f"{name}'s answers are random: one pass says little, and attacks that take it for a function overstate its robustness")
        beside = 0.0 if random else _moved_by_others(model, images, logits, name, dtype)
        if beside:
            warnings.append(
                f"{name}'s answer to an image depends on the images beside it (they move its logits by up to {beside:.1%} of their spread), so "
                "verdicts depend on batch size and order: measure it one way with --one_at_a_time true (SearchOptions(one_at_a_time=True))"
            )
        if bool((logits >= 0).all() and (logits <= 1).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3)):
            warnings.append(f"{name}'s outputs are probabilities: losses made for logits have small gradients on them; give the logits instead")
        spacing, ties, still = _steps(model, images, logits, dtype)
        warnings += _said_of_steps(name, logits, dtype, spacing, ties, still)
        zero = _zero_gradients(model, images, labels)
    if zero > 0:
        warnings.append(f"the loss has no gradient in any pixel for {100 * zero:.0f} % of the images: gradient attacks cannot see these")
    return Inspection(tuple(warnings), random, zero, logits.shape[1], _plain(dtype), spacing, ties, still, beside)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Halves(TorchDispatchMode):
    """Notes floats of less than 32 bits that any operation gives, wherever they come from: weights, casts or autocast in the forward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.element_size() < 4}
        return result


def _precision(model: nn.Module, images: Tensor) -> torch.dtype:
    """The coarsest floats that a pass computes in."""
    seen: set[torch.dtype] = {model(images).dtype}
    try:
        with _Halves() as mode:
            model(images)
        seen |= mode.seen
    except Exception as error:  # a compiled network may refuse to be watched: then its output has to tell
        log.debug("the precision is that of the output (%s)", error)
    return max(seen, key=lambda dtype: torch.finfo(dtype).eps)


def _is_random(model: nn.Module, images: Tensor, logits: Tensor) -> bool:
    second = model(images).float()
    # A GPU's sums come in another order.
    return not torch.equal(logits, second) and not torch.allclose(logits, second, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))


def _moved_by_others(model: nn.Module, images: Tensor, logits: Tensor, name: str, dtype: torch.dtype) -> float:
    """How far the company of other images moves an image's logits, as a share of their spread; 0 if that is rounding.

    Seen in reversed order, in halves, four of them alone, and beside images that none of them is: what causes it does not matter.
    """
    everything, half = torch.arange(len(images), device=images.device), (len(images) + 1) // 2
    companies = [(images[chosen], chosen) for chosen in (everything.flip(0), everything[:half], everything[half:], *everything[:4].split(1))]
    companies.append((torch.cat([images[:half], 1 - images[:half]]), everything[:half]))
    spread = (logits.amax(1) - logits.amin(1)).mean().clamp_min(1e-30)
    furthest = 0.0
    for company, chosen in companies:
        if not len(chosen):
            continue
        try:
            found = model(company).float()
            if found.shape != (len(company), logits.shape[1]):
                raise ValueError(f"gives {tuple(found.shape)}")
            difference = (found[: len(chosen)] - logits[chosen]).abs().max().item()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a user's network may fail in any way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"{name} answers {len(images)} images at once and fails on {len(company)} ({reason}): make each answer independent of other images"
            ) from error
        furthest = max(furthest, torch.inf if difference != difference else difference)
    rounding = 16 * float(_gap(logits.abs().amax(), dtype))
    allowed = (_SAME if torch.finfo(dtype).eps < 1e-6 else _SAME_IN_HALF) * float(spread) + rounding
    return furthest / float(spread) if furthest > allowed else 0.0


def _gap(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance to the next larger number of ``dtype``."""
    return torch.exp2(torch.frexp(numbers.clamp_min(1e-30)).exponent.float() - 1) * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _steps(model: nn.Module, images: Tensor, logits: Tensor, dtype: torch.dtype) -> tuple[float, float, float]:
    """Spacing, ties and still of an :class:`Inspection`."""
    spread = logits.amax(1) - logits.amin(1)
    spacing = (_gap(logits.abs().amax(1), dtype) / spread.clamp_min(1e-30)).median().item()
    first, second = logits.topk(2, 1).values.unbind(1)
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0)).to(images) * 2 - 1
    moved = images + signs / 255
    moved = torch.where((moved < 0) | (moved > 1), images - signs / 255, moved).clamp(0, 1)
    still = (model(moved).float() == logits).all(1)
    return min(spacing, 1.0), (first == second).float().mean().item(), still.float().mean().item()


def _said_of_steps(name: str, logits: Tensor, dtype: torch.dtype, spacing: float, ties: float, still: float) -> list[str]:
    said = []
    if spacing > COARSE:
        largest = logits.abs().amax()
        apart, spread = _gap(largest, dtype), (logits.amax(1) - logits.amin(1)).median()
        said.append(
            f"{name}'s outputs are too coarse for {_plain(dtype)}: numbers near its largest logit ({largest:.3g}) lie {apart:.3g} apart, "
            f"an image's logits only {spread:.3g}, so attacks are blind to what decides; take away what all logits share"
        )
    if ties > 0:
        said.append(
            f"{name} gives its first place to two classes alike for {ties:.0%} of the images: the one with the lower number counts as its answer"
        )
    if still > FEW:
        said.append(
            f"{name}'s logits stay the same to the last digit for {still:.0%} of the images when every pixel moves by 1/255: it answers in steps, "
            "which attacks cannot follow"
        )
    return said


def _zero_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    try:
        _, _, gradient = ascend(model, images, lambda logits: F.cross_entropy(logits.float(), labels, reduction="none"))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # the output is cut off from the input
        return 1.0
    return float((gradient == 0).flatten(1).all(1).float().mean())  # gradients that are not finite count as none
