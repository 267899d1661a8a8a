"""A second set of BatchNorm statistics and affine parameters (Xie et al. 2020), for images of another distribution than the first set's."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TwoSets(nn.Module):
    """The other set of some networks: a copy of each BatchNorm, which stands in the network's place for it inside :meth:`chosen`.

    The networks stay as they are, ordinary ones with a set of their own: there is nothing to fold away before they are exported. Without BatchNorm
    both sets are one.

    Args:
        networks: Not made a part of this module.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = networks  # in a tuple torch does not take them for submodules
        # By name, because the modules may be exchanged: BatchNorm over several GPUs is another class.
        self.places: list[tuple[nn.Module, str, str, int]] = []
        norms: list[nn.Module] = []
        known: dict[int, int] = {}
        for network in networks:
            for path, module in list(network.named_modules(remove_duplicate=False)):
                if isinstance(module, _BatchNorm) and path:
                    if id(module) not in known:
                        known[id(module)] = len(norms)
                        norms.append(copy.deepcopy(module))
                    parent, _, name = path.rpartition(".")
                    self.places.append((network, parent, name, known[id(module)]))
        self.norms = nn.ModuleList(norms)

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Inside, the networks use this set, in the mode that their own one has."""
        before = []
        try:
            for network, path, name, number in self.places:
                parent, norm = network.get_submodule(path), self.norms[number]
                own = parent.get_submodule(name)
                norm.train(own.training)
                before.append((parent, name, own))
                setattr(parent, name, norm)
            yield
        finally:
            for parent, name, own in before:
                setattr(parent, name, own)
