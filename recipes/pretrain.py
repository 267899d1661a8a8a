"""Pre-train a backbone without labels, by RoCL or by SimCLR (the control).

    accelerate launch recipes/pretrain.py --config recipes/configs/<row>.yaml --output_dir runs/pre --data.name DATA --model.name MODEL

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/, model.safetensors + config.json (timm layout), results.json, README.md, figures/.
"""

import dataclasses
import logging
from pathlib import Path

from rocl_transfer.attacks import Ascent, threat_model
from rocl_transfer.config import PretrainConfig, command_line, write_config
from rocl_transfer.data import Augmentation, Batches, ImageData, Sampler, Stream, StreamedBatches, load_images, open_stream, store_splits
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import NeighbourMonitor, Results
from rocl_transfer.hub import complete_run, continued_from, find_model, is_trained, load_backbone, load_projector, native_size
from rocl_transfer.objectives import RoCL
from rocl_transfer.training import Cadence, Checkpoints, Recovery, Schedule, create_optimizer, finish, start, train

log = logging.getLogger("rocl_transfer")
TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"


def main(config: PretrainConfig) -> Path:
    folder = Path(config.output_dir)
    accelerator = start(folder, config.seed, config.log_with, config.identity(1))
    device, processes = accelerator.device, accelerator.num_processes

    data, stream = open_data(config)
    for note in data.notes:
        log.info("data: %s", note)

    def order(images: int) -> Sampler:
        group = config.objective.group_size or config.part_size
        sampler = Sampler(images, config.batch_size, config.seed, group, accelerator.process_index, processes)
        if images < sampler.global_batch:
            raise UserError(f"{images} images are fewer than a batch of {sampler.global_batch}: give a smaller --batch_size")
        return sampler

    order(len(data.train))  # refuse before anything is decoded

    by_name = config.model.pretrained is None and find_model(config.model.name) is None
    pretrained = False if by_name else config.model.pretrained
    encoder = load_backbone(config.model.name, data.image_size, pretrained, config.model.sha256)
    projector, kept = load_projector(config.model.name, encoder.num_features)
    if kept:
        log.info("pre-training goes on with the projector of %s", config.model.name)
    attack = config.objective.attack
    objective = RoCL(
        encoder,
        projector,
        Augmentation(**dataclasses.asdict(config.views)),
        Ascent(threat_model(attack.norm, attack.epsilon), attack.step, attack.steps) if config.objective.method == "rocl" else None,
        config.objective.temperature,
        config.objective.regularizer_weight,
        config.objective.shared_regularizer,
        config.objective.compile,
    )
    options = config.optimizer
    optimizer = create_optimizer(objective, options.name, options.lr, options.weight_decay, options.momentum)
    schedule = Schedule(options.lr, config.epochs, options.schedule, options.warmup_epochs, options.warmup_lr, options.milestones)

    checkpoints = Checkpoints(folder, **config.checkpoints(processes))
    checkpoints.find(config.resume)  # refuse before anything is written
    watched = data.train.labels is not None and data.validation is not None and data.validation.labels is not None
    splits = ("train", "validation") if watched else ("train",)
    if stream is None:
        data, stores = store_splits(data, splits, device, **config.data.storage, labels_needed=False)
        batches = Batches(stores["train"], data.train.labels, order(len(data.train)), data.train.where)
    else:
        read = {"workers": config.data.workers, "max_unreadable": config.data.max_unreadable}
        batches = StreamedBatches(stream, order(len(data.train)), data.image_size, device, **read)
    if accelerator.is_main_process:
        checkpoints.begin()
        write_config(config, folder / "config.yaml")
    monitor = None
    if watched:
        monitor = NeighbourMonitor(encoder, stores["train"], data.train.labels, stores["validation"], data.validation.labels)
    else:
        log.info("the kNN monitor is off: there is no validation split with labels of two or more classes")
    accumulation = config.gradient_accumulation_steps
    if accumulation > 1:
        log.info(
            "each batch is computed in %d parts: an image's negatives are those among the %d of its part, not the %d of the batch",
            accumulation, config.part_size * processes, config.batch_size * processes,
        )  # fmt: skip
    trained = train(
        accelerator, objective, optimizer, schedule, batches, checkpoints,
        max_steps=config.max_steps, resume=config.resume, monitor=monitor, recovery=Recovery(config.rollbacks), accumulation=accumulation,
        cadence=Cadence(config.log_every, config.checkpoint_every, config.monitor_every),
    )  # fmt: skip

    if accelerator.is_main_process:
        measured = [monitor.measure()] if monitor else []
        results = Results(measured, [], device.type, config.seed, doubts=monitor.doubts(measured[0]) if monitor else [])
        results.say()
        complete_run(
            folder, encoder, results, tag=f"{config.objective.method}_{data.short_name}",
            facts={"method": config.objective.method, **continued_from(config.model.name, data, is_trained(config.model.name, pretrained))},
            dataset=data.facts(*((data.validation, "validation") if monitor else (data.train, "train"))),
            training=dataclasses.asdict(trained), config=dataclasses.asdict(config), template=TEMPLATE, projector=projector,
        )  # fmt: skip
    finish(accelerator)
    accelerator.wait_for_everyone()
    log.info("pre-trained model, metrics and card: %s", folder)
    return folder


def open_data(config: PretrainConfig) -> tuple[ImageData, Stream | None]:
    if config.data.streaming:
        return open_stream(**config.data.stream)
    size = config.data.image_size or native_size(config.model.name)
    return load_images(**{**config.data.selection, "image_size": size}, labels_needed=False), None


if __name__ == "__main__":
    command_line(main, PretrainConfig)
