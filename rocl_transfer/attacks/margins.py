"""What an attack pushes down or up: margins and losses of logits, one per sample."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.options import require


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,): by how much the true class leads the best other one; negative where the answer is wrong."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return logits.gather(1, labels[:, None]).squeeze(1) - others


def rivals(logits: Tensor, labels: Tensor, rank: Tensor, most: int) -> Tensor:
    """(N,): the wrong class that comes ``rank``-th (0: the likeliest) in each sample's logits; ranks are below ``most``.

    Raises:
        UserError: There are fewer wrong classes than ``most``.
    """
    wrong = logits.shape[1] - 1
    require(most <= wrong, f"{most} targets are more than the model's {wrong} wrong classes: give targets={wrong} or fewer")
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    return order.gather(1, rank[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(N,): the target's lead over the true class, relative to the logits' spread (difference of logits ratio, Croce & Hein 2020, eq. 7).

    The spread takes four classes. Where there are fewer, the lead stands as it is: relative to first minus third it would be constant, and its
    gradient zero, wherever the true class is first and the target third.
    """
    lead = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    if logits.shape[1] < 4:
        return lead
    top = logits.topk(4, dim=1).values
    return lead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
