"""What kind of network it is, where training has to differ by it."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def family(net: nn.Module) -> str:
    """``batchnorm``, ``attention`` (transformers without BatchNorm), or ``plain`` (ConvNeXts and other networks without both)."""
    kinds = [type(module) for module in net.modules()]
    if any(issubclass(kind, _BatchNorm) for kind in kinds):
        return "batchnorm"
    return "attention" if any("Attention" in kind.__name__ for kind in kinds) else "plain"
