"""Linear heads on a frozen backbone: LE on cached features, r-LE on adversarial images (RoCL section 4.1)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocl_transfer.attacks import PGD, AttackOptions, against_labels
from rocl_transfer.data import Batch, generators
from rocl_transfer.models import Folded, PixelModel
from rocl_transfer.objectives.objective import Objective


class Probe(Objective):
    """The head of a classifier is trained, and nothing else: its backbone stays as it is, bit for bit.

    Args:
        classifier: A backbone with a linear head.
    """

    def __init__(self, classifier: PixelModel) -> None:
        super().__init__(classifier)
        self.head = classifier.head.requires_grad_(True)

    @property
    def exported(self) -> PixelModel:
        """The classifier."""
        (classifier,) = self.frozen
        assert isinstance(classifier, PixelModel)
        return classifier

    def measured(self, features: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy and accuracy of the head on features (N, D)."""
        assert labels is not None
        logits = self.head(features)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits.float(), labels), "accuracy": accuracy.detach()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Checkpoints of 0.1.0 hold the whole classifier.
        head = next(name for name, module in self.exported.named_modules() if module is self.head)
        for key in [key for key in state_dict if key.startswith(f"{prefix}classifier.")]:
            tensor, place = state_dict.pop(key), key.removeprefix(f"{prefix}classifier.")
            if place.startswith(f"{head}."):
                state_dict[f"{prefix}head{place.removeprefix(head)}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LinearProbe(Probe):
    """LE: the head sees features that were computed once. Over 150 epochs of a frozen encoder on un-augmented images, nothing else would change."""

    title = "a linear head on a frozen backbone, trained on clean images (LE)"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy; ``batch.inputs`` are features."""
        return self.measured(batch.inputs, batch.labels)


class RobustProbe(Probe):
    """r-LE: the head minimises the cross-entropy of adversarial images made through the frozen encoder, down to the pixels.

    Args:
        classifier: Only its head is trained.
        attack: On the classifier as it stands at each step.
    """

    title = "a linear head on a frozen backbone, trained on adversarial examples made through the backbone (r-LE)"

    def __init__(self, classifier: PixelModel, attack: AttackOptions | PGD) -> None:
        super().__init__(classifier)
        self.attack, self.attacked, self.progress = attack, Folded(classifier), 1.0

    def begin_step(self, step: int, total: int) -> None:
        """The steps of the attack grow where they are to."""
        self.progress = step / total

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the adversarial images; ``batch.inputs`` are uint8 images."""
        assert batch.labels is not None
        images = batch.inputs.float() / 255
        draws = generators(batch.seeds, "attack", images.device)
        ascent = self.attack.ascent if isinstance(self.attack, PGD) else self.attack.ascent(progress=self.progress)
        adversarial = against_labels(ascent, self.attacked.current(images), images, batch.labels, draws)
        with torch.no_grad():
            features = self.exported.features(adversarial)
        return self.measured(features, batch.labels)
