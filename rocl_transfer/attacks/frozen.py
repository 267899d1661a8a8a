"""The state in which every attack sees a network."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; each module's mode and each parameter's flag as they were afterwards, however it is left.

    Without the frozen parameters autograd keeps every activation for weight gradients that nobody takes. The official code leaves its
    network in eval mode after an attack, and so fine-tunes with frozen BatchNorm.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for part, _ in modes:
            part.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
