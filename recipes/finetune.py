"""Fine-tune a backbone on labelled images so that the classifier resists an adversary, and measure it.

    accelerate launch recipes/finetune.py --model.name runs/pre --data.name DATA --method trades --output_dir runs/ft

The new head is trained first, then everything; training that dies goes back to its last good checkpoint, or ends in a sentence and status 2. Leaves a
run folder: config.yaml, metrics.jsonl, checkpoints/, head/ (the head's own training), model.safetensors + config.json (the best epoch by validation,
timm layout), last/ (the last epoch, where it is another), results.json, verdicts.jsonl, README.md, figures/.
"""

import copy
import dataclasses
import json
import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from rocl_transfer.attacks import PGD
from rocl_transfer.config import FinetuneConfig, command_line, write_config
from rocl_transfer.data import Augmentation, Batches, ImageData, Resident, Sampler, Store, load_images, store_splits
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import ClassifierMonitor, compute_features
from rocl_transfer.hub import complete_classifier, export, is_trained, load_projector, load_start, made_from, native_size, note_pretraining
from rocl_transfer.models import PixelModel, family, merge_lora, select_trainable
from rocl_transfer.objectives import AdversarialTraining, Adversary, Contrast, LinearProbe, RobustProbe, class_weights
from rocl_transfer.training import Cadence, Checkpoints, Guard, Recovery, Schedule, Trained, create_optimizer, finish, start, train

log = logging.getLogger("rocl_transfer")
TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
PROBE_EPOCHS, PROBE_LR = 20, 1e-2  # of the head alone on cached features: seconds, to convergence


def main(config: FinetuneConfig) -> Path:
    folder = Path(config.output_dir)
    accelerator = start(folder, config.seed, config.log_with, config.identity(1))
    device, processes = accelerator.device, accelerator.num_processes

    size = config.data.image_size or native_size(config.model.name)
    data = note_pretraining(load_images(**{**config.data.selection, "image_size": size}), config.model.name)
    for note in data.notes:
        log.info("data: %s", note)
    classifier, kept = load_start(config.model.name, data.class_names, data.image_size, config.model.pretrained, config.model.sha256)
    kind = "its own head is kept" if kept else "a new linear head is trained"
    log.info("%s: %s for the %d classes %s", config.model.name, kind, len(data.class_names), ", ".join(data.class_names[:10]))
    if config.batchnorm == "frozen" and family(classifier.net) != "batchnorm":
        raise UserError(f"{config.model.name} has no BatchNorm whose statistics could be frozen: leave out --batchnorm frozen")
    select_trainable(copy.deepcopy(classifier), config.train, config.lora_rank or 8)  # refuse before anything is written
    own = config.optimizer.resolved(family(classifier.net), config.epochs, is_trained(config.model.name, config.model.pretrained))
    config = dataclasses.replace(config, optimizer=own)
    log.info("%s, learning rate %g, weight decay %g, layer decay %g", own.name, own.lr, own.weight_decay, own.layer_decay)

    checkpoints = Checkpoints(folder, **config.checkpoints(processes))
    resumes = checkpoints.find(config.resume) is not None  # refuse before anything is written
    data, stores = store_splits(data, ("train", "validation", "test"), device, **config.data.storage)
    if accelerator.is_main_process:
        checkpoints.begin()
        write_config(config, folder / "config.yaml")
    accelerator.wait_for_everyone()  # before any reads what an overwritten run left

    before = begin(config, accelerator, classifier.to(device), kept, data, stores, resumes)
    objective = build(config, classifier, data, before["robust"])
    optimizer = create_optimizer(objective, own.name, own.lr, own.weight_decay, own.momentum, classifier.net, own.layer_decay)
    schedule = Schedule(own.lr, config.epochs, own.schedule, own.warmup_epochs, 0.0, own.milestones)
    monitor = watch(config, objective, data, stores)
    quiet = max(own.warmup_epochs, config.epochs * max(1 / 4, 0 if objective.adversary is None else objective.adversary.ramp[1]))
    watched = before["watched"]
    grace = min(int(quiet) + 1, config.epochs)
    guard = Guard(len(data.class_names), len(monitor.labels), config.method != "standard", watched, grace, monitor.worth)
    if watched == "training":
        log.info("there are no validation images: %d training images are watched, and the last epoch is exported", len(monitor.labels))
    trained = train(
        accelerator, objective, optimizer, schedule,
        Batches(stores["train"], data.train.labels, sampler(config, accelerator, data), data.train.where), checkpoints,
        max_steps=config.max_steps, resume=config.resume, monitor=monitor, guard=guard, recovery=Recovery(config.rollbacks),
        clip_grad=own.clip_grad or None, accumulation=config.gradient_accumulation_steps,
        cadence=Cadence(config.log_every, config.checkpoint_every, config.monitor_every),
    )  # fmt: skip

    if accelerator.is_main_process:
        facts = {
            "method": config.method,
            **made_from(config.model.name, data),
            "trained_part": config.train,
            "batchnorm": objective.train().batchnorm_statistics,
            "start": before,
            "ramp": None if objective.adversary is None else objective.adversary.ramp,
        }
        if data.validation is None:
            trained = dataclasses.replace(trained, best=None, last=None)
        choose(objective, checkpoints, trained, folder, facts)
        attacks = [PGD(epsilon, config.evaluation.steps, norm=config.attack.norm) for epsilon in config.evaluation.radii(config.attack)]
        complete_classifier(
            folder, objective.deployed, data, stores["test"], attacks, batch_size=config.evaluation.batch_size, seed=config.seed,
            tag=f"{config.method}_{data.short_name}", facts=facts, training=dataclasses.asdict(trained), config=dataclasses.asdict(config),
            template=TEMPLATE,
        )  # fmt: skip
    finish(accelerator)
    accelerator.wait_for_everyone()
    log.info("classifier, results and card: %s", folder)
    return folder


def sampler(config: FinetuneConfig, accelerator: Accelerator, data: ImageData) -> Sampler:
    rank, world, smallest = accelerator.process_index, accelerator.num_processes, max(2, config.part_size // 4)
    return Sampler(len(data.train), config.batch_size, config.seed, config.part_size, rank, world, smallest)


def watch(config: FinetuneConfig, objective: AdversarialTraining | PixelModel, data: ImageData, stores: dict[str, Store]) -> ClassifierMonitor:
    """Looks at the validation images; where there are none, at up to 512 training images."""
    split, images = ("validation", data.validation) if data.validation is not None else ("train", data.train)
    positions = torch.arange(len(images)) if split == "validation" else torch.linspace(0, len(images) - 1, min(512, len(images))).long()
    attack = None if config.method == "standard" else PGD(config.attack.epsilon, 10, config.attack.epsilon / 4, config.attack.norm)
    deployed = (lambda: objective.deployed) if isinstance(objective, AdversarialTraining) else lambda: objective
    return ClassifierMonitor(deployed, stores[split], images.labels, attack, config.seed, positions)


def begin(
    config: FinetuneConfig, accelerator: Accelerator, classifier: PixelModel, kept: bool, data: ImageData, stores: dict[str, Store], resumes: bool
) -> dict[str, object]:  # fmt: skip
    """Train the new head of a trained backbone alone, clean and then, where the backbone turns out to be robust, on adversarial images.

    A random head on a good backbone spoils it in the first steps (Kumar et al. 2022); and training against the whole epsilon from a start that is
    not robust often dies, so that the rest of the recipe must know what the start is.
    """
    record = Path(config.output_dir) / "head" / "start.json"
    if resumes and record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    new = not kept and is_trained(config.model.name, config.model.pretrained)
    epochs = (3 if new else 0) if config.head_epochs is None else config.head_epochs
    watched = "validation" if data.validation is not None else "training"
    facts: dict[str, object] = {"head": "kept" if kept else "new", "clean_epochs": PROBE_EPOCHS if epochs else 0, "adversarial_epochs": 0,
                                "robust": False, "watched": watched}  # fmt: skip

    def run(name: str, objective: LinearProbe | RobustProbe, store: Store, length: int) -> None:
        checkpoints = Checkpoints(record.parent / name, 1, config.identity(accelerator.num_processes))
        optimizer = create_optimizer(objective, "adamw", PROBE_LR, 0.0)
        batches = Batches(store, data.train.labels, sampler(config, accelerator, data), data.train.where)
        resume = "auto" if config.resume != "none" else "none"
        train(
            accelerator,
            objective,
            optimizer,
            Schedule(PROBE_LR, length),
            batches,
            checkpoints,
            resume=resume,
            cadence=Cadence(config.log_every, track=False),
        )

    if epochs:
        log.info("the head is trained first: %d epochs on features of the frozen backbone", PROBE_EPOCHS)
        run("clean", LinearProbe(classifier.head), Resident(compute_features(classifier, stores["train"])), PROBE_EPOCHS)
    if (epochs or kept) and config.method != "standard":
        found = watch(config, classifier, data, stores)()
        # The same on every process: what follows is trained by all or none.
        numbers = accelerator.reduce(torch.tensor(list(found.values()), device=accelerator.device), "mean").tolist()
        seen = {name: round(value, 6) for name, value in zip(found, numbers, strict=True)}
        # Means over the classes: one answer for all images is as robust as it is worthless.
        robust = seen["validation_robust_recall"] > max(seen["validation_recall"] / 3, 1.5 / len(data.class_names))
        facts |= {**seen, "robust": robust}
        log.info("the start is %s: %s", "robust" if robust else "not robust", ", ".join(f"{k} {v:.4f}" for k, v in seen.items()))
        if robust and epochs:
            facts["adversarial_epochs"] = epochs
            log.info("then %d epochs on adversarial images through the frozen backbone", epochs)
            attack = PGD(config.attack.epsilon, config.attack.steps, config.attack.step, config.attack.norm)
            run("robust", RobustProbe(classifier, attack), stores["train"], epochs)
    if accelerator.is_main_process:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(facts), encoding="utf-8")
    return facts


def build(config: FinetuneConfig, classifier: PixelModel, data: ImageData, robust_start: bool) -> AdversarialTraining:
    torch.manual_seed(config.seed)  # the head's training may have been done in another process
    select_trainable(classifier, config.train, config.lora_rank or 8)
    adversary = None
    if config.method != "standard":
        ramp = config.ramp or ((0.0, 0.0) if robust_start else (0.1, 0.5))
        adversary = Adversary(config.attack.norm, config.attack.epsilon, config.attack.step, config.attack.steps, ramp)
        if ramp[1]:
            log.info("epsilon is 0 for the first %.0f %% of the training and whole after %.0f %%", 100 * ramp[0], 100 * ramp[1])
    contrast = None
    if config.ss_weight:
        views = Augmentation(**dataclasses.asdict(config.ss_views))
        projector, kept = load_projector(config.model.name, classifier.num_features)
        log.info("the self-supervised loss begins with %s projector", "pre-training's" if kept else "a new")
        contrast = Contrast(projector, views, config.ss_weight).to(next(classifier.parameters()).device)
    counts = torch.bincount(data.train.labels, minlength=len(data.class_names))
    return AdversarialTraining(
        classifier, config.method, adversary, Augmentation(**dataclasses.asdict(config.augmentation)), beta=config.beta,
        label_smoothing=config.label_smoothing, weights=class_weights(counts) if config.class_balanced else None, batchnorm=config.batchnorm,
        awp_gamma=config.awp_gamma, ema_decay=config.ema_decay, contrast=contrast,
    )  # fmt: skip


def choose(objective: AdversarialTraining, checkpoints: Checkpoints, trained: Trained, folder: Path, facts: dict[str, object]) -> None:
    """Leave the best epoch's weights in ``objective``, and export the last one's beside them."""
    best, last = trained.best, trained.last
    shutil.rmtree(folder / "last", ignore_errors=True)  # a shorter run's
    if best is not None and last is not None and best["step"] != last["step"]:
        model = copy.deepcopy(objective.deployed)
        merge_lora(model)
        (folder / "last").mkdir(exist_ok=True)
        export(model, folder / "last", {**facts, "step": last["step"]})
        checkpoints.load_weights(checkpoints.folder / f"step-{best['step']}", objective)
        log.info("epoch %d was the best by validation and is exported; the last one is in %s", best["epoch"], folder / "last")
    merge_lora(objective.deployed)


if __name__ == "__main__":
    command_line(main, FinetuneConfig)
