"""Networks: timm backbones in pixel space, small-image ResNets, projectors and linear heads."""

from rocl_transfer.models.backbone import PixelModel, add_head, create_backbone, create_classifier, drop_head, has_weights
from rocl_transfer.models.families import family
from rocl_transfer.models.folded import Folded, fold, hold_bf16
from rocl_transfer.models.projector import normalized_projector, projector
from rocl_transfer.models.steady import without_dropout
from rocl_transfer.models.trainable import TrainableOptions, merge_lora, select_trainable
from rocl_transfer.models.two_sets import TwoSets

__all__ = [
    "Folded", "PixelModel", "TrainableOptions", "TwoSets", "add_head", "create_backbone", "create_classifier", "drop_head", "family", "fold",
    "has_weights", "hold_bf16", "merge_lora", "normalized_projector", "projector", "select_trainable", "without_dropout",
]  # fmt: skip
