"""Losses that train a classifier against an adversary, one term per image, from logits (N, K) and labels (N,).

Each is written with log-probabilities: a probability that reaches 0 in float32 gives an infinite or undefined term otherwise (TRADES' own code
turns NaN that way with recent versions of torch).
"""

import torch.nn.functional as F
from torch import Tensor


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p(clean) || p(adversarial)) of each image, (N,); gradients flow through both."""
    target = clean.log_softmax(1)
    return F.kl_div(adversarial.log_softmax(1), target, reduction="none", log_target=True).sum(1)


def trades(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """TRADES (Zhang et al. 2019), (N,): cross-entropy of the clean image, plus ``beta`` times how far the adversary moves the answer."""
    own = F.cross_entropy(clean, labels, reduction="none", label_smoothing=label_smoothing)
    return own + beta * divergence(clean, adversarial)


def mart(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """MART (Wang et al. 2020), (N,): a boosted cross-entropy of the adversarial image, plus the divergence where the clean one is misread.

    ``-log p_y - log(1 - max of the others)`` on the adversarial image, ``beta * KL(clean || adversarial) * (1 - p_y(clean))``; the authors' code
    keeps the second logarithm finite by 1.0001 in place of 1, and so does this.
    """
    p = adversarial.softmax(1)
    others = p.masked_fill(F.one_hot(labels, p.shape[1]).bool(), 0).amax(1)
    own = F.cross_entropy(adversarial, labels, reduction="none", label_smoothing=label_smoothing)
    doubt = 1 - clean.softmax(1).gather(1, labels[:, None])[:, 0]
    return own - (1.0001 - others).log() + beta * divergence(clean, adversarial) * doubt


def class_weights(counts: Tensor, overlap: float = 0.999) -> Tensor:
    """Weights (K,) for unbalanced classes: one over the effective number of images (Cui et al. 2019), of mean 1 over the training images.

    Args:
        counts: Training images of each class, (K,).
        overlap: Their beta: 0 weighs all classes alike, near 1 by the inverse of their counts.
    """
    effective = (1 - overlap ** counts.double()) / (1 - overlap)
    weights = 1 / effective
    return (weights * (counts.sum() / (weights * counts).sum())).float()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers, without gradient."""
    return (logits.detach().argmax(1) == labels).float().mean()
