"""What leaves and what comes in: export in timm's layout, loading by name, the model card."""

from rocl_transfer.hub.card import add_to_card, render_card
from rocl_transfer.hub.digests import code_digest, weights_digest
from rocl_transfer.hub.export import export
from rocl_transfer.hub.exported import ExportedModel, find
from rocl_transfer.hub.load import import_model, load_backbone, load_classifier, load_model, load_projector, load_start
from rocl_transfer.hub.named import NamedModel, look_up
from rocl_transfer.hub.options import ModelOptions
from rocl_transfer.hub.origin import continued_from, distilled_from, made_from, note_pretraining, open_images_for, open_unlabelled, stood_for
from rocl_transfer.hub.run_folder import Making, complete_classifier, complete_run, complete_twin, export_best, require_no_run

__all__ = [
    "ExportedModel", "Making", "ModelOptions", "NamedModel", "add_to_card", "code_digest", "complete_classifier", "complete_run", "complete_twin",
    "continued_from", "distilled_from", "export", "export_best", "find", "import_model", "load_backbone", "load_classifier", "load_model",
    "load_projector", "load_start", "look_up", "made_from", "note_pretraining", "open_images_for", "open_unlabelled", "render_card",
    "require_no_run", "stood_for", "weights_digest",
]  # fmt: skip
