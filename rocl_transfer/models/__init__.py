"""Networks: timm backbones in pixel space, small-image ResNets, projector and linear heads."""

from rocl_transfer.models import resnet_cifar  # registers the architectures with timm
from rocl_transfer.models.backbone import PixelModel, add_head, create_backbone, has_weights
from rocl_transfer.models.projector import projector

__all__ = ["PixelModel", "add_head", "create_backbone", "has_weights", "projector", "resnet_cifar"]
