"""The model card: rendered from the results record and the configuration, so that no number on it was typed."""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

_FIGURES = {
    "training.png": "Training",
    "robustness.png": "Accuracy over epsilon",
    "adversarial.png": "Clean images, perturbations (scaled to the full range) and adversarial images",
}


def render_card(folder: str | Path, template: str | Path) -> Path:
    """Write ``README.md`` of a run folder from its ``results.json``, ``config.yaml``, ``config.json`` and the names of its figures.

    Args:
        folder: The run folder.
        template: A Jinja template of a card.
    """
    folder = Path(folder)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    model: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    options = (folder / "config.yaml").read_text(encoding="utf-8")
    data = ModelCardData(
        library_name="timm",
        tags=["image-classification" if model["num_classes"] else "image-feature-extraction", "adversarial-robustness", "rocl", "timm"],
        datasets=[results["dataset"]["name"]] if _on_hub(results["dataset"]["name"]) else None,
        metrics=["accuracy"],
        model_name=results["model"]["name"],
        eval_results=[_metadata(part, entry) for part in (results, results.get("robustness")) if part for entry in part["evaluations"]] or None,
    )
    figures = {name: title for name, title in _FIGURES.items() if (folder / "figures" / name).is_file()}
    card = ModelCard.from_template(
        data, template_path=str(template), results=results, model=model, options=options, config=yaml.safe_load(options), figures=figures,
        percent=lambda share: f"{100 * share:.2f}",
    )  # fmt: skip
    path = folder / "README.md"
    path.write_text(str(card), encoding="utf-8")
    return path


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()


def _metadata(results: dict[str, Any], entry: dict[str, Any]) -> EvalResult:
    dataset = results["dataset"]
    conditions = {key: value for key, value in entry.items() if key not in ("accuracy", "seconds")}
    return EvalResult(
        task_type="image-classification",
        dataset_type=dataset["name"],
        dataset_name=dataset["name"],
        dataset_split=dataset["split"],
        dataset_revision=dataset.get("revision"),
        metric_type="accuracy",
        metric_name=f"accuracy ({entry['name']})" + (f", {entry['norm']} {entry['epsilon']:.6g}" if "epsilon" in entry else ""),
        metric_value=entry["accuracy"],
        metric_args=conditions,
    )
