"""Linear heads on a frozen backbone: LE on cached features, r-LE on adversarial images (RoCL section 4.1)."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocl_transfer.attacks import PGD
from rocl_transfer.data import Batch, generators
from rocl_transfer.models import Folded, PixelModel
from rocl_transfer.objectives.objective import Objective


def _measured(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    accuracy = (logits.argmax(1) == labels).float().mean()
    return {"loss": F.cross_entropy(logits.float(), labels), "accuracy": accuracy.detach()}


class LinearProbe(Objective):
    """LE: the head sees features that were computed once. Over 150 epochs of a frozen encoder on un-augmented images, nothing else would change.

    Args:
        head: Features (N, D) -> logits (N, K).
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy; ``batch.inputs`` are features."""
        assert batch.labels is not None
        return _measured(self.head(batch.inputs), batch.labels)


class RobustProbe(Objective):
    """r-LE: the head minimises the cross-entropy of adversarial images made through the frozen encoder, down to the pixels.

    Args:
        classifier: Only its head is trained; the encoder stays in eval mode, bit for bit as it is.
        attack: On the classifier as it stands at each step.
    """

    def __init__(self, classifier: PixelModel, attack: PGD) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False)
        self.classifier.head.requires_grad_(True)
        self.attack, self.attacked = attack, Folded(classifier)

    def train(self, mode: bool = True) -> Self:
        """Keeps the encoder, BatchNorm statistics included, in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the adversarial images; ``batch.inputs`` are uint8 images."""
        assert batch.labels is not None
        images = batch.inputs.float() / 255
        draws = generators(batch.seeds, "attack", images.device)
        adversarial = self.attack.perturb(self.attacked.current(images), images, batch.labels, draws)
        with torch.no_grad():
            features = self.classifier.features(adversarial)
        return _measured(self.classifier.head(features), batch.labels)
