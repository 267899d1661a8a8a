"""Train a linear head on a frozen backbone and measure the classifier: LE (clean images) or, with --robust true, r-LE (adversarial images).

    python recipes/linear_probe.py --model.name runs/pre --data.name DATA --robust true --output_dir runs/probe

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/, model.safetensors + config.json (timm layout), results.json, verdicts.jsonl,
README.md, figures/.
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.config import command_line, sized
from rocl_transfer.data import Batches, ImageData, ImageOptions, Resident, Store, store_splits
from rocl_transfer.evaluation import HeadMonitor, PGDOptions, compute_features
from rocl_transfer.hub import Making, ModelOptions, complete_classifier, load_backbone, look_up, made_from, open_images_for, stood_for
from rocl_transfer.models import PixelModel, add_head
from rocl_transfer.objectives import LinearProbe, Probe, RobustProbe
from rocl_transfer.options import Number, require_untouched
from rocl_transfer.training import Guard, OptimizerOptions, Run, RunOptions

log = logging.getLogger("rocl_transfer")


RATE = Number(0.1)  # of SGD


def probe_optimizer() -> OptimizerOptions:
    """The paper's: SGD, 0.1, lowered after 30, 50 and 100 of 150 epochs."""
    return OptimizerOptions(name="momentum", lr=RATE, weight_decay=Number(5e-4), schedule="steps", warmup_epochs=0)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(RunOptions):
    """A linear head on a frozen backbone. The defaults are RoCL's LE and r-LE.

    Args:
        data: Which images and labels.
        model: Which backbone; it stays as it is, bit for bit.
        robust: Train the head on adversarial examples made through the frozen backbone (r-LE) instead of clean images (LE).
        attack: The attack of r-LE.
        optimizer: How the head is trained.
        evaluation: How the classifier is measured.
    """

    data: ImageOptions
    model: ModelOptions
    robust: bool = False
    attack: AttackOptions = field(default_factory=lambda: AttackOptions(steps=10))
    optimizer: OptimizerOptions = field(default_factory=probe_optimizer)
    evaluation: PGDOptions = field(default_factory=PGDOptions)
    epochs: int = 150
    batch_size: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer.require_rate("momentum", RATE)
        if not self.robust:
            require_untouched(self, ("attack",), "with --robust false")

    def identity(self, processes: int) -> dict[str, Any]:
        """See :class:`RunOptions`; the images of one process share the seed of their attack."""
        return {**super().identity(processes), "batch_size": self.batch_size}


def main(config: ProbeConfig) -> Path:
    with Run(config) as run:
        model = look_up(config.model)
        data = open_images_for(model, config.data)
        run.note(data.notes)
        config = sized(config, data.image_size)
        log.info("%s", config.optimizer.words)
        backbone = load_backbone(model, data.image_size)
        classifier = add_head(backbone, data.class_names).to(run.device)
        log.info("a new linear head is trained for the %d classes %s", len(data.class_names), ", ".join(data.class_names[:10]))
        run.check(config, stood_for(data, model=model))
        data, stores = store_splits(data, ("train", "validation", "test"), run.device, config.data)
        run.begin()
        objective, batches = build(config, run, classifier, data, stores["train"])
        monitor = HeadMonitor(classifier, data, stores)
        optimizer, schedule = config.optimizer.create(objective), config.optimizer.over(config.epochs)
        trained = run.train(objective, batches, optimizer, schedule, monitor=monitor, guard=guard(config, data, monitor))
        # The guard judges; it is the last epoch that is exported, as in the paper.
        trained = dataclasses.replace(trained, best=None, last=None, lost=None)
        if run.is_main:
            facts = {"method": "r-LE" if config.robust else "LE", **objective.facts(), **made_from(model, data)}
            making = Making(config, f"{'r_le' if config.robust else 'le'}_{data.short_name}", facts, trained)
            attacks, at_once = config.evaluation.attacks(), config.evaluation.batch_size
            complete_classifier(run.folder, classifier, data, stores["test"], attacks, making, batch_size=at_once)
    log.info("classifier, results and card: %s", run.folder)
    return run.folder


def build(config: ProbeConfig, run: Run, classifier: PixelModel, data: ImageData, images: Store) -> tuple[Probe, Batches]:
    """The objective, and batches of images for r-LE, of features for LE."""
    sampler = run.sampler(len(data.train))
    if config.robust:
        return RobustProbe(classifier, config.attack), Batches(images, data.train.labels, sampler, data.train.where)
    return LinearProbe(classifier), Batches(Resident(compute_features(classifier, images)), data.train.labels, sampler, data.train.where)


def guard(config: ProbeConfig, data: ImageData, monitor: HeadMonitor) -> Guard:
    """Judges what the monitor sees after a quarter of the epochs."""
    remedy = "lower --optimizer.lr, train longer (--epochs), or take another backbone" + (" or a smaller --attack.epsilon" if config.robust else "")
    grace = config.epochs // 4 + 1
    return Guard(len(data.class_names), len(monitor.labels), False, monitor.watched, grace, worth=monitor.worth, remedy=remedy)


if __name__ == "__main__":
    command_line(main, ProbeConfig)
