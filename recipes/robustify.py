"""Make a network that you have robust, without labels: it is distilled into its own robust twin, and the head that stands on it keeps working.

    python recipes/robustify.py --model.name MODEL --data.name IMAGES --attack.epsilon 4/255 --output_dir runs/robust

MODEL is a run folder, a model on the Hub or a timm name; a classifier leaves as a classifier, its head as it came. Leaves a run folder: config.yaml,
metrics.jsonl, checkpoints/, model.safetensors + config.json (the best epoch, timm layout), results.json with what was measured before and after,
README.md, figures/.
"""

import copy
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rocl_transfer.config import command_line, laid_over, with_earlier_defaults
from rocl_transfer.data import (
    Augmentation,
    Batches,
    ImageData,
    ImageSet,
    PretrainImageOptions,
    Store,
    Stream,
    StreamedBatches,
    light_views,
    match_labels,
    store_splits,
    stratified_sample,
)
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import AdaptationPGDOptions, BeforeAfter, StudentMonitor, Watched
from rocl_transfer.hub import (
    Making,
    ModelOptions,
    NamedModel,
    complete_twin,
    distilled_from,
    export_best,
    load_backbone,
    load_model,
    look_up,
    note_pretraining,
    open_unlabelled,
    stood_for,
)
from rocl_transfer.models import PixelModel, TrainableOptions, family
from rocl_transfer.objectives import Distillation
from rocl_transfer.options import Number, require, require_sha256, require_untouched, require_warmup
from rocl_transfer.training import AdaptationOptimizerOptions, Run, RunOptions, StudentGuard

log = logging.getLogger("rocl_transfer")

# What a family of networks is distilled with by default. At 224 px FARE's (AdamW 1e-5, weight decay 1e-4) for networks without BatchNorm;
# small networks learn at a hundred times as much (benchmarks/RESULTS.md).
SMALL = 96  # px: up to this side images are small
WATCHED = 512  # images that are watched in training
FAMILIES: dict[str, dict[str, Any]] = {
    "batchnorm": {"name": "adamw", "lr": Number(1e-4), "weight_decay": Number(1e-4), "layer_decay": Number(1)},
    "plain": {"name": "adamw", "lr": Number(1e-5), "weight_decay": Number(1e-4), "layer_decay": Number(1)},
    "attention": {"name": "adamw", "lr": Number(1e-5), "weight_decay": Number(1e-4), "layer_decay": Number(1)},
}
SMALL_RATES = {"batchnorm": Number(1e-3), "plain": Number(3e-4), "attention": Number(1e-4)}
WARMUP = 0.07  # of the training, as FARE has it


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """The network whose embeddings the twin learns.

    Args:
        name: A run folder, a timm name, ``hf-hub:USER/NAME`` or ``local-dir:FOLDER`` (default: the network itself, as it is at the start).
        sha256: SHA-256 that an exported model's weights file must have; any other file is refused.
    """

    name: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        require(self.name is None or bool(self.name), "--teacher.name is empty: give a run folder, a timm name or hf-hub:USER/NAME")
        if self.name is None:
            require_untouched(self, ("sha256",), "without --teacher.name", "teacher.")


@dataclass(frozen=True, kw_only=True)
class RobustifyConfig(RunOptions, Distillation.Options, TrainableOptions):
    """A network's robust twin, without labels. Options left out follow the network's family and the size of the images.

    Args:
        data: Which images; labels, if there are any, only measure.
        model: Which network: a backbone, or a classifier, whose head stays as it is.
        teacher: The network whose embeddings the twin learns.
        views: How the view that both networks see is drawn (default, and what is not given of it: small images are mirrored and shifted by up to an
            eighth, larger ones stay as they are).
        optimizer: How it is trained.
        evaluation: How a classifier is measured, where there are labels of its classes.
        samples: Measure on this many images, drawn by --seed in proportion to the classes.
    """

    data: PretrainImageOptions
    model: ModelOptions
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    views: Augmentation | None = None
    optimizer: AdaptationOptimizerOptions = field(default_factory=lambda: AdaptationOptimizerOptions(schedule="cosine_per_step"))
    evaluation: AdaptationPGDOptions = field(default_factory=AdaptationPGDOptions)
    samples: int = 1000
    epochs: int = 2
    batch_size: int = 128
    monitor_every: int = 1

    def __post_init__(self) -> None:
        for part in (RunOptions, Distillation.Options, TrainableOptions):
            part.__post_init__(self)
        require(self.train != "head", "--train head would leave the features as they are: give all, last-2, first-2, norm or lora")
        require(self.samples > 0, f"--samples is {self.samples}: give 1 or more")
        if self.data.streaming:
            idle = ("samples", "evaluation", "monitor_every")
            require_untouched(self, idle, "with --data.streaming true, which leaves nothing to watch and nothing to measure")
        self.evaluation.against(self.attack)
        require_warmup(self.optimizer.warmup_epochs, self.epochs)

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunOptions`; the images of one process share the seed of their attack, and a stream's order is its readers'."""
        readers = {"data.workers": self.data.workers, "number of processes": processes} if self.data.streaming else {}
        return {**super().identity(processes), "batch_size": self.batch_size, "samples": None, **readers}


def main(config: RobustifyConfig) -> Path:
    with Run(config) as run:
        model = look_up(config.model)
        data, stream = open_unlabelled(model, config.data)
        data = data if config.data.streaming else note_pretraining(data, model)
        run.note(data.notes)
        run.require_batch(len(data.train))  # refuse before anything is decoded
        origin = model if config.teacher.name is None else look_up(config.teacher.name, sha256=config.teacher.sha256)
        student, teacher = (network.to(run.device) for network in load_networks(config, model, origin, data))
        config = resolved(with_earlier_defaults(config), student, data.image_size)
        run.check(config, stood_for(data, model=model, teacher=origin))
        data, stores = decode(config, run, data, stream)
        run.begin()
        watched = watch(config, run, teacher, data, stores)
        batches = batches_of(config, run, data, stores, stream)
        objective = build(config, run, student, teacher, scale_of(run, watched, teacher, batches))
        monitor, guard = judge(config, objective, teacher, watched)
        optimizer, schedule = config.optimizer.create(objective, student.net), config.optimizer.over(config.epochs)
        clip = config.optimizer.clip_grad or None
        trained = run.train(objective, batches, optimizer, schedule, monitor=monitor, guard=guard, clip_grad=clip)
        if run.is_main:
            facts = {**objective.facts(), **distilled_from(model, origin, data), "trained_part": config.train}
            export_best(run, objective, trained, facts)
            split, measured = measured_on(config, data, stores, student)
            making = Making(config, f"{config.method}_{data.short_name}", facts, trained)
            complete_twin(run, objective.exported, teacher, measured, making, attack=config.attack, split=split, data=data)
    log.info("robust model, results and card: %s", run.folder)
    return run.folder


def load_networks(config: RobustifyConfig, model: NamedModel, origin: NamedModel, data: ImageData) -> tuple[PixelModel, PixelModel]:
    """The student and its teacher; refused here if it cannot be trained as asked."""
    if not model.is_trained and config.teacher.name is None:
        raise UserError(f"{config.model.name} has random weights, and nothing in it is worth keeping: give trained ones, or --teacher.name")
    student = load_model(model, data.image_size)
    if config.teacher.name is None:
        teacher = copy.deepcopy(student)
    else:
        teacher = load_backbone(origin, data.image_size)
        if config.match == "tokens":
            raise UserError("--match tokens needs a teacher of the same shape, which the network itself is: leave out --teacher.name")
    kind = f"a classifier of {len(student.class_names)} classes, whose head stays as it is" if student.class_names else "a backbone"
    log.info("%s: %s, %d features", config.model.name, kind, student.num_features)
    if student.class_names and config.teacher.name is not None:
        log.warning(
            "the features of %s move to where %s has them, and its head stays: unless that head belongs there, its answers mean nothing "
            "afterwards, and recipes/linear_probe.py trains a new one",
            config.model.name, config.teacher.name,
        )  # fmt: skip
    config.select(copy.deepcopy(student), head=False)
    return student, teacher


def resolved(config: RobustifyConfig, student: PixelModel, size: int) -> RobustifyConfig:
    """With the optimiser and the views that the network's family and the size of the images ask for."""
    kind, small = family(student.net), size <= SMALL
    chosen = {**FAMILIES[kind], **({"lr": SMALL_RATES[kind]} if small else {}), "warmup_epochs": Number(WARMUP * config.epochs)}
    if config.optimizer.schedule != "cosine_per_step":
        del chosen["warmup_epochs"]
    own = config.optimizer.resolved(chosen, config.epochs, trained=True)
    still = Augmentation(jitter_probability=Number(0), grey_probability=Number(0), flip_probability=Number(0), crop_area=(Number(1), Number(1)))
    views = laid_over(config, "views", light_views() if small else still)
    log.info("%s at %d px: %s, learning rate %g, weight decay %g", kind, size, own.name, own.lr, own.weight_decay)
    return dataclasses.replace(config, optimizer=own, views=views)


def decode(config: RobustifyConfig, run: Run, data: ImageData, stream: Stream | None) -> tuple[ImageData, dict[str, Store]]:
    if stream is not None:
        log.info("the images are streamed: the twin is not watched in training, and nothing is measured of it")
        return data, {}
    splits: list[Literal["train", "validation", "test"]] = ["train"]
    splits += ["validation"] if data.validation is not None else []
    splits += ["test"] if len(data.test) else []
    return store_splits(data, splits, run.device, config.data, labels_needed=False)


def watch(config: RobustifyConfig, run: Run, teacher: PixelModel, data: ImageData, stores: dict[str, Store]) -> Watched | None:
    """Up to 512 validation images; if there are none, training images."""
    if not stores:
        return None
    split = "validation" if "validation" in stores else "train"
    positions = torch.linspace(0, len(stores[split]) - 1, min(WATCHED, len(stores[split]))).long()
    log.info("%d %s images are watched", len(positions), split if split == "validation" else "training")
    return Watched(teacher, stores[split], positions, config.seed)


def batches_of(
    config: RobustifyConfig, run: Run, data: ImageData, stores: dict[str, Store], stream: Stream | None
) -> Batches | StreamedBatches:  # fmt: skip
    sampler = run.sampler(len(data.train), max(2, config.part_size // 4))
    if stream is not None:
        return StreamedBatches(stream, sampler, data.image_size, run.device, config.data.workers, max_unreadable=config.data.max_unreadable)
    return Batches(stores["train"], None, sampler, data.train.where)


def scale_of(run: Run, watched: Watched | None, teacher: PixelModel, batches: Batches | StreamedBatches) -> float:
    """The mean squared length of the teacher's features: of the watched images, or of a stream's first batch, over all processes."""
    if watched is not None:
        return watched.scale
    first: Iterator[Any] = batches.epoch(0)
    with torch.no_grad():
        own = teacher.eval().features(next(first).inputs.float() / 255).square().sum(1).mean()
    return float(run.accelerator.reduce(own, "mean"))  # not Run.mean, which rounds: lengths differ by orders of magnitude


def build(config: RobustifyConfig, run: Run, student: PixelModel, teacher: PixelModel, scale: float) -> Distillation:
    run.seed_again()
    config.select(student, head=False)
    assert config.views is not None
    objective = Distillation(student, teacher, config.views, config, scale)
    if config.ramp[1]:
        log.info("epsilon is 0 for the first %.0f %% of the training and whole after %.0f %%", *(100 * share for share in config.ramp))
    return objective.to(run.device)


def judge(
    config: RobustifyConfig, objective: Distillation, teacher: PixelModel, watched: Watched | None
) -> tuple[StudentMonitor | None, StudentGuard | None]:
    """What watches the training and calls it dead; nothing if the student's features are of another width, or there is nothing to watch."""
    if watched is None or objective.bridge is not None:
        return None, None
    monitor = StudentMonitor(lambda: objective.exported, watched, config.attack.measuring(5))
    start = 0.0 if config.teacher.name is None else monitor()["validation_drift"]
    return monitor, StudentGuard(len(watched), len(teacher.class_names), grace=max(1, config.epochs // 4), start=start)


def measured_on(
    config: RobustifyConfig, data: ImageData, stores: dict[str, Store], student: PixelModel
) -> tuple[tuple[ImageSet, str], BeforeAfter | None]:  # fmt: skip
    """The images that teacher and twin are measured on: test images, else held-out ones, else those it was trained on."""
    choices = (("test", data.test, data.test_split or "test"), ("validation", data.validation, "validation"), ("train", data.train, "train"))
    name, images, words = next((choice for choice in choices if choice[0] in stores), choices[-1])
    assert images is not None
    if not stores:
        return (images, words), None
    labels: Tensor | None = None
    if images.labels is not None and set(data.class_names) <= set(student.class_names):
        labels, _ = match_labels(images.labels, data.class_names, student.class_names)
    positions = stratified_sample(images.labels if images.labels is not None else torch.zeros(len(images)), config.samples, config.seed)
    options = config.evaluation.against(config.attack)
    agreement = dataclasses.replace(options, epsilons=(config.attack.epsilon,)).attacks()[0]
    return (images, words), BeforeAfter(stores[name], positions, labels, options.attacks(), agreement, config.seed, options.batch_size)


if __name__ == "__main__":
    command_line(main, RobustifyConfig)
