"""Train a linear head on a frozen backbone and measure the classifier: LE (clean images) or, with --robust true, r-LE (adversarial images).

    accelerate launch recipes/linear_probe.py --model.name runs/pre --data.name DATA --robust true --output_dir runs/probe

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/, model.safetensors + config.json (timm layout), results.json, verdicts.jsonl,
README.md, figures/.
"""

import dataclasses
import logging
from pathlib import Path

from rocl_transfer.attacks import PGD
from rocl_transfer.config import ProbeConfig, command_line, write_config
from rocl_transfer.data import Batches, Resident, Sampler, load_images, store_splits
from rocl_transfer.evaluation import HeadMonitor, compute_features
from rocl_transfer.hub import complete_classifier, load_backbone, made_from, native_size, note_pretraining
from rocl_transfer.models import add_head
from rocl_transfer.objectives import LinearProbe, RobustProbe
from rocl_transfer.training import Cadence, Checkpoints, Guard, Recovery, Schedule, create_optimizer, finish, start, train

log = logging.getLogger("rocl_transfer")
TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"


def main(config: ProbeConfig) -> Path:
    folder = Path(config.output_dir)
    accelerator = start(folder, config.seed, config.log_with, config.identity(1))
    device, processes = accelerator.device, accelerator.num_processes

    size = config.data.image_size or native_size(config.model.name)
    data = note_pretraining(load_images(**{**config.data.selection, "image_size": size}), config.model.name)
    for note in data.notes:
        log.info("data: %s", note)
    sampler = Sampler(len(data.train), config.batch_size, config.seed, config.part_size, accelerator.process_index, processes)
    backbone = load_backbone(config.model.name, data.image_size, config.model.pretrained, config.model.sha256)
    classifier = add_head(backbone, data.class_names).to(device)

    log.info("a new linear head is trained for the %d classes %s", len(data.class_names), ", ".join(data.class_names[:10]))

    checkpoints = Checkpoints(folder, **config.checkpoints(processes))
    checkpoints.find(config.resume)  # refuse before anything is written
    data, stores = store_splits(data, ("train", "validation", "test"), device, **config.data.storage)
    sampler = dataclasses.replace(sampler, num_images=len(data.train))
    if accelerator.is_main_process:
        checkpoints.begin()
        write_config(config, folder / "config.yaml")
    store = stores["train"]
    if config.robust:
        attack = config.attack
        objective = RobustProbe(classifier, PGD(attack.epsilon, attack.steps, attack.step, attack.norm))
        batches = Batches(store, data.train.labels, sampler, data.train.where)
    else:
        objective = LinearProbe(classifier.head)
        batches = Batches(Resident(compute_features(classifier, store)), data.train.labels, sampler, data.train.where)
    options = config.optimizer
    optimizer = create_optimizer(objective, options.name, options.lr, options.weight_decay, options.momentum)
    schedule = Schedule(options.lr, config.epochs, options.schedule, options.warmup_epochs, options.warmup_lr, options.milestones)

    monitor = HeadMonitor(classifier, data, stores)
    remedy = "lower --optimizer.lr, train longer (--epochs), or take another backbone" + (" or a smaller --attack.epsilon" if config.robust else "")
    guard = Guard(len(data.class_names), len(monitor.labels), False, monitor.watched, config.epochs // 4 + 1, monitor.worth, remedy)
    trained = train(
        accelerator, objective, optimizer, schedule, batches, checkpoints, max_steps=config.max_steps, resume=config.resume, monitor=monitor,
        guard=guard, recovery=Recovery(config.rollbacks), accumulation=config.gradient_accumulation_steps,
        cadence=Cadence(config.log_every, config.checkpoint_every, config.monitor_every),
    )  # fmt: skip

    if accelerator.is_main_process:
        trained = dataclasses.replace(trained, best=None, last=None)  # the guard judges; it is the last epoch that is exported, as in the paper
        measured = config.evaluation
        complete_classifier(
            folder, classifier, data, stores["test"], [PGD(epsilon, measured.steps, norm=measured.norm) for epsilon in measured.epsilons],
            batch_size=measured.batch_size, seed=config.seed, tag=f"{'r_le' if config.robust else 'le'}_{data.short_name}",
            facts={"method": "r-LE" if config.robust else "LE", **made_from(config.model.name, data)},
            training=dataclasses.asdict(trained), config=dataclasses.asdict(config), template=TEMPLATE,
        )  # fmt: skip
    finish(accelerator)
    accelerator.wait_for_everyone()
    log.info("classifier, results and card: %s", folder)
    return folder


if __name__ == "__main__":
    command_line(main, ProbeConfig)
