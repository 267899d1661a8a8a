"""An evaluation's page: one HTML file that needs nothing beside it, rendered from the record, so that no number on it was typed."""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rocl_transfer.evaluation.report.figures import can_draw, svg_broken, svg_classes, svg_curve
from rocl_transfer.evaluation.results import name_in, verdict_key
from rocl_transfer.options import spelled
from rocl_transfer.templates import template

_MOST_CLASSES = 30
_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


def render_page(folder: str | Path) -> Path:
    """Write ``report.html`` of an evaluation's folder from results.json, verdicts.jsonl and pictures.safetensors where they are there.

    Args:
        folder: The evaluation's folder; ``results.json`` has to be there.
    """
    folder = Path(folder)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    report: dict[str, Any] = results.get("report") or {}
    evaluations: list[dict[str, Any]] = results.get("evaluations") or []
    headline = _headline(evaluations, report)
    broken = _broken(folder / "verdicts.jsonl", evaluations, headline)
    worst, best = _extremes(report.get("classes") or [])
    plots = can_draw()
    page = _environment().from_string(template("report.html").read_text(encoding="utf-8"))
    text = page.render(
        results=results, report=report, evaluations=evaluations, headline=headline, broken=broken, worst=worst, best=best,
        clean=next((e for e in evaluations if e["name"] == "clean"), {}),
        other_balls=_other_balls(evaluations, headline),
        pictures=_pictures(folder, results.get("dataset", {}).get("class_names") or []),
        config=yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True) if results.get("config") else "",
        can_draw=plots, figures=_figures(report, broken, worst, best) if plots else {},
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def _environment() -> Environment:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    environment.filters.update(
        percent=lambda share: f"{100 * share:.2f}" if _is_number(share) else "not evaluated",
        radius=lambda value: spelled(value) if isinstance(value, float) else value,
        number=lambda value: f"{value:.6g}" if isinstance(value, float) else value,
        width=lambda share: f"{100 * min(max(share, 0.0), 1.0):.2f}%" if _is_number(share) else "0%",
    )
    environment.tests["measured"] = _is_number
    return environment


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _same_ball(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one.get("norm"), one.get("epsilon")) == (other.get("norm"), other.get("epsilon"))


def _headline(evaluations: Sequence[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """The evaluation whose accuracy is the robust one: the report's, else the first ensemble, else the first attack."""
    attacked = [e for e in evaluations if e.get("epsilon")]
    if named := report.get("headline"):
        return next((e for e in attacked if e["name"] == named["name"] and _same_ball(e, named)), {})
    return next((e for e in attacked if e.get("version")), attacked[0] if attacked else {})


def _broken(path: Path, evaluations: Sequence[dict[str, Any]], headline: dict[str, Any]) -> dict[str, Any] | None:
    """How many samples each part of the headline's ensemble broke first.

    Verdicts are asked for those parts alone: their ``broken_by`` may name an attack outside the ensemble.
    """
    if not headline.get("version") or not path.is_file():
        return None
    named = [e["name"] for e in evaluations if _same_ball(e, headline)]
    parts = [name for name in dict.fromkeys(named) if name in _PARTS]
    columns = {"clean": "clean", **{name: verdict_key(name, headline["norm"], headline["epsilon"]) for name in parts}}
    lines = _lines(path)
    counts = Counter(next((name for name, column in columns.items() if not line.get(column, True)), "") for line in lines)
    if not lines:
        return None
    rows = [
        ("wrong before any attack", counts["clean"]),
        *((f"broken by {name}", counts[name]) for name in parts),
        ("still standing", counts[""]),
    ]
    n = len(lines)
    return {"rows": rows, "n": n, "agrees": n == headline["n"] and abs(counts[""] / n - headline["accuracy"]) < 0.5 / n}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _extremes(classes: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Classes from the worst robust accuracy up, and apart from them the best where there are too many to show all."""
    ordered = sorted((c for c in classes if c["n"] and _is_number(c.get("robust"))), key=lambda c: (c["robust"], c.get("clean") or 0.0))
    half = _MOST_CLASSES // 2
    return (ordered[:half], ordered[-half:]) if len(ordered) > _MOST_CLASSES else (ordered, [])


def _other_balls(evaluations: Sequence[dict[str, Any]], headline: dict[str, Any]) -> list[dict[str, Any]]:
    """The ensembles in balls that do not lie inside the headline's."""
    ensembles = [e for e in evaluations if e.get("version")]
    return [e for e in ensembles if e["norm"] != headline.get("norm") or e["epsilon"] > headline["epsilon"]]


def _figures(
    report: dict[str, Any], broken: dict[str, Any] | None, worst: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]
) -> dict[str, str]:
    drawn = {}
    if broken:
        drawn["broken"] = svg_broken(broken["rows"], broken["n"])
    if report.get("curve"):
        drawn["curve"] = svg_curve(report["curve"], report.get("expected_robustness"), report.get("expected_to"), report.get("curve_attack") or "")
    if worst:
        drawn["classes"] = svg_classes([*worst, None, *best] if best else worst)
    return drawn


def _pictures(folder: Path, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """For each picture its three images as data URIs, its label, the answers, and which attack found it."""
    path = folder / "pictures.safetensors"
    if not path.is_file():
        return []
    broken_by = {line["index"]: line.get("broken_by") for line in _lines(folder / "verdicts.jsonl")}

    def name(index: Tensor) -> str:
        return class_names[int(index)] if int(index) < len(class_names) else str(int(index))

    tensors = load_file(path)
    columns = []
    rows = (tensors[key] for key in ("clean", "adversarial", "labels", "clean_answers", "adversarial_answers"))
    samples = tensors["samples"].tolist() if "samples" in tensors else [None] * len(tensors["labels"])
    for sample, clean, adversarial, label, before, after in zip(samples, *rows, strict=True):
        delta = adversarial.float() - clean.float()
        largest = float(delta.abs().max())
        scaled = delta / (2 * max(largest, 1e-12)) + 0.5
        images = {"clean": _png(clean), "perturbation": _png(scaled), "adversarial": _png(adversarial)}
        said = {"label": name(label), "before": name(before), "after": name(after), "held": bool(before == label), "fooled": bool(after != label)}
        by = name_in(str(broken_by.get(sample) or "")) if largest else ""
        columns.append({"images": images, "largest": largest, "small": clean.shape[-1] <= 96, "by": by, "sample": sample, **said})
    return columns


def _png(image: Tensor) -> str:
    pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
