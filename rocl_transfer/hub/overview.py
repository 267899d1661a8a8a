"""Many models on one page: their numbers in a table that can be sorted, and accuracy over epsilon, rendered from the records of their runs."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from rocl_transfer.errors import UserError, one_line
from rocl_transfer.evaluation.privacy import shorten
from rocl_transfer.hub.card import _title, later_evaluations
from rocl_transfer.options import spelled
from rocl_transfer.templates import template

COLUMNS = ("model", "data", "measured", "norm", "epsilon", "accuracy %", "95 % interval", "n", "passes", "seconds")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 44, 12, 10, 40  # of a plot and its margins, px
_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number: an accuracy, and what it was measured with.

    Attributes:
        data: Data set and split.
        name: The evaluation's name.
        norm: Norm of the ball; empty for clean images.
        epsilon: Radius; 0 for clean images.
        accuracy: In [0, 1].
        interval: 95 %; None if it was not recorded.
        n: Images.
        passes: Passes forward and back per sample that were recorded; None if they were not.
        seconds: That it took.
    """

    data: str
    name: str
    norm: str
    epsilon: float
    accuracy: float
    interval: tuple[float, float] | None
    n: int | None
    passes: float | None
    seconds: float | None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it; without the model."""
        low_high = "" if self.interval is None else " - ".join(f"{100 * end:.2f}" for end in self.interval)
        numbers = ("" if self.n is None else str(self.n), "" if self.passes is None else f"{self.passes:g}")
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        radius = spelled(self.epsilon) if self.epsilon else ""
        return self.data, self.name, self.norm, radius, f"{100 * self.accuracy:.2f}", low_high, *numbers, seconds


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and all that was measured of it.

    Attributes:
        name: By which it is called; no other has the same.
        folder: Its run folder.
        how: How it was made; empty where its record does not say.
        sha256: SHA-256 of its weights.
        training: What its training took, in words.
        doubts: Why its accuracies do not mean what they seem to.
        warnings: What is wrong with the model itself.
        numbers: Clean first; of several of one kind that on the most images, the later of equals.
    """

    name: str
    folder: Path
    how: str
    sha256: str
    training: str
    doubts: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: tuple[Measured, ...]

    def card(self, page: Path) -> str | None:
        """Where its card is, from ``page``; None if there is none."""
        card = self.folder / "README.md"
        return Path(os.path.relpath(card.resolve(), page.resolve().parent)).as_posix() if card.is_file() else None


def read_models(folders: Sequence[str | Path]) -> list[Model]:
    """What ``results.json`` in each of ``folders`` says.

    Raises:
        UserError: There is no such folder or record, it is damaged, or nothing was measured.
    """
    paths = [Path(folder) for folder in folders]
    records = [_record(path) for path in paths]
    models = []
    for folder, record, name in zip(paths, records, _names(records, paths), strict=True):
        numbers: dict[tuple[str, str, str, float], Measured] = {}
        for one in _measured(record):
            kind = (one.data, one.name, one.norm, one.epsilon)
            if kind not in numbers or (one.n or 0) >= (numbers[kind].n or 0):
                numbers[kind] = one
        if not numbers:
            raise UserError(f"{folder / 'results.json'} has no accuracy: name the run folders of evaluated models")
        doubts, warnings = _said(record)
        models.append(
            Model(
                name=name, folder=folder, how=_title(record), sha256=str(record["model"].get("sha256") or ""),
                training=_training(record.get("training") or {}), doubts=doubts, warnings=warnings, numbers=tuple(numbers.values()),
            )
        )  # fmt: skip
    return models


def _names(records: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[str]:
    """What each model is called: where several have one name, with as much of the folder's path as tells them apart."""
    paths = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1), None):
        raise UserError(f"{twice} is named twice: name each run once")
    plain = [str(record["model"]["name"]) for record in records]
    names, depth = plain, 0
    while len(set(names)) < len(names):
        depth += 1
        longer = [f"{name} ({one_line('/'.join(path.parts[-depth:]))})" for name, path in zip(plain, paths, strict=True)]
        names = [other if names.count(name) > 1 else name for name, other in zip(names, longer, strict=True)]
    return names


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: check the path")
    if not path.is_file():
        raise UserError(f"{folder} has no results.json: name the run folder of an evaluated model")
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        whole = isinstance(record["model"]["name"], str) and isinstance(record["dataset"]["name"], str) and isinstance(_title(record), str)
        list(_measured(record)), _said(record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} cannot be read as the record of an evaluation: evaluate the run again")
    return record


def _parts(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was measured when the model was made, and what was later."""
    return [record, *later_evaluations(record)]


def _said(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Doubts, and warnings of the model, each once."""
    doubts = dict.fromkeys(str(doubt) for part in _parts(record) for doubt in part.get("doubts") or ())
    warnings = dict.fromkeys(str(warning) for part in _parts(record) for warning in (part.get("report") or {}).get("warnings") or ())
    return tuple(doubts), tuple(warnings)


def _measured(record: Mapping[str, Any]) -> Iterator[Measured]:
    """The training recipe's numbers, then those of later evaluations."""
    for part in _parts(record):
        dataset = part.get("dataset") or {}
        data = ", ".join(shorten(str(dataset[key])) if key == "name" else str(dataset[key]) for key in ("name", "split") if dataset.get(key))
        for one in part.get("evaluations") or []:
            if _is_number(one.get("accuracy")):
                low_high = one.get("interval")
                passes, seconds = (one[key] if _is_number(one.get(key)) else None for key in ("passes", "seconds"))
                yield Measured(
                    data=data, name=one["name"] + (f" ({one['version']})" if one.get("version") else ""), norm=str(one.get("norm") or ""),
                    epsilon=float(one.get("epsilon") or 0), accuracy=float(one["accuracy"]),
                    interval=(float(low_high[0]), float(low_high[1])) if low_high else None, n=one.get("n"), passes=passes, seconds=seconds,
                )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _training(training: Mapping[str, Any]) -> str:
    if not _is_number(training.get("seconds")):
        return ""
    where = f"{training.get('processes', 1)} x {training.get('device', 'unknown device')}"
    return f"{training['epochs']} epochs in {training['seconds'] / 60:.1f} minutes on {where}"


def render_overview(models: Sequence[Model], page: Path) -> str:
    """The page, one HTML file that needs nothing beside it but the cards it links to.

    Args:
        models: See :func:`read_models`.
        page: Where it will stand; links start from there.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [{"model": model, "card": model.card(page), "colour": number % 10, "dash": number // 10 % 3} for number, model in enumerate(models)]
    source = template("models.html").read_text(encoding="utf-8")
    frame = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _WIDTH - _RIGHT, "top": _TOP, "bottom": _HEIGHT - _BOTTOM}
    return environment.from_string(source).render(columns=COLUMNS, models=shown, plots=list(_plots(models)), frame=frame)


def markdown_overview(models: Sequence[Model], page: Path) -> str:
    """The same numbers as a Markdown table.

    Args:
        models: See :func:`read_models`.
        page: Where it will stand.
    """
    rule = ["---" if column in COLUMNS[:4] else "---:" for column in COLUMNS]
    rows = [COLUMNS, rule]
    for model in models:
        card = model.card(page)
        name = f"[{model.name}]({card.replace(' ', '%20')})" if card else model.name
        rows += [(name, *one.cells()) for one in model.numbers]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    said = [(model, "is doubtful", doubt) for model in models for doubt in model.doubts]
    said += [(model, "comes with a note", warning) for model in models for warning in model.warnings]
    return "\n".join([*lines, *([""] if said else []), *(f"- {model.name} {what}: {sentence}" for model, what, sentence in said)]) + "\n"


def _plots(models: Sequence[Model]) -> Iterator[dict[str, Any]]:
    """Accuracy over epsilon, a plot for each data set and norm: at each radius the lowest accuracy that any attack left."""
    kinds = dict.fromkeys((one.data, one.norm) for model in models for one in model.numbers if one.norm and one.epsilon)
    for data, norm in kinds:
        curves = [(number, _curve(model, data, norm)) for number, model in enumerate(models)]
        curves = [(number, points) for number, points in curves if len(points) > 1]
        farthest = max((point.epsilon for _, points in curves for point in points), default=0.0)
        if not farthest:
            continue

        def place(one: Measured, farthest: float = farthest) -> tuple[float, float]:
            x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * one.epsilon / farthest
            return round(x, 1), round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - one.accuracy), 1)

        radii = sorted({point.epsilon for _, points in curves for point in points})
        chosen = radii if len(radii) <= _TICKS else [farthest * number / (_TICKS - 1) for number in range(_TICKS)]
        yield {
            "data": data, "norm": norm,
            "ticks": [(round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * radius / farthest, 1), spelled(radius)) for radius in chosen],
            "levels": [(round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share / 100), 1), share) for share in (0, 25, 50, 75, 100)],
            "curves": [
                {
                    "colour": number % 10, "dash": number // 10 % 3, "name": models[number].name,
                    "line": " ".join(f"{x},{y}" for x, y in map(place, points)),
                    "points": [(*place(one), f"{one.name}, {one.norm} {one.cells()[3]}: {one.cells()[4]} %".replace("  ", " ")) for one in points],
                }
                for number, points in curves
            ],
        }  # fmt: skip


def _curve(model: Model, data: str, norm: str) -> list[Measured]:
    lowest: dict[float, Measured] = {}
    for one in model.numbers:
        at_zero = one.name == "clean" and not one.epsilon
        if (
            one.data == data
            and (at_zero or (one.norm == norm and one.epsilon))
            and (one.epsilon not in lowest or one.accuracy < lowest[one.epsilon].accuracy)
        ):
            lowest[one.epsilon] = one
    return [lowest[epsilon] for epsilon in sorted(lowest)]
