"""Robust transfer learning: RoCL pre-training of timm backbones, robust probes, robustness measured honestly.

Importing this package registers its small-image ResNets with timm. What it exports is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rocl_transfer.registration import register_with_timm
from rocl_transfer.version import __version__

if TYPE_CHECKING:
    from rocl_transfer.attacks import PGD
    from rocl_transfer.errors import UserError
    from rocl_transfer.evaluation import evaluate
    from rocl_transfer.hub import load_backbone, load_classifier

__all__ = ["PGD", "UserError", "__version__", "evaluate", "load_backbone", "load_classifier"]

_HOMES = {"PGD": "attacks", "UserError": "errors", "evaluate": "evaluation", "load_backbone": "hub", "load_classifier": "hub"}

register_with_timm()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
