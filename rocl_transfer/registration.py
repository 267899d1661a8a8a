"""Our architectures are there whenever timm is, and timm is not imported before it is needed: that takes 2.5 s of CPU time, torchvision included."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_TIMM, _OURS = "timm", "rocl_transfer.models.resnet_cifar"


class _AfterTimm(MetaPathFinder, Loader):
    """Lets Python import timm as ever, and registers our architectures right after."""

    wrapped: Loader

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _TIMM:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self.wrapped, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.wrapped.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = self.wrapped
        self.wrapped.exec_module(module)
        import_module(_OURS)


def register_with_timm() -> None:
    """Register now where timm is imported, else as soon as it is."""
    if _TIMM in sys.modules:
        import_module(_OURS)
    else:
        sys.meta_path.insert(0, _AfterTimm())
