"""AIR's regulariser (Xu et al. 2023): two views are to stand alike to the un-augmented images of their group, before and after the attack."""

import torch
from torch import Tensor


def invariance(original: Tensor, clean: Tensor, adversarial: Tensor, temperature: float, groups: int = 1) -> Tensor:
    """The standard and the adversarial term, as the paper writes them: KL divergences, with p and q over the images of a group.

    A view's p is the softmax over images of its cosine with its own un-augmented image; of an adversarial view it is that, times the softmax of its
    cosine with the view that it was made from. AIR's code feeds p where the KL takes log p: it computes sum q (log q - p), which is another function
    (-6.24 where all cosines of 512 images are equal, and the KL is 0). This is the paper's, and none of its tables was made with it.

    Args:
        original: (N, D), unit vectors of the un-augmented images.
        clean: (2, N, D), of their two views.
        adversarial: (2, N, D), of these perturbed; a view that was not perturbed stands for itself.
        temperature: Cosines are divided by it.
        groups: Equal parts of the N images, each with a softmax of its own.

    Returns:
        A scalar, in float32 or better: the mean over groups of both divergences of the second view from the first.
    """

    def log_p(found: Tensor, target: Tensor) -> Tensor:
        cosine = (found * target).sum(-1)
        return (cosine.view(groups, -1) / temperature).log_softmax(-1)

    standard = [log_p(view, original) for view in clean]
    attacked = [log_p(view, original) + log_p(view, before) for view, before in zip(adversarial, clean, strict=True)]
    terms = [(q.exp() * (q - p)).sum() for p, q in (standard, attacked)]
    return torch.stack(terms).sum() / groups
