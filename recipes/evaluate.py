"""Measure a classifier's robustness so that it can be believed: AutoAttack for any number of classes, with a full report around it if wanted.

    python recipes/evaluate.py --model.name runs/ft --data.name DATA --attacks standard --report full --output_dir runs/eval

Ours, a timm model, a model on the Hub, or your own network (--model.callable module:function). A killed run goes on where it was. Leaves
config.yaml, results.json, verdicts.jsonl (a line a sample), report.html; and the results on the card of the run that was evaluated.
"""

import dataclasses
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rocl_transfer.attacks import untouched
from rocl_transfer.config import EvaluateConfig, command_line, note_radius
from rocl_transfer.data import Augmentation, ImageData, Store, labels_of, load_images, store_splits, stratified_sample
from rocl_transfer.errors import UserError, path_of
from rocl_transfer.evaluation import (
    Ensemble,
    Results,
    assemble,
    borderline,
    choose_pictures,
    evaluate,
    inspect_model,
    measure_corruptions,
    measure_smoothed,
    named_attacks,
    report_attacks,
)  # fmt: skip
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.evaluation.engine import pixels_of
from rocl_transfer.hub import add_to_card, code_digest, find_model, import_model, load_classifier, match_labels, render_page, weights_digest
from rocl_transfer.options import write_options
from rocl_transfer.training import finish, sha256, start
from rocl_transfer.version import __version__

log = logging.getLogger("rocl_transfer")
VIEW = Augmentation(crop_area=(0.5, 1.0))  # RoCL's transformations, its crops no smaller than half the image


@dataclass(frozen=True)
class Samples:
    """What the model is measured on."""

    store: Store
    labels: Tensor  # of all images, as the model counts its classes
    chosen: Tensor  # positions of the samples
    data: ImageData
    facts: dict[str, Any]
    notes: tuple[str, ...]


def main(config: EvaluateConfig) -> Path:
    folder = Path(config.output_dir)
    accelerator = start(folder, config.seed, config.log_with)
    model, name, sha = open_model(config)
    surrogates = open_surrogates(config, model, accelerator.device)
    samples = open_samples(config, model, accelerator.device)
    model = untouched(model.to(accelerator.device), config.one_at_a_time)
    few = samples.chosen[torch.linspace(0, len(samples.chosen) - 1, min(64, len(samples.chosen))).long()]
    sight = pixels_of(next(iter(samples.store.stream([few])))), samples.labels[few.to(accelerator.device)]
    seen = inspect_model(model, *sight)
    for other, (surrogate, _) in surrogates.items():
        log.info("surrogate %s: %s", other, "; ".join(inspect_model(surrogate, *sight, f"the surrogate {other}").warnings) or "nothing strange")
    warnings = [*samples.notes, *seen.warnings]
    for warning in warnings:
        log.info("note: %s", warning)
    log.info("%s: %d %s images of %s, %d classes", name, len(samples.chosen), config.split, samples.data.name, seen.classes)

    attacks = named_attacks(config.attacks, config.epsilon, config.norm, seen.classes, config.engine)
    headline, size = attacks[0], samples.data.image_size
    note_radius(config, size)
    if isinstance(headline, Ensemble) and config.report == "full":
        attacks = report_attacks(headline, size, seen.classes, surrogates)
    journal = folder / "journal"
    if config.resume == "none" and accelerator.is_main_process:
        shutil.rmtree(journal, ignore_errors=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_options(config, folder / "config.yaml")
    code = code_digest(model.model, config.model.callable)
    which = {"name": samples.data.name, "revision": samples.facts["revision"], "split": samples.facts["split"]}
    identity = {"model": sha, "code": code, "data": which, "image size": size,
                "labels": samples.labels[samples.chosen.to(accelerator.device)].tolist(), "version": __version__}  # fmt: skip
    results = evaluate(
        model, samples.store, samples.labels, attacks=attacks, samples=samples.chosen, batch_size=config.batch_size, seed=config.seed,
        engine=config.engine, compiled=config.compile, search_precision=config.search_precision, journal=journal / "attacks", identity=identity,
        state=accelerator.state, progress=True, say_doubts=False, seen=seen,
        one_at_a_time=config.one_at_a_time,
    )  # fmt: skip
    report: dict[str, Any] = {"warnings": warnings, "borderline": borderline(results), "refuted": results.refuted}
    if isinstance(headline, Ensemble) and config.report == "full":
        report |= assemble(results, headline, size, samples.facts["class_names"], seen, surrogates)
        report |= beyond(config, accelerator, model, samples, headline, seen, journal / "smoothed", identity)
    if accelerator.is_main_process:
        what = {
            "model": {"name": name, "sha256": sha, "code_sha256": code},
            "dataset": samples.facts,
            "training": {},
            "config": dataclasses.asdict(config),
        }
        record = results.write(folder, **what, report=report)
        if (pictures := choose_pictures(samples.store, results)) is not None:
            pictures.write(folder / "pictures.safetensors")
        page = render_page(folder)
        say(results, report)
        log.info("results: %s, page: %s", record, page)
        if config.update_card and config.model.name is not None:
            note_on_card(config.model.name, record)
    finish(accelerator)
    accelerator.wait_for_everyone()
    return folder


def open_samples(config: EvaluateConfig, model: nn.Module, device: torch.device) -> Samples:
    """The split, its labels by the model's classes, and which of its images are measured."""
    size = config.data.image_size or getattr(model, "input_size", None)
    values = config.data.value_range or getattr(model, "value_range", None)
    data = load_images(**{**config.data.selection, "image_size": size, "value_range": values}, train_needed=False)
    if config.split == "all":
        data = data.whole()
    if config.split == "validation" and data.validation is None:
        raise UserError(f"{data.name} has no validation images: give --data.validation_fraction, or --split test")
    if config.split == "test" and not len(data.test):
        raise UserError(f"{data.name} has no test images: give --split validation, or name the split with --data.test_split")
    split: Literal["validation", "test"] = "validation" if config.split == "validation" else "test"
    for line in data.notes:
        log.info("data: %s", line)
    data, stores = store_splits(data, (split,), device, **config.data.storage)
    held = data.validation if split == "validation" else None
    images, words = (data.test, str(data.test_split)) if held is None else (held, "validation")
    truth = labels_of(images)
    labels, note = match_labels(truth, data.class_names, getattr(model, "class_names", ()))
    chosen = stratified_sample(truth, config.samples, config.seed)
    # Labels are the model's numbers now, so names go by them as well.
    names = getattr(model, "class_names", ()) if set(data.class_names) <= set(getattr(model, "class_names", ())) else data.class_names
    facts = {**data.facts(images, words), "n": len(chosen), "class_names": list(names)}
    return Samples(stores[split], labels.to(device), chosen, data, facts, (note,) if note else ())


def open_model(config: EvaluateConfig) -> tuple[nn.Module, str, str]:
    """The classifier, its name, and the SHA-256 of its weights (of their file, where there is one)."""
    if config.model.callable is not None:
        model = import_model(config.model.callable)
        return model, config.model.callable, weights_digest(model)
    name = str(config.model.name)
    found = find_model(name)
    model = load_classifier(name, config.model.sha256)
    if found is None:
        return model, name, weights_digest(model)
    record = found / "results.json"
    known = json.loads(record.read_text(encoding="utf-8"))["model"]["name"] if record.is_file() else Path(name).name
    return model, known, sha256(found / "model.safetensors")


def open_surrogates(config: EvaluateConfig, model: nn.Module, device: torch.device) -> dict[str, tuple[nn.Module, str]]:
    """Other classifiers, which must count the same classes in the same order."""
    opened: dict[str, tuple[nn.Module, str]] = {}
    for name in config.surrogates:
        other = load_classifier(name).to(device)
        if other.class_names != tuple(getattr(model, "class_names", other.class_names)):
            raise UserError(f"the surrogate {name} has other classes than the model, or in another order: leave it out")
        if Path(name).name in opened:
            raise UserError(f"two surrogates are called {Path(name).name}: rename a folder, results go by its name")
        opened[Path(name).name] = (other, weights_digest(other))
    return opened


def beyond(
    config: EvaluateConfig, accelerator: Accelerator, model: nn.Module, samples: Samples, headline: Ensemble, seen: Inspection, journal: Path,
    identity: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Corruptions and smoothed inference."""
    log.info("common corruptions")
    size, device = samples.data.image_size, accelerator.device
    at_once = config.batch_size or images_at_once((size, size), device)
    found = measure_corruptions(model, samples.store, samples.labels, samples.chosen, config.seed, at_once, accelerator.state)
    mean = sum(sum(row) for row in found.values()) / sum(len(row) for row in found.values())
    log.info("smoothed inference")
    words = "RoCL's views: colour jitter, grey, mirror, crops of half the image or more"
    smoothed = measure_smoothed(
        model, VIEW.alike, words, samples.store, samples.labels, samples.chosen, headline, seen=seen, seed=config.seed, batch_size=config.batch_size,
        journal=journal, identity=identity, state=accelerator.state,
    )  # fmt: skip
    return {"corruptions": found, "corruptions_mean": mean, "smoothed": smoothed}


def say(results: Results, report: dict[str, Any]) -> None:
    results.say()
    unsure = report["borderline"]
    log.info("samples whose verdict may hang on rounding (margin below %g of the spread of logits): %d", unsure["tolerance"], unsure["count"])
    if "masking" in report:
        log.info("gradient masking: %s", report["masking"]["verdict"])
        for check in report["masking"]["checks"]:
            log.info("  %s %s: %s", {True: "ok  ", False: "FAIL", None: "open"}[check["passed"]], check["name"], check["detail"])
        smoothed = report["smoothed"]
        log.info("smoothed inference: %.1f %% clean, %.1f %% under the ordinary attack, %.1f %% under EoT", *(
            100 * smoothed[name]["accuracy"] for name in ("clean", "ordinary", "eot")))  # fmt: skip


def note_on_card(name: str, record: Path) -> None:
    """Where the model is a run folder of ours, its card says what was found."""
    run = path_of(name.removeprefix("local-dir:"))
    if not (run / "results.json").is_file() or not (run / "config.yaml").is_file():
        return
    if add_to_card(run, record):
        log.info("the card of %s says so: %s", name, run / "README.md")
    else:
        log.info("the card of %s stays as it is: it has a stronger evaluation, or is of other weights", name)


if __name__ == "__main__":
    command_line(main, EvaluateConfig)
