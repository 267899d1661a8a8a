"""NT-Xent over any number of views (Chen et al. 2020; RoCL section 3 as the official code computes it)."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Similarities held at once. The matrix grows with the square of the global batch: beyond this many entries (64 MiB) its rows are taken in turn, and
# computed again for the gradient. The paper's batch of 512 images has a seventh of it.
_ENTRIES = 2**24


@torch.no_grad()
def recognised(anchors: Tensor, keys: Tensor, groups: int) -> Tensor:
    """Share of ``anchors`` (N, D) nearer to their own of ``keys`` (N, D) than to any other of their group; guessing gives ``groups`` / N."""
    per_group = (groups, len(anchors) // groups, -1)
    similarity = anchors.reshape(per_group) @ keys.reshape(per_group).mT
    own = torch.arange(similarity.shape[-1], device=similarity.device)
    return (similarity.argmax(-1) == own).float().mean()


def gather_keys(keys: Tensor) -> tuple[Tensor, int]:
    """The keys of all processes, without autograd.

    Args:
        keys: This process's, (V, N, D); N is the same on every process.

    Returns:
        (V, N x processes, D), and where this process's own rows start along the second axis.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return keys.detach(), 0
    parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, keys.detach().contiguous())
    return torch.cat(parts, dim=1), dist.get_rank() * keys.shape[1]


def nt_xent(anchors: Tensor, keys: Tensor, temperature: float, offset: int = 0, through_keys: bool = False) -> Tensor:
    """The contrastive loss of some anchors against all keys.

    Every other view of an anchor's image is a positive, one term each: minus the log-softmax over all keys but the anchor itself, so the
    other positives stay in the denominator. The terms' sum is divided by the number of anchors: for two views their mean, for three twice it.

    Gradients flow through the anchors alone unless ``through_keys``. With keys gathered from every process each therefore computes just its own rows,
    and the mean over processes is the gradient of one process with the whole batch.

    Args:
        anchors: (..., A, N, D), L2-normalised: the first A views of N images; leading axes are independent problems.
        keys: (..., V, M, D), L2-normalised: all V views of the M >= N images that the anchors are among.
        temperature: Similarities are divided by it.
        offset: Where the anchors' images start among the M.
        through_keys: Let the gradient flow through the keys as well: what an attack climbs that moves anchors and keys together.

    Returns:
        A scalar, summed over the leading axes, in float32.
    """
    *_, num_anchor_views, n, _ = anchors.shape
    *_, num_views, m, _ = keys.shape
    rows = anchors.float().flatten(-3, -2)
    columns = (keys if through_keys else keys.detach()).float().flatten(-3, -2)
    image = offset + torch.arange(n, device=anchors.device).repeat(num_anchor_views)
    view = torch.arange(num_anchor_views, device=anchors.device).repeat_interleave(n)
    # Row r's V columns of its own image, itself first, then the positives.
    turns = torch.arange(num_views, device=anchors.device)
    own = ((view[:, None] + turns) % num_views) * m + image[:, None]
    at_once = max(_ENTRIES // (rows[..., 0, 0].numel() * columns.shape[-2]), 1)
    parts = list(zip(rows.split(at_once, -2), own.split(at_once), strict=True))
    if len(parts) == 1:
        total = _terms(rows, columns, own, temperature)
    else:
        total = sum((checkpoint(_terms, part, columns, place, temperature, use_reentrant=False) for part, place in parts), rows.new_zeros(()))
    return total / (num_anchor_views * n)


def _terms(rows: Tensor, columns: Tensor, own: Tensor, temperature: float) -> Tensor:
    """The sum of the terms of some anchors ``rows`` (..., R, D); ``own`` (R, V) says where each one's image is among ``columns``."""
    with torch.autocast(rows.device.type, enabled=False):
        similarity = rows @ columns.transpose(-1, -2) / temperature
    own = own.expand(*similarity.shape[:-1], own.shape[-1])
    positives = similarity.gather(-1, own[..., 1:])
    denominator = similarity.scatter(-1, own[..., :1], float("-inf")).logsumexp(-1, keepdim=True)
    return (denominator - positives).sum()
