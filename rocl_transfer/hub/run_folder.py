"""What a run leaves behind when its training has ended: exported model, results record, figures and card, in this order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rocl_transfer.attacks import PGD
from rocl_transfer.evaluation import Results
from rocl_transfer.evaluation.figures import can_draw, draw_adversarial, draw_robustness, draw_training
from rocl_transfer.hub.card import render_card
from rocl_transfer.hub.export import export
from rocl_transfer.models import PixelModel


def complete_run(
    folder: Path,
    model: PixelModel,
    results: Results,
    *,
    tag: str,
    facts: Mapping[str, Any],
    dataset: Mapping[str, Any],
    training: Mapping[str, Any],
    config: Mapping[str, Any],
    template: Path,
    pictures: tuple[Tensor, Tensor, PGD] | None = None,
) -> None:
    """Complete a run folder that holds ``config.yaml`` and ``metrics.jsonl``.

    Args:
        folder: The run folder.
        model: What was trained.
        results: What was measured of it.
        tag: After the architecture and a dot, the model's name in the record: how it was trained, on what.
        facts: What ``config.json`` and the record's ``model`` say of the model's making.
        dataset: What was measured on.
        training: What the training cost.
        config: The resolved configuration.
        template: Of the card.
        pictures: A few images (N, 3, H, W) in [0, 1], their labels, and the attack that the card shows on them.
    """
    sha = export(model, folder, facts)
    identity = {"name": f"{model.architecture}.{tag}", "sha256": sha, **facts}
    results.write(folder, model=identity, dataset=dataset, training=training, config=config)
    if can_draw():
        figures = folder / "figures"
        figures.mkdir(exist_ok=True)
        draw_training(folder / "metrics.jsonl", figures / "training.png")
        if any(entry.epsilon for entry in results.evaluations):
            draw_robustness(results, figures / "robustness.png")
        if pictures is not None:
            draw_adversarial(model, *pictures, model.class_names, figures / "adversarial.png")
    render_card(folder, template)
