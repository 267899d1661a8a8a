"""Fine-tune a backbone on labelled images so that the classifier resists an adversary, and measure it.

    python recipes/finetune.py --model.name runs/pre --data.name DATA --method trades --output_dir runs/ft

The new head is trained first, then everything; training that dies goes back to its last good checkpoint, or ends in a sentence and status 2. Leaves a
run folder: config.yaml, metrics.jsonl, checkpoints/, head/ (the head's own training), model.safetensors + config.json (the best epoch by validation,
timm layout), last/ (the last epoch, where it is another), results.json, verdicts.jsonl, README.md, figures/.

With --pseudo_labels the images need no labels: clusters of the backbone's features stand for classes, and the backbone alone leaves (DynACL++'s
second stage).
"""

import copy
import dataclasses
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from rocl_transfer.config import command_line, sized
from rocl_transfer.data import Batches, ImageData, ImageOptions, Store, labels_of, store_splits
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import AdaptationPGDOptions, ClassifierMonitor, Results, choose_watched, compute_features, kmeans, nearest
from rocl_transfer.hub import (
    Making,
    ModelOptions,
    NamedModel,
    complete_classifier,
    complete_run,
    continued_from,
    export_best,
    load_projector,
    load_start,
    look_up,
    made_from,
    open_images_for,
    stood_for,
)
from rocl_transfer.models import PixelModel, TrainableOptions, family
from rocl_transfer.objectives import AdversarialTraining
from rocl_transfer.options import Number, require, require_untouched, require_warmup, spelled
from rocl_transfer.training import AdaptationOptimizerOptions, Guard, HeadFirst, Run, RunOptions, Trained, poor_radius

log = logging.getLogger("rocl_transfer")

# What a family of networks is trained with by default: optimiser, peak rate, decay, and factor on the rate for each layer farther from the
# head. So far the families differ in the last alone.
# The rates are the middle of benchmarks/collapse_grid.py (see RESULTS.md), whose small networks train at five times as much too; larger ones may not.
HEAD_EPOCHS = 3  # of a new head on adversarial images, if the backbone proves robust
FAMILIES: dict[str, dict[str, Any]] = {
    "batchnorm": {"name": "adamw", "lr": Number(1e-3), "weight_decay": Number(0.05), "layer_decay": Number(1)},
    "plain": {"name": "adamw", "lr": Number(1e-3), "weight_decay": Number(0.05), "layer_decay": Number(0.9)},
    "attention": {"name": "adamw", "lr": Number(1e-3), "weight_decay": Number(0.05), "layer_decay": Number(0.85)},
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOptions, AdversarialTraining.Options, TrainableOptions):
    """Adversarial fine-tuning of any backbone on any labelled images. The defaults are a preset for 8/255 at 32 px.

    Args:
        data: Which images and labels.
        model: Which backbone or classifier; a head is kept where its classes are the data's.
        head_epochs: Before everything trains, train the head alone: 20 epochs on clean features and, if the backbone proves robust, this many
            on adversarial images; 0 for neither (default: 3 for a new head on a trained backbone, else 0).
        pseudo_labels: Train without labels: on so many clusters of the backbone's clean features, found by k-means, in place of classes. The backbone
            alone is exported, and nothing is measured of it.
        monitor_images: Validation images that every validation looks at: a stratified sample, the same each time (default: 1,000, or as many as
            the guard's verdicts need with hundreds of classes).
        optimizer: How it is trained.
        evaluation: How the classifier is measured.
    """

    data: ImageOptions
    model: ModelOptions
    head_epochs: int | None = None
    pseudo_labels: int | None = None
    optimizer: AdaptationOptimizerOptions = field(default_factory=AdaptationOptimizerOptions)
    evaluation: AdaptationPGDOptions = field(default_factory=AdaptationPGDOptions)
    epochs: int = 30
    batch_size: int = 128
    monitor_every: int = 1
    monitor_images: int | None = None

    def __post_init__(self) -> None:
        for part in (RunOptions, AdversarialTraining.Options, TrainableOptions):
            part.__post_init__(self)
        require(self.monitor_images is None or self.monitor_images > 0, f"--monitor_images is {self.monitor_images}: give 1 or more")
        require(self.head_epochs is None or self.head_epochs >= 0, f"--head_epochs is {self.head_epochs}: give 0 or more")
        if self.train in ("head", "lora"):
            require_untouched(self, ("batchnorm",), f"with --train {self.train}, which leaves BatchNorm as it came")
        require(self.train != "head" or not self.ss_weight, "--ss_weight has no effect with --train head, which leaves the features as they are")
        if self.pseudo_labels is not None:
            require(self.pseudo_labels >= 2, f"--pseudo_labels is {self.pseudo_labels}: give 2 or more clusters")
            require(self.train != "head", "--train head leaves the backbone as it is, which alone --pseudo_labels exports: leave one of them out")
            require_untouched(self, ("evaluation",), "with --pseudo_labels, which leaves nothing to measure")
        if self.method == "standard":
            # Resolved configurations have these where nobody gave any: the default's, that of runs from before, the preset's for photographs.
            steps, lengths = (AdversarialTraining.Options.attack.steps, 3), ("auto", None, self.attack.epsilon / 2)
            idle = self.attack.steps in steps and self.attack.step_size in lengths
            require(idle, "--attack.steps and --attack.step_size have no effect with --method standard: leave them out")
        self.evaluation.against(self.attack)
        require_warmup(self.optimizer.warmup_epochs, self.epochs)

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunOptions`; the images of one process share the seed of their attack."""
        return {**super().identity(processes), "batch_size": self.batch_size}


def main(config: FinetuneConfig) -> Path:
    with Run(config) as run:
        model = look_up(config.model)
        data = open_data(config, model)
        run.note(data.notes)
        config = sized(config, data.image_size)
        classifier, kept = load_classifier(config, model, data)
        config = resolved(config, classifier, model.is_trained)
        run.check(config, stood_for(data, model=model))
        unlabelled = config.pseudo_labels is not None
        splits: list[Literal["train", "validation", "test"]] = ["train", "validation"] if unlabelled else ["train", "validation", "test"]
        data, stores = store_splits(data, splits, run.device, config.data, labels_needed=not unlabelled)
        run.begin()
        classifier.to(run.device)
        if unlabelled:
            data = clustered(config, run, classifier, data, stores)

        def batches(images: Store) -> Batches:
            sampler = run.sampler(len(data.train), max(2, config.part_size // 4))
            return Batches(images, data.train.labels, sampler, data.train.where)

        monitor = watch(config, classifier, data, stores)
        head = head_first(config, model, kept, data)
        start = head(run, classifier, stores["train"], compute_features, batches, monitor)
        objective = build(config, run, model, classifier, data, start["robust"])
        monitor.classifier = lambda: objective.exported
        optimizer, schedule = config.optimizer.create(objective, classifier.net), config.optimizer.over(config.epochs)
        trained = run.train(
            objective, batches(stores["train"]), optimizer, schedule, monitor=monitor, guard=guard(config, objective, data, monitor, head.watched),
            clip_grad=config.optimizer.clip_grad or None,
        )  # fmt: skip
        if run.is_main:
            facts = {**facts_of(config, model, objective, data), "trained_part": config.train, "start": start}
            say_radius(config, data, trained, monitor)
            if data.validation is None:
                trained = dataclasses.replace(trained, best=None, last=None, lost=None)
            export_best(run, objective, trained, facts, head=not unlabelled)
            making = Making(config, f"{config.method}_{data.short_name}", facts, trained)
            if unlabelled:
                nothing = Results([], [], run.device.type, config.seed)
                complete_run(run.folder, objective.exported, nothing, making, dataset=data.facts(data.train, "train"))
            else:
                attacks, at_once = config.evaluation.against(config.attack).attacks(), config.evaluation.batch_size
                complete_classifier(run.folder, objective.exported, data, stores["test"], attacks, making, batch_size=at_once)
    log.info("%s, results and card: %s", "backbone" if config.pseudo_labels else "classifier", run.folder)
    return run.folder


def open_data(config: FinetuneConfig, model: NamedModel) -> ImageData:
    """The images; without labels, where clusters are to stand for them."""
    if config.pseudo_labels is None:
        return open_images_for(model, config.data)
    if not model.is_trained:
        raise UserError(f"{config.model.name} has random weights, whose clusters mean nothing: give a trained backbone, or leave out --pseudo_labels")
    data = open_images_for(model, config.data, labels_needed=False)
    validation = None if data.validation is None else dataclasses.replace(data.validation, labels=None)
    names = tuple(f"cluster {number}" for number in range(config.pseudo_labels))
    return dataclasses.replace(data, class_names=names, train=dataclasses.replace(data.train, labels=None), validation=validation)


def clustered(config: FinetuneConfig, run: Run, classifier: PixelModel, data: ImageData, stores: dict[str, Store]) -> ImageData:
    """``data`` with clusters of the clean features for labels: found by one process, and kept for a run that is resumed."""
    record = run.folder / "head" / "pseudo_labels.safetensors"
    if run.is_main and not (run.check() and record.is_file()):
        assert config.pseudo_labels is not None
        features = {split: compute_features(classifier, store).cpu() for split, store in stores.items()}
        centres = kmeans(features["train"], config.pseudo_labels, config.seed)
        found = {split: nearest(part, centres)[0] for split, part in features.items()}
        sizes = torch.bincount(found["train"], minlength=config.pseudo_labels).tolist()
        log.info("k-means: %d clusters of %d to %d training images stand for classes", len(sizes), min(sizes), max(sizes))
        record.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, record)
    run.accelerator.wait_for_everyone()
    labels = load_file(record)
    validation = None if data.validation is None else dataclasses.replace(data.validation, labels=labels["validation"])
    return dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels["train"]), validation=validation)


def facts_of(config: FinetuneConfig, model: NamedModel, objective: AdversarialTraining, data: ImageData) -> dict[str, Any]:
    """How the model was made: by labels, or from clusters that stood for them."""
    facts = objective.facts()
    if config.pseudo_labels is None:
        return {**facts, **made_from(model, data)}
    how = facts["title"].replace("fine-tuned", "pre-trained without labels")
    title = f"{how}, on {config.pseudo_labels} clusters of the features that it had in place of classes (DynACL++'s second stage)"
    return {**facts, "title": title, "pseudo_labels": config.pseudo_labels, **continued_from(model, data, True)}


def load_classifier(config: FinetuneConfig, model: NamedModel, data: ImageData) -> tuple[PixelModel, bool]:
    """The classifier to begin with, and whether its head is its own; refused here if it cannot be trained as asked."""
    classifier, kept = load_start(model, data.class_names, data.image_size)
    kind = "its own head is kept" if kept else "a new linear head is trained"
    log.info("%s: %s for the %d classes %s", config.model.name, kind, len(data.class_names), ", ".join(data.class_names[:10]))
    if config.batchnorm == "frozen" and family(classifier.net) != "batchnorm":
        raise UserError(f"{config.model.name} has no BatchNorm whose statistics could be frozen: leave out --batchnorm frozen")
    config.select(copy.deepcopy(classifier))
    return classifier, kept


def resolved(config: FinetuneConfig, classifier: PixelModel, trained: bool) -> FinetuneConfig:
    """With the optimiser that the network's family is trained with."""
    kind = family(classifier.net)
    own = config.optimizer.resolved(FAMILIES[kind], config.epochs, trained)
    log.info("%s, learning rate %g, weight decay %g, layer decay %g", own.name, own.lr, own.weight_decay, own.layer_decay)
    return dataclasses.replace(config, optimizer=own)


def watch(config: FinetuneConfig, classifier: PixelModel, data: ImageData, stores: dict[str, Store]) -> ClassifierMonitor:
    """Validates on a sample of the validation images; if there are none, of the training images."""
    split, positions = choose_watched(data, config.monitor_images, config.seed)
    labels = labels_of(data.train if split == "train" else data.validation)
    attack = None if config.method == "standard" else config.attack.measuring().pgd()
    return ClassifierMonitor(lambda: classifier, stores[split], labels, attack, config.seed, positions)


def head_first(config: FinetuneConfig, model: NamedModel, kept: bool, data: ImageData) -> HeadFirst:
    """A new head on a trained backbone is trained first."""
    new = not kept and model.is_trained
    epochs = (HEAD_EPOCHS if new else 0) if config.head_epochs is None else config.head_epochs
    watched = "validation" if data.validation is not None else "training"
    return HeadFirst(epochs, kept, watched, len(data.class_names), None if config.method == "standard" else config.attack)


def build(
    config: FinetuneConfig, run: Run, model: NamedModel, classifier: PixelModel, data: ImageData, robust_start: bool
) -> AdversarialTraining:  # fmt: skip
    run.seed_again()
    config.select(classifier)
    projector = None
    if config.ss_weight:
        projector, kept = load_projector(model, classifier.num_features)
        log.info("the self-supervised loss begins with %s projector", "pre-training's" if kept else "a new")
    counts = torch.bincount(labels_of(data.train), minlength=len(data.class_names))
    objective = AdversarialTraining(classifier, config, counts=counts, projector=projector, robust_start=robust_start)
    if objective.attack is not None and objective.ramp[1]:
        log.info("epsilon is 0 for the first %.0f %% of the training and whole after %.0f %%", *(100 * share for share in objective.ramp))
    return objective.to(run.device)


def say_radius(config: FinetuneConfig, data: ImageData, trained: Trained, monitor: ClassifierMonitor) -> None:
    """Say where the last epoch shows that the radius of the attack was chosen badly."""
    if config.method != "standard" and trained.epochs == config.epochs and trained.last is not None:
        seen, classes = trained.last, len(data.class_names)
        clean, robust = seen["validation_recall"], seen["validation_robust_recall"]
        poor = poor_radius(f"--attack.epsilon {spelled(config.attack.epsilon)}", clean, robust, 1 / classes, monitor.worth, "the answers")
        if poor:
            log.warning("%s", poor)


def guard(config: FinetuneConfig, objective: AdversarialTraining, data: ImageData, monitor: ClassifierMonitor, watched: str) -> Guard:
    """Judges what the monitor sees once warm-up and ramp are over."""
    warmup, ramp = config.optimizer.warmup_epochs or 0, 0 if objective.attack is None else objective.ramp[1]
    quiet = int(max(warmup, config.epochs * max(1 / 4, ramp)))
    grace, whole = min(quiet + 1, config.epochs), math.ceil(config.epochs * ramp) + 1
    return Guard(len(data.class_names), len(monitor.labels), objective.attack is not None, watched, grace, whole, monitor.worth)


if __name__ == "__main__":
    command_line(main, FinetuneConfig)
