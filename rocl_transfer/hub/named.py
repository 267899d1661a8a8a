"""A model that was asked for by name, looked up once: what a recipe, the loading and the provenance ask about it is asked here."""

from dataclasses import dataclass, replace
from typing import Any

from rocl_transfer.hub.exported import ExportedModel, find
from rocl_transfer.hub.options import ModelOptions
from rocl_transfer.models import has_weights


@dataclass(frozen=True)
class NamedModel:
    """A model that was asked for by name, looked up: whatever is asked about it is asked here.

    Attributes:
        options: How it was asked for.
        exported: What the name stands for; None for a timm name.
    """

    options: ModelOptions
    exported: ExportedModel | None

    @property
    def name(self) -> str:
        """As it was given."""
        return self.options.name

    @property
    def native_size(self) -> int | None:
        """Side in pixels of the images that an exported model was made for; None for a timm name."""
        return None if self.exported is None else self.exported.input_size

    @property
    def is_trained(self) -> bool:
        """Whether it brings trained weights: an exported model does, a timm name where it has any and they are not refused."""
        import timm

        if self.exported is not None:
            return True
        return timm.is_model(self.name) and has_weights(self.name) if self.options.pretrained is None else self.options.pretrained

    @property
    def made_on(self) -> dict[str, Any]:
        """See :class:`ExportedModel`; nothing is known of a timm name."""
        return {} if self.exported is None else self.exported.made_on

    @property
    def identity(self) -> dict[str, str | None]:
        """Which weights it means: the name as it was given, and the SHA-256 of an exported model's file."""
        return {"name": self.name, "sha256": None if self.exported is None else self.exported.sha256}

    def untrained_unless_asked(self) -> "NamedModel":
        """The same, but of a timm name the published weights are only taken where ``pretrained`` is true."""
        if self.exported is not None or self.options.pretrained is not None:
            return self
        return replace(self, options=replace(self.options, pretrained=False))


def look_up(model: str | ModelOptions | NamedModel, **more: Any) -> NamedModel:
    """A model with what its name stands for; one that was looked up already is not looked up again.

    Args:
        model: Which, or its name; see :func:`find`.
        more: What else :class:`ModelOptions` takes, such as ``sha256`` or ``pretrained``.

    Raises:
        UserError: See :func:`find`.
    """
    if isinstance(model, NamedModel):
        return replace(model, options=replace(model.options, **more))
    options = replace(model, **more) if isinstance(model, ModelOptions) else ModelOptions(name=model, **more)
    return NamedModel(options, find(options.name))
