"""Pre-train a backbone without labels, by RoCL, ACL, DynACL, SimCLR (the control), or an objective of your own.

    python recipes/pretrain.py --config recipes/configs/<row>.yaml --output_dir runs/pre --data.name DATA --model.name MODEL

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/, model.safetensors + config.json (timm layout), results.json, README.md, figures/.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocl_transfer.config import by_method, command_line, find_method, sized
from rocl_transfer.data import (
    Augmentation,
    Batches,
    ImageData,
    ImageSet,
    PretrainImageOptions,
    Stream,
    StreamedBatches,
    store_splits,
)
from rocl_transfer.evaluation import NeighbourMonitor, Results
from rocl_transfer.hub import (
    Making,
    ModelOptions,
    NamedModel,
    complete_run,
    continued_from,
    load_backbone,
    load_projector,
    look_up,
    open_unlabelled,
    stood_for,
)
from rocl_transfer.objectives import PRETRAINING, Objective, ObjectiveOptions
from rocl_transfer.options import require, require_untouched, spelled
from rocl_transfer.training import OptimizerOptions, Run, RunOptions, Trained, last_epoch, poor_radius

log = logging.getLogger("rocl_transfer")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunOptions):
    """Pre-training without labels. The defaults are RoCL's at 32 px.

    Args:
        data: Which images; their labels are used by the kNN monitor alone.
        model: Which backbone.
        views: How a view of an image is drawn.
        objective: What is learned.
        optimizer: How it is trained.
    """

    data: PretrainImageOptions
    model: ModelOptions
    views: Augmentation = field(default_factory=Augmentation)
    objective: ObjectiveOptions = by_method(PRETRAINING, "rocl")
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    epochs: int = 1000
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.streaming:
            require_untouched(self, ("monitor_every",), "with --data.streaming true, which leaves nothing to watch")
        size, part = self.group, self.part_size
        at_once = f"--batch_size {self.batch_size}" + (f" / --gradient_accumulation_steps = {part}" if part < self.batch_size else "")
        require(1 < size <= part and part % size == 0, f"--objective.group_size {size} must be 2 or more and divide {at_once}")

    @property
    def group(self) -> int:
        """See :class:`RunOptions`."""
        return self.objective.images_together(self.part_size)

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunOptions`; a group is a group, also where it was left to be the batch of one process; a stream's order is its readers'."""
        readers = {"data.workers": self.data.workers, "number of processes": processes} if self.data.streaming else {}
        return {**super().identity(processes), "objective.group_size": self.group, **readers}


def main(config: PretrainConfig) -> Path:
    with Run(config) as run:
        model = look_up(config.model).untrained_unless_asked()
        data, stream = open_unlabelled(model, config.data)
        run.note(data.notes)
        config = sized(config, data.image_size)
        log.info("%s", config.optimizer.words)
        run.require_batch(len(data.train))  # refuse before anything is decoded
        objective = make_objective(config, model, data)
        run.check(config, stood_for(data, model=model))
        data, batches, monitor = prepare(config, run, objective, data, stream)
        run.begin()
        optimizer, schedule = config.optimizer.create(objective), config.optimizer.over(config.epochs)
        trained = run.train(objective, batches, optimizer, schedule, monitor=monitor)
        if run.is_main:
            measured = [monitor.measure()] if monitor else []
            results = Results(measured, [], run.device.type, config.seed, doubts=monitor.doubts(measured[0]) if monitor else [])
            results.say()
            say_radius(config, run, trained)
            facts = {"method": config.objective.method, **objective.facts(), **continued_from(model, data, model.is_trained)}
            making = Making(config, f"{config.objective.method}_{data.short_name}", facts, trained)
            dataset = data.facts(*measured_on(data, monitor))
            complete_run(run.folder, objective.exported, results, making, dataset=dataset, projector=objective.exported_projector)
    log.info("pre-trained model, metrics and card: %s", run.folder)
    return run.folder


def make_objective(config: PretrainConfig, model: NamedModel, data: ImageData) -> Objective:
    """The method with its networks."""
    method = find_method(PRETRAINING, config.objective.method)
    encoder = load_backbone(model, data.image_size)
    projector, kept = load_projector(model, encoder.num_features, method.make_projector)
    if kept:
        log.info("pre-training begins with the projector of %s", config.model.name)
    objective: Objective = method(encoder, projector, config.views, config.objective)
    return objective


def prepare(
    config: PretrainConfig, run: Run, objective: Objective, data: ImageData, stream: Stream | None
) -> tuple[ImageData, Batches | StreamedBatches, NeighbourMonitor | None]:
    """Decode the images, or have them streamed; and watch the neighbours of held-out images where there are labels."""
    if (parts := config.gradient_accumulation_steps) > 1:
        log.info(
            "each batch is computed in %d parts: an image's negatives are those among the %d of its part, not the %d of the batch",
            parts, config.part_size * run.processes, config.batch_size * run.processes,
        )  # fmt: skip
    watched = data.train.labels is not None and data.validation is not None and data.validation.labels is not None
    if not watched:
        log.info("the kNN monitor is off: there is no validation split with labels of two or more classes")
    if stream is not None:
        workers, share = config.data.workers, config.data.max_unreadable
        sampler = run.sampler(len(data.train))
        return data, StreamedBatches(stream, sampler, data.image_size, run.device, workers, max_unreadable=share), None
    data, stores = store_splits(data, ("train", "validation") if watched else ("train",), run.device, config.data, labels_needed=False)
    batches = Batches(stores["train"], data.train.labels, run.sampler(len(data.train)), data.train.where)
    if data.validation is None or data.train.labels is None or data.validation.labels is None:
        return data, batches, None
    return data, batches, NeighbourMonitor(objective.exported, stores["train"], data.train.labels, stores["validation"], data.validation.labels)


def say_radius(config: PretrainConfig, run: Run, trained: Trained) -> None:
    """Say where the last epoch shows that the radius of the attack was chosen badly."""
    seen, attack = last_epoch(run.folder / "metrics.jsonl"), getattr(config.objective, "attack", None)
    if trained.epochs == config.epochs and attack is not None and "robust_agreement" in seen:
        radius, n = f"--objective.attack.epsilon {spelled(attack.epsilon)}", trained.steps // config.epochs * config.batch_size
        poor = poor_radius(radius, seen["agreement"], seen["robust_agreement"], 1 / config.group, n, "the matches of an image's views")
        if poor:
            log.warning("%s", poor)


def measured_on(data: ImageData, monitor: NeighbourMonitor | None) -> tuple[ImageSet, str]:
    """The split that the record speaks of."""
    return (data.validation, "validation") if monitor is not None and data.validation is not None else (data.train, "train")


if __name__ == "__main__":
    command_line(main, PretrainConfig)
