"""Adversarial weight perturbation (Wu, Xia, Wang 2020): the gradient is taken where the weights themselves were moved against the loss."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

Predict = Callable[[Tensor], Tensor]


def perturbed(model: nn.Module, loss: Callable[[Predict], Tensor], gamma: float) -> Predict:
    """``model`` with each trained weight matrix or kernel w moved by ``gamma * |w|`` along the gradient of ``loss``.

    The perturbation is a constant to autograd and stands only in the returned function, so the gradient of a loss computed through it lands on the
    true weights, at the perturbed point; nothing has to be put back. BatchNorm's running statistics are not touched by the extra pass.

    Args:
        model: Images -> logits.
        loss: What is raised, given a function that predicts.
        gamma: Length of the perturbation as a share of each tensor's norm; 0.005 in the paper.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.enable_grad():
        value = loss(lambda images: functional_call(model, buffers, (images,)))
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    moved: dict[str, Tensor] = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is not None:
            if dist.is_available() and dist.is_initialized():  # one direction for all processes: that of the whole batch
                dist.all_reduce(gradient)
            length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            moved[name] = weight + gamma * weight.detach().norm() / length * gradient
    return lambda images: functional_call(model, moved, (images,))
