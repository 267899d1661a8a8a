"""Robust transfer learning: RoCL pre-training of timm backbones, robust probes, robustness measured honestly.

Importing this package registers its small-image ResNets with timm.
"""

from rocl_transfer.attacks import PGD
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import evaluate
from rocl_transfer.hub import load_backbone, load_classifier
from rocl_transfer.version import __version__

__all__ = ["PGD", "UserError", "__version__", "evaluate", "load_backbone", "load_classifier"]
