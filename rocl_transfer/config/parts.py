"""The parts that recipes' configurations are made of.

A part checks itself as soon as it is built, so a wrong or ineffective option ends a recipe before any data, model or device is touched.
"""

from dataclasses import dataclass

from rocl_transfer.options import require, require_sha256


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
