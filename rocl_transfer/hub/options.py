"""Which network is meant, as the command line and Python say it."""

from dataclasses import dataclass

from rocl_transfer.options import require, require_sha256


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network.

    Args:
        name: A timm name (ours: resnet8_cifar, 18, 34, 50 and, thinner, 20, 32, 44, 56, 110), a run folder, ``hf-hub:USER/NAME`` or
            ``local-dir:FOLDER``.
        pretrained: For a timm name, start from its published weights (default: no in pre-training, yes in adaptation where it has any).
        sha256: SHA-256 that an exported model's weights file must have; any other file is refused.
    """

    name: str
    pretrained: bool | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.name), "--model.name is empty: give a timm name, a run folder or hf-hub:USER/NAME")
        require_sha256(self.sha256)
