"""The parts that recipes' configurations are made of.

A part checks itself as soon as it is built, so a wrong or ineffective option ends a recipe before any data, model or device is touched.
"""

from dataclasses import dataclass

from rocl_transfer.options import require, require_sha256


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
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


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Which classifier.

    Args:
        name: A run folder that holds a classifier, ``hf-hub:USER/NAME`` or ``local-dir:FOLDER``.
        sha256: SHA-256 that an exported model's weights file must have; any other file is refused.
    """

    name: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        require(bool(self.name), "--model.name is empty: give a run folder or hf-hub:USER/NAME")
