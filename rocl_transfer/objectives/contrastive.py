"""NT-Xent over any number of views (Chen et al. 2020; RoCL section 3 as the official code computes it)."""

import torch
import torch.distributed as dist
from torch import Tensor


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


def nt_xent(anchors: Tensor, keys: Tensor, temperature: float, offset: int = 0) -> Tensor:
    """The contrastive loss of some anchors against all keys.

    Every other view of an anchor's image is a positive, one term each: minus the log-softmax over all keys but the anchor itself, so the
    other positives stay in the denominator. The terms' sum is divided by the number of anchors: for two views their mean, for three twice it.

    Gradients flow through the anchors alone. With keys gathered from every process each therefore computes just its own rows, and the mean over
    processes is the gradient of one process with the whole batch.

    Args:
        anchors: (..., A, N, D), L2-normalised: the first A views of N images; leading axes are independent problems.
        keys: (..., V, M, D), L2-normalised: all V views of the M >= N images that the anchors are among.
        temperature: Similarities are divided by it.
        offset: Where the anchors' images start among the M.

    Returns:
        A scalar, summed over the leading axes, in float32.
    """
    *_, num_anchor_views, n, _ = anchors.shape
    *_, num_views, m, _ = keys.shape
    with torch.autocast(anchors.device.type, enabled=False):
        rows = anchors.float().flatten(-3, -2)
        columns = keys.detach().float().flatten(-3, -2)
        similarity = rows @ columns.transpose(-1, -2) / temperature

    image = offset + torch.arange(n, device=anchors.device).repeat(num_anchor_views)
    view = torch.arange(num_anchor_views, device=anchors.device).repeat_interleave(n)
    # Row r's V columns of its own image, itself first, then the positives.
    turns = torch.arange(num_views, device=anchors.device)
    own = ((view[:, None] + turns) % num_views) * m + image[:, None]
    own = own.expand(*similarity.shape[:-1], num_views)
    positives = similarity.gather(-1, own[..., 1:])
    denominator = similarity.scatter(-1, own[..., :1], float("-inf")).logsumexp(-1, keepdim=True)
    return (denominator - positives).sum() / (num_anchor_views * n)
