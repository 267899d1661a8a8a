"""What a run leaves behind when its training has ended: exported model, results record, figures and card, in this order."""

import copy
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rocl_transfer.attacks import PGD, Attack, AttackOptions
from rocl_transfer.data import ImageData, ImageSet, Store
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation import BeforeAfter, Context, Results, SearchOptions, Watched, choose_pictures, evaluate
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.doubts import against_the_start
from rocl_transfer.evaluation.report import Pictures, can_draw, draw_adversarial, draw_robustness, draw_training
from rocl_transfer.evaluation.results import distinct
from rocl_transfer.hub.card import render_card
from rocl_transfer.hub.digests import code_digest
from rocl_transfer.hub.export import export
from rocl_transfer.models import PixelModel, drop_head, merge_lora
from rocl_transfer.objectives import Objective
from rocl_transfer.options import spelled
from rocl_transfer.training import Run, Trained, poor_radius

log = logging.getLogger("rocl_transfer")


@dataclass(frozen=True)
class Making:
    """How a model was made, for its record, ``config.json`` and card.

    Args:
        config: The resolved configuration, a dataclass.
        tag: After the architecture and a dot, the model's name in the record: how it was trained, on what.
        facts: What ``config.json`` and the record's ``model`` say of the model's making.
        trained: What the training cost; None if nothing was trained.
    """

    config: Any
    tag: str
    facts: Mapping[str, Any]
    trained: Trained | None = None

    @property
    def cost(self) -> dict[str, Any]:
        """What the training cost, as the record has it."""
        return {} if self.trained is None else asdict(self.trained)


def require_no_run(folder: Path) -> None:
    """An evaluation must not write its record over that of a training.

    Raises:
        UserError: The folder holds one.
    """
    held = next((name for name in ("model.safetensors", "checkpoints", "metrics.jsonl") if (folder / name).exists()), None)
    if held is not None:
        raise UserError(f"--output_dir {folder} holds a run ({held}), whose record an evaluation would replace: name a folder of its own")


def complete_run(
    folder: Path,
    model: PixelModel,
    results: Results,
    making: Making,
    *,
    dataset: Mapping[str, Any],
    pictures: tuple[Pictures, Attack] | None = None,
    projector: nn.Module | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Complete a run folder that holds ``config.yaml`` and, where something was trained, ``metrics.jsonl``.

    Args:
        folder: The run folder.
        model: What was trained.
        results: What was measured of it.
        making: How it was made.
        dataset: What was measured on.
        pictures: What the card shows of an attack, and the attack.
        projector: Pre-training's.
        report: What else was measured.
    """
    sha = export(model, folder, {**making.facts, **({"doubts": results.doubts} if results.doubts else {})}, projector)
    identity = {"name": f"{model.architecture}.{making.tag}", "sha256": sha, "code_sha256": code_digest(model), **making.facts}
    results.write(folder, model=identity, dataset=dataset, training=making.cost, config=asdict(making.config), report=report)
    if can_draw():
        figures = folder / "figures"
        figures.mkdir(exist_ok=True)
        if (folder / "metrics.jsonl").is_file():
            draw_training(folder / "metrics.jsonl", figures / "training.png")
        if any(entry.epsilon for entry in results.evaluations):
            draw_robustness(results, figures / "robustness.png")
        if pictures is not None:
            draw_adversarial(*pictures, model.class_names, figures / "adversarial.png")
    render_card(folder)
    if spare := _spare(folder):
        log.info("%s", spare)


def _spare(folder: Path) -> str | None:
    """What a finished run needs no longer, in a sentence; None if there is nothing."""
    held = {name: sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()) for name in ("checkpoints", "head")}
    named = [str(folder / name) for name, size in held.items() if size > 0]
    if not named:
        return None
    return (
        f"{' and '.join(named)} {'hold' if len(named) > 1 else 'holds'} {sum(held.values()) / 1e6:,.1f} MB that only a training that is resumed or "
        "repeated needs: the exported model, its record and its card do without; delete them when you are done"
    )


def complete_classifier(
    folder: Path,
    classifier: PixelModel,
    data: ImageData,
    test: Store,
    attacks: Sequence[PGD],
    making: Making,
    *,
    batch_size: int | None,
) -> None:
    """Measure a classifier, clean and under ``attacks``, on all test images; then complete its run folder.

    Args:
        folder: The run folder.
        classifier: What was trained.
        data: What it was trained and is measured on.
        test: The test images.
        attacks: The last one is the one that the card shows pictures of.
        making: How it was made; the configuration's ``seed`` is that of the random starts.
        batch_size: Images attacked at once (default: by their pixels, so that two runs evaluate alike).
    """
    assert data.test.labels is not None
    classifier.eval()
    attacks = distinct(attacks)
    log.info("evaluating on %d test images: clean, and PGD-%d at %d epsilons", len(test), attacks[-1].steps, len(attacks))
    device = next(classifier.parameters()).device
    at_once = batch_size or images_at_once((data.image_size, data.image_size), device)
    results = evaluate(
        classifier, test, data.test.labels, attacks=attacks, seed=making.config.seed, search=SearchOptions(batch_size=at_once),
        context=Context(pictured=-1, progress=True, say_doubts=False),
    )  # fmt: skip
    results.doubts += against_the_start(making.facts.get("start") or {}, making.cost)
    pictures = choose_pictures(test, results)
    shown = None if pictures is None else (pictures, attacks[-1])
    complete_run(folder, classifier, results, making, dataset=data.facts(data.test, data.test_split), pictures=shown)
    results.say()


def complete_twin(
    run: Run,
    student: PixelModel,
    teacher: PixelModel,
    measured: BeforeAfter | None,
    making: Making,
    *,
    attack: AttackOptions,
    split: tuple[ImageSet, str],
    data: ImageData,
) -> None:
    """Measure a robust twin beside its teacher, and complete its run folder.

    Args:
        run: Whose folder and seed.
        student: What was trained.
        teacher: What it was to be like.
        measured: On what, and against what; None if there are no images to measure on.
        making: How the student was made.
        attack: What was trained against; it climbs the features here too, or PGD does where that was N-FGSM.
        split: The images measured on, and what they are in words.
        data: Whose images.
    """
    student.eval()
    results, report, shown = Results([], [], run.device.type, run.options.seed), None, None
    if measured is not None:
        log.info("measuring teacher and twin on %d images", len(measured.positions))
        before, after = measured.accuracies(teacher), measured.accuracies(student)
        if after is not None:
            results, pictures = after, choose_pictures(measured.images, after)
            shown = None if pictures is None else (pictures, measured.attacks[-1])
        watched = Watched(teacher, measured.images, measured.positions, run.options.seed)
        comparable = (teacher, student) if student.num_features == teacher.num_features else (teacher,)
        found = {
            "n": len(measured.positions),
            "accuracy": [] if before is None or after is None else [asdict(entry) for entry in before.evaluations],
            "agreement": [[asdict(entry) for entry in measured.agreements(model, teacher)] for model in (teacher, student)],
            "displacement": [round(watched.measure(model, attack.climber, own=True)["displacement"], 4) for model in comparable],
        }
        report = {"before_after": found}
        _say_twin(found, results)
        _say_radius(found, attack, len(teacher.class_names))
    facts = {**data.facts(*split), **({"n": len(measured.positions)} if measured is not None else {})}
    complete_run(run.folder, student, results, making, dataset=facts, report=report, pictures=shown)


def _say_twin(found: Mapping[str, Any], results: Results) -> None:
    if not found["accuracy"]:  # a teacher without classes
        results.say()
    for entry, now in zip(found["accuracy"], results.evaluations, strict=bool(found["accuracy"])):
        log.info("%s, before: %.2f %%", now, 100 * entry["accuracy"])
    for before, after in zip(*found["agreement"], strict=True):
        words = "clean" if before["name"] == "clean" else f"under {before['name']}, epsilon {spelled(before['epsilon'])}"
        log.info("images with the teacher's answer, %s: %.2f %% before, %.2f %% after", words, 100 * before["accuracy"], 100 * after["accuracy"])
    log.info("features move by %s of their spread under attack (before, after)", " and ".join(f"{value:.3f}" for value in found["displacement"]))


def _say_radius(found: Mapping[str, Any], attack: AttackOptions, classes: int) -> None:
    """Say where the radius was chosen badly, by how often the teacher's answers stand its attack before and after."""
    attacked = [entries[-1]["accuracy"] for entries in found["agreement"] if entries]
    if attacked:
        clean, n = found["agreement"][1][0]["accuracy"], found["n"]
        radius, changed = f"--attack.epsilon {spelled(attack.epsilon)}", 1 - attacked[0]
        poor = poor_radius(radius, clean, attacked[1], 1 / classes, n, "the teacher's answers", changed=changed)
        if poor:
            log.warning("%s", poor)


def export_best(run: Run, objective: Objective, trained: Trained, facts: Mapping[str, Any], head: bool = True) -> None:
    """Leave the best epoch's weights in ``objective``, and export the last one's beside them into ``last/``.

    Args:
        run: Whose folder and checkpoints.
        objective: At the end of its training.
        trained: Says which epochs the best and the last are.
        facts: What ``config.json`` says of the model's making.
        head: Whether a classifier leaves as one.
    """
    best, last = trained.best, trained.last
    shutil.rmtree(run.folder / "last", ignore_errors=True)  # a shorter run's
    if best is not None and last is not None and best["step"] != last["step"]:
        model = copy.deepcopy(objective.exported)
        merge_lora(model)
        if not head:
            drop_head(model)
        (run.folder / "last").mkdir(exist_ok=True)
        export(model, run.folder / "last", {**facts, "step": last["step"]})
        run.checkpoints.load_weights(run.checkpoints.folder / f"step-{best['step']}", objective)
        which = "" if trained.lost is None else ", of those whose checkpoint is still there,"
        log.info("epoch %d was the best by validation%s and is exported; the last one is in %s", best["epoch"], which, run.folder / "last")
    merge_lora(objective.exported)
    if not head:
        drop_head(objective.exported)
