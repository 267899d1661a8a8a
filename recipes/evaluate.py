"""Measure a classifier's robustness so that it can be believed: AutoAttack for any number of classes, with a full report around it if wanted.

    python recipes/evaluate.py --model.name runs/ft --data.name DATA --attacks standard --report full --output_dir runs/eval

Ours, a timm model, a model on the Hub, or your own network (--model.callable module:function). A killed run can be resumed. Leaves
config.yaml, results.json, verdicts.jsonl (one line per sample), report.html; and writes the results to the card of the run that was evaluated.
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import untouched
from rocl_transfer.config import command_line, note_radius
from rocl_transfer.data import Augmentation, ImageData, ImageOptions, Store, labels_of, load_images, match_labels, store_splits, stratified_sample
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import (
    Context,
    Ensemble,
    SearchOptions,
    Smoothing,
    assemble,
    borderline,
    choose_pictures,
    evaluate,
    inspect_model,
    measure_corruptions,
    measure_smoothed,
    named_attacks,
    render_page,
    report_attacks,
    say_report,
)  # fmt: skip
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.evaluation.evaluate import LOOKED_AT
from rocl_transfer.evaluation.samples import evenly, pixels_of
from rocl_transfer.hub import NamedModel, add_to_card, code_digest, import_model, load_classifier, look_up, require_no_run, weights_digest
from rocl_transfer.options import Number, dotted, require, require_sha256, require_untouched, was_given, write_options
from rocl_transfer.training import finish, start
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

    @property
    def identity(self) -> dict[str, Any]:
        """What findings on them belong to."""
        which = {"name": self.data.name, "revision": self.facts["revision"], "split": self.facts["split"]}
        labels = self.labels[self.chosen.to(self.labels.device)].tolist()
        return {"data": which, "image size": self.data.image_size, "labels": labels, "version": __version__}


@dataclass(frozen=True, kw_only=True)
class EvaluatedModelConfig:
    """Which classifier.

    Args:
        name: A run folder that holds a classifier, ``hf-hub:USER/NAME``, ``local-dir:FOLDER``, or a timm name with published weights.
        callable: Your own: ``module:function`` is called without arguments and returns a torch module from images in [0, 1] to logits.
        sha256: SHA-256 that an exported model's weights file must have; any other file is refused.
    """

    name: str | None = None
    callable: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        given = (self.name is not None) + (self.callable is not None)
        require(given == 1, "give either --model.name (a run folder, hf-hub:USER/NAME or a timm name) or --model.callable module:function")
        if self.callable is not None:
            module, _, function = self.callable.partition(":")
            require(bool(module and function), f"--model.callable is {self.callable}: write module:function, such as mine:build")
            require_untouched(self, ("sha256",), "with --model.callable", "model.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(SearchOptions):
    """Robustness that can be believed: AutoAttack for any number of classes, and with --report full everything around it.

    Args:
        model: Which classifier.
        data: Which images and labels.
        output_dir: Folder for results.json, verdicts.jsonl, the page, and what an interrupted evaluation resumes from.
        attacks: standard (AutoAttack), fast (its APGD-CE and APGD-T), paper (RoCL's PGD-20) or strong-pgd (PGD-50, ten restarts).
        norm: Norm of the ball: linf, l2 or l1.
        epsilon: Radius of the ball in [0, 1] pixel units, a number or a fraction.
        report: none, or full: unseen balls, accuracy over epsilon and per class, corruptions, transfer, smoothing, gradient masking.
        surrogates: With --report full, other classifiers of the same classes; adversarial images made against them are tried on this one.
        split: test, validation, or all (every image of data without a test split, of which some would otherwise be held out).
        samples: Evaluate this many images, drawn by --seed in proportion to the classes (default: all).
        update_card: Write the results on the card of the run that --model.name names, where that is a folder.
        resume: auto (resume what the folder holds) or none.
        log_with: One of Accelerate's trackers, such as tensorboard; it gets the options and every accuracy.
        seed: Seed of everything random.
    """

    model: EvaluatedModelConfig
    data: ImageOptions
    output_dir: str
    attacks: Literal["standard", "fast", "paper", "strong-pgd"] = "standard"
    norm: Literal["linf", "l2", "l1"] = "linf"
    epsilon: Number = Number(8 / 255)
    report: Literal["none", "full"] = "none"
    surrogates: tuple[str, ...] = field(default_factory=tuple)
    split: Literal["test", "validation", "all"] = "test"
    samples: int | None = None
    update_card: bool = True
    resume: Literal["auto", "none"] = "auto"
    log_with: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.output_dir), "--output_dir is empty: name a folder, such as runs/eval")
        require(self.epsilon > 0, f"--epsilon is {self.epsilon}: give a radius above 0, such as 8/255")
        require(self.norm != "linf" or self.epsilon <= 1, f"--epsilon is {self.epsilon}: pixels are in [0, 1], so write 8/255 rather than 8")
        given = self.norm == "linf" or was_given(self.epsilon, EvaluateConfig.epsilon)
        require(
            given, f"the default --epsilon is meant for linf: give a radius with {self.norm}, such as {'0.5' if self.norm == 'l2' else '12'} at 32 px"
        )
        require(self.samples is None or self.samples > 0, f"--samples is {self.samples}: give 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")
        if self.report == "full":
            whole = self.engine == "native" and self.attacks in ("standard", "fast")
            require(whole, "--report full is built around --attacks standard or fast with the native engine: choose one of them")
        else:
            require_untouched(self, ("surrogates",), "without --report full")
        require(self.engine == "native" or self.attacks == "standard", f"--engine reference has no attacks {self.attacks}: give standard")
        if self.model.callable is not None:
            require_untouched(self, ("update_card",), "with --model.callable, which has no card")


def main(config: EvaluateConfig) -> Path:
    folder = Path(config.output_dir)
    require_no_run(folder)
    accelerator = start(folder, config.seed, config.log_with, dotted(dataclasses.asdict(config)))
    asked = None if config.model.name is None else look_up(config.model.name, sha256=config.model.sha256)
    model, name, sha = open_model(config, asked)
    surrogates = open_surrogates(config, model, accelerator.device)
    samples = open_samples(config, model, accelerator.device)
    model = untouched(model.to(accelerator.device), config.one_at_a_time)
    seen = inspect(model, samples, surrogates)
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
    code = code_digest(model.model, config.model.callable)
    identity = {"model": sha, "code": code, **samples.identity}
    context = Context(journal=journal / "attacks", identity=identity, state=accelerator.state, seen=seen, progress=True, say_doubts=False)
    results = evaluate(
        model, samples.store, samples.labels, attacks=attacks, samples=samples.chosen, seed=config.seed, search=config, context=context
    )  # fmt: skip
    if accelerator.is_main_process:  # only now: the journal refuses a folder that holds another evaluation
        write_options(config, folder / "config.yaml")
    accelerator.log(results.accuracies())
    report: dict[str, Any] = {"warnings": [*samples.notes, *seen.warnings], "borderline": borderline(results), "refuted": results.refuted}
    if isinstance(headline, Ensemble) and config.report == "full":
        report |= assemble(results, headline, size, samples.facts["class_names"], seen, surrogates)
        report |= beyond(config, model, samples, headline, dataclasses.replace(context, journal=journal / "smoothed"))
    if accelerator.is_main_process:
        written = {"name": name, "sha256": sha, "code_sha256": code}
        record = results.write(folder, model=written, dataset=samples.facts, training={}, config=dataclasses.asdict(config), report=report)
        if (pictures := choose_pictures(samples.store, results)) is not None:
            pictures.write(folder / "pictures.safetensors")
        page = render_page(folder)
        results.say()
        say_report(report)
        log.info("results: %s, page: %s", record, page)
        if config.update_card and asked is not None:
            note_on_card(asked, record)
    finish(accelerator)
    accelerator.wait_for_everyone()
    return folder


def inspect(model: nn.Module, samples: Samples, surrogates: Mapping[str, tuple[nn.Module, str]]) -> Inspection:
    """What is seen of the model on a few images; what is wrong with it, with the data or a surrogate is logged."""
    few = evenly(samples.chosen, LOOKED_AT)
    sight = pixels_of(next(iter(samples.store.batches([few])))), samples.labels[few.to(samples.labels.device)]
    seen = inspect_model(model, *sight)
    for other, (surrogate, _) in surrogates.items():
        log.info("surrogate %s: %s", other, "; ".join(inspect_model(surrogate, *sight, f"the surrogate {other}").warnings) or "nothing strange")
    for warning in (*samples.notes, *seen.warnings):
        log.info("note: %s", warning)
    return seen


def open_samples(config: EvaluateConfig, model: nn.Module, device: torch.device) -> Samples:
    """The split, its labels by the model's classes, and which of its images are measured."""
    size = config.data.image_size or getattr(model, "input_size", None)
    data = load_images(config.data, image_size=size, known_range=getattr(model, "value_range", None), train_needed=False)
    if config.split == "all":
        data = data.whole()
    if config.split == "validation" and data.validation is None:
        raise UserError(f"{data.name} has no validation images: give --data.validation_fraction, or --split test")
    if config.split == "test" and not len(data.test):
        raise UserError(f"{data.name} has no test images: give --split validation, or name the split with --data.test_split")
    split: Literal["validation", "test"] = "validation" if config.split == "validation" else "test"
    for line in data.notes:
        log.info("data: %s", line)
    data, stores = store_splits(data, (split,), device, config.data)
    held = data.validation if split == "validation" else None
    images, words = (data.test, str(data.test_split)) if held is None else (held, "validation")
    truth = labels_of(images)
    labels, note = match_labels(truth, data.class_names, getattr(model, "class_names", ()))
    chosen = stratified_sample(truth, config.samples, config.seed)
    # Labels are the model's numbers now, so names go by them as well.
    names = getattr(model, "class_names", ()) if set(data.class_names) <= set(getattr(model, "class_names", ())) else data.class_names
    facts = {**data.facts(images, words), "n": len(chosen), "class_names": list(names)}
    return Samples(stores[split], labels.to(device), chosen, data, facts, (note,) if note else ())


def open_model(config: EvaluateConfig, asked: NamedModel | None) -> tuple[nn.Module, str, str]:
    """The classifier, its name, and the SHA-256 of its weights (of their file, if there is one)."""
    if asked is None:
        reference = str(config.model.callable)
        model = import_model(reference)
        return model, reference, weights_digest(model)
    model = load_classifier(asked)
    if asked.exported is None:
        return model, asked.name, weights_digest(model)
    record = asked.exported.folder / "results.json"
    known = json.loads(record.read_text(encoding="utf-8"))["model"]["name"] if record.is_file() else Path(asked.name).name
    return model, known, asked.exported.sha256


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


def beyond(config: EvaluateConfig, model: nn.Module, samples: Samples, headline: Ensemble, context: Context) -> dict[str, Any]:
    """Corruptions and smoothed inference."""
    assert context.state is not None
    log.info("common corruptions")
    size = samples.data.image_size
    at_once = config.batch_size or images_at_once((size, size), context.state.device)
    found = measure_corruptions(model, samples.store, samples.labels, samples.chosen, config.seed, at_once, context.state)
    mean = sum(sum(row) for row in found.values()) / sum(len(row) for row in found.values())
    log.info("smoothed inference")
    words = "RoCL's views: colour jitter, grey, mirror, crops of half the image or more"
    smoothing = Smoothing(view=VIEW.alike, words=words, seed=config.seed)
    search = SearchOptions(batch_size=config.batch_size)
    smoothed = measure_smoothed(model, smoothing, samples.store, samples.labels, samples.chosen, headline, search=search, context=context)
    return {"corruptions": found, "corruptions_mean": mean, "smoothed": smoothed}


def note_on_card(model: NamedModel, record: Path) -> None:
    """Where the model is a run folder of ours, its card says what was found."""
    if model.exported is None or model.name.startswith("hf-hub:"):
        return
    run = model.exported.folder
    if not (run / "results.json").is_file() or not (run / "config.yaml").is_file():
        return
    if add_to_card(run, record):
        log.info("the card of %s says so: %s", model.name, run / "README.md")
    else:
        log.info("the card of %s stays as it is: it has a stronger evaluation, or is of other weights", model.name)


if __name__ == "__main__":
    command_line(main, EvaluateConfig)
