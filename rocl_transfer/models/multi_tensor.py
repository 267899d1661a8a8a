"""Many tensors in few calls: launching a kernel costs the host some microseconds, and a step has hundreds of small tensors.

Every function here gives, bit for bit, what a call for each tensor would.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers by their bytes


def put(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Each target takes the values of its source, rounded to its own type; autograd hears nothing of it."""
    alike: dict[tuple[object, ...], tuple[list[Tensor], list[Tensor]]] = {}
    # torch copies a list in one kernel only where all pairs are of the same types and laid out alike.
    for target, source in zip(targets, sources, strict=True):
        kind = (target.device, source.device, target.dtype, source.dtype, target.stride() == source.stride())
        group = alike.setdefault(kind, ([], []))
        group[0].append(target.detach())
        group[1].append(source.detach())
    for ours, theirs in alike.values():
        torch._foreach_copy_(ours, theirs)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The bits of each, as whole numbers of its shape: for :func:`choose`."""
    found: dict[int, Tensor] = {}
    for numbers in _alike(tensors):
        found |= dict(zip(numbers, torch._foreach_add([_bits(tensors[number]) for number in numbers], 0), strict=True))
    return [found[number] for number in range(len(tensors))]


def choose(condition: Tensor, tensors: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> None:
    """Where ``condition`` does not hold, each tensor becomes the other one, or zero: in place, without the host's knowing which it is.

    There is no such call for floats of which one may be NaN: 0 times NaN is NaN. Of their bits, as whole numbers, one is taken once, one not at all.

    Args:
        condition: A boolean without dimensions, on the tensors' device.
        tensors: What is kept where it holds.
        others: Tensors of the same shapes and types, or their :func:`copies`; spent afterwards. None for zeros.
    """
    for numbers in _alike(tensors):
        kept = [_bits(tensors[number]) for number in numbers]
        chosen = condition.to(kept[0].dtype)
        torch._foreach_mul_(kept, chosen)
        if others is not None:
            spent = [_bits(others[number]) for number in numbers]
            torch._foreach_mul_(spent, 1 - chosen)
            torch._foreach_add_(kept, spent)


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Positions of the tensors of each device and size of number: what one kernel can take."""
    groups: dict[tuple[object, int], list[int]] = {}
    for number, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.element_size()), []).append(number)
    return list(groups.values())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_WHOLE[tensor.element_size()])
