"""What leaves and what comes in: export in timm's layout, loading by name, the model card."""

from rocl_transfer.hub.card import render_card
from rocl_transfer.hub.export import export
from rocl_transfer.hub.load import (
    find_model,
    is_trained,
    load_backbone,
    load_classifier,
    load_start,
    made_from,
    native_size,
    note_pretraining,
)
from rocl_transfer.hub.run_folder import complete_classifier, complete_run

__all__ = [
    "complete_classifier", "complete_run", "export", "find_model", "is_trained", "load_backbone", "load_classifier", "load_start",
    "made_from", "native_size", "note_pretraining", "render_card",
]  # fmt: skip
