"""SimCLR (Chen et al. 2020): two views of each image attract; the control for RoCL, which adds an adversary."""

from dataclasses import dataclass

from torch import Tensor

from rocl_transfer.data import Batch, generators
from rocl_transfer.objectives.view_contrast import ContrastOptions, ViewContrast


class SimCLR(ViewContrast):
    """Contrastive pre-training without an adversary.

    Made as every :class:`~rocl_transfer.objectives.view_contrast.ViewContrast` is.
    """

    title = "pre-trained without labels by SimCLR (contrastive learning without an adversary; the control for RoCL)"

    @dataclass(frozen=True, kw_only=True)
    class Options(ContrastOptions):
        """SimCLR: contrastive learning without an adversary."""

        method: str = "simclr"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one step.

        Args:
            batch: uint8 images; the labels are not used.
        """
        self.compile_once()
        images = batch.inputs.float() / 255
        draws = generators(batch.seeds, "views")
        loss = self.contrast(self.embed(self.views(images, draws), self.views(images, draws)))
        return {"loss": loss, "main": loss.detach()}
