"""The model card: rendered from the results record and the configuration, so that no number on it was typed."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.evaluation.privacy import places, revealed, scrub, shorten
from rocl_transfer.objectives import PRETRAINING, AdversarialTraining, LinearProbe, RobustProbe
from rocl_transfer.options import spelled
from rocl_transfer.templates import template

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD, RESULTS = "README.md", "results.json"
_FIGURES = {
    "training.png": "Training",
    "robustness.png": "Accuracy over epsilon",
    "adversarial.png": "Clean images, perturbations (scaled to the full range) and adversarial images",
}


def render_card(folder: str | Path) -> Path:
    """Write ``README.md`` of a run folder; see :func:`card_text`."""
    path = Path(folder) / CARD
    path.write_text(card_text(folder), encoding="utf-8")
    return path


def add_to_card(run: Path, record: Path) -> bool:
    """Put an evaluation's record into the run it was made of, and render the run's card again.

    It takes the place of those that asked the same (data, split, ball) and say no more in anything: AutoAttack, number of samples, full report.
    Others stay beside it. Nothing is done, and False given, where the record is of other weights, or one that is there says as much and more.

    Args:
        run: A run folder with ``results.json`` and a card.
        record: The evaluation's ``results.json``.
    """
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    found: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    kept = [known for known in later_evaluations(results) if not _covers(found, known)]
    if results["model"].get("sha256") != found["model"].get("sha256") or any(_covers(known, found) for known in kept):
        return False
    parts = ("dataset", "evaluations", "doubts", "report", "environment", "date", "seed")
    results["robustness"] = [*kept, {name: found[name] for name in parts if name in found}]
    (run / ".results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (run / ".results.json").replace(run / "results.json")
    render_card(run)
    return True


def later_evaluations(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What ``recipes/evaluate.py`` found of a run, from its record; records from before there could be several have one."""
    found = results.get("robustness") or []
    return [found] if isinstance(found, Mapping) else list(found)


def _covers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether an evaluation asked what another did, and says as much in everything."""
    return _question(one) == _question(other) and all(a >= b for a, b in zip(_strength(one), _strength(other), strict=True))


def _question(part: Mapping[str, Any]) -> tuple[object, ...]:
    data = part["dataset"]
    ball = next(((entry["norm"], entry["epsilon"]) for entry in part["evaluations"] if "epsilon" in entry), None)
    return shorten(data["name"]), data.get("revision"), data.get("split"), ball


def _strength(part: Mapping[str, Any]) -> tuple[int, ...]:
    whole = any(entry["name"] == "autoattack" for entry in part["evaluations"])
    return whole, part["dataset"]["n"], "masking" in part.get("report", {})


def card_text(
    folder: str | Path, *, license: str | None = None, place: str | None = None, texts: Mapping[str, bytes] | None = None
) -> str:  # fmt: skip
    """The card of a run folder, from its ``results.json``, ``config.yaml``, ``config.json`` and the names of its figures.

    Of local paths in the configuration it shows the last part.

    Args:
        folder: The run folder.
        license: License of the weights, by the Hub's identifier (default: as ``config.json`` has it).
        place: What loads the model once it is on the Hub: ``hf-hub:USER/NAME``, with ``@BRANCH`` where it is not on main.
        texts: What stands for files of the folder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder)
    read = {name: (texts or {}).get(name) or (folder / name).read_bytes() for name in (RESULTS, "config.json", "config.yaml")}
    record = read[RESULTS]
    results: dict[str, Any] = json.loads(record)
    model: dict[str, Any] = json.loads(read["config.json"])
    options = public_options(read["config.yaml"].decode())
    license = license or model["pretrained_cfg"].get("license")
    later = later_evaluations(results)
    backbone = str((results["model"].get("backbone") or {}).get("name") or "")
    data = ModelCardData(
        library_name="timm",
        license=license or "unknown",
        base_model=backbone.removeprefix("hf-hub:").partition("@")[0] if backbone.startswith("hf-hub:") else None,
        tags=["image-classification" if model["num_classes"] else "image-feature-extraction", "adversarial-robustness", "rocl", "timm"],
        datasets=[results["dataset"]["name"]] if on_hub(results["dataset"]) else None,
        metrics=["accuracy"],
        model_name=results["model"]["name"],
        eval_results=[_metadata(part, entry) for part in (results, *later) for entry in part["evaluations"]] or None,
    )
    figures = {name: title for name, title in _FIGURES.items() if (folder / "figures" / name).is_file()}
    card = ModelCard.from_template(
        data, template_path=str(template("template.md")), results=results, later=later, model=model, options=options, figures=figures,
        measured_on=results["dataset"]["name"] if on_hub(results["dataset"]) or results["dataset"]["name"] == "digits" else "DATA",
        record=hashlib.sha256(record).hexdigest(), license=license, place=place, title=_title(results), percent=lambda share: f"{100 * share:.2f}",
        radius=spelled,
    )  # fmt: skip
    return str(card)


def public_options(text: str) -> str:
    """A ``config.yaml`` with the last part alone of every local path, and without comments; the text as it is where it names none."""
    options = yaml.safe_load(text)
    local = places(options)
    return yaml.safe_dump(scrub(options, local), sort_keys=False, allow_unicode=True, width=10_000) if local or revealed(text) else text


def _title(results: dict[str, Any]) -> str:
    """How the model was made; records of 0.1.0 do not say it in words, and that of an evaluation alone does not know it: empty."""
    if title := results["model"].get("title"):
        return str(title)
    config = results.get("config") or {}
    if "objective" in config:
        return PRETRAINING[config["objective"]["method"]].title
    if "method" in config:
        return AdversarialTraining.Options(method=config["method"], attack=AttackOptions(**config["attack"])).title
    if "robust" in config:
        return (RobustProbe if config["robust"] else LinearProbe).title
    return ""


def on_hub(dataset: Mapping[str, Any]) -> bool:
    """Whether the data is the Hub's, whose commit is recorded; a folder may be called as a repository is."""
    return dataset.get("revision") is not None


def _metadata(results: Mapping[str, Any], entry: Mapping[str, Any]) -> "EvalResult":
    from huggingface_hub import EvalResult

    dataset = results["dataset"]
    conditions = {key: value for key, value in entry.items() if key not in ("accuracy", "seconds", "passes")}
    return EvalResult(
        task_type="image-classification",
        # The Hub takes this for one of its datasets.
        dataset_type=dataset["name"] if on_hub(dataset) else re.sub(r"[^\w.-]+", "-", Path(dataset["name"]).name) or "data",
        dataset_name=dataset["name"],
        dataset_split=dataset["split"],
        dataset_revision=dataset.get("revision"),
        metric_type="accuracy",
        metric_name=f"accuracy ({entry['name']})" + (f", {entry['norm']} {entry['epsilon']:.6g}" if "epsilon" in entry else ""),
        metric_value=entry["accuracy"],
        metric_args=conditions,
    )
