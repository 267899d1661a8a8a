"""A new head is trained alone before everything trains, and what the start is worth is found out on the way.

A random head on a good backbone spoils it in the first steps (Kumar et al. 2022); and training against the whole epsilon from a start that is not
robust often dies, so that what follows must know what the start is.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Batches, Resident, Store
from rocl_transfer.models import PixelModel
from rocl_transfer.objectives import LinearProbe, RobustProbe
from rocl_transfer.options import Number
from rocl_transfer.training.optimization import OptimizerOptions
from rocl_transfer.training.run import Run
from rocl_transfer.training.settings import Monitor

log = logging.getLogger("rocl_transfer")

CLEAN_EPOCHS = 20  # of the head alone on cached features: seconds, to convergence
OPTIMIZER = OptimizerOptions(name="adamw", lr=Number(1e-2), weight_decay=Number(0), warmup_epochs=Number(0), warmup_lr=Number(0))
ROBUST_SHARE, ABOVE_CHANCE = 1 / 3, 1.5  # of the clean recall, and of guessing: what the robust recall must exceed for a start to be called robust


def is_robust(recall: float, robust_recall: float, classes: int) -> bool:
    """Whether a start is robust: by means over the classes, since one answer for all images is as robust as it is worthless.

    Args:
        recall: Accuracy on clean images, averaged over the classes.
        robust_recall: The same under attack.
        classes: K.
    """
    return robust_recall > max(recall * ROBUST_SHARE, ABOVE_CHANCE / classes)


@dataclass(frozen=True)
class HeadFirst:
    """Trains the new head of a trained backbone: on clean features and, if the backbone turns out to be robust, on adversarial images.

    Args:
        epochs: On adversarial images; 0 for no training of the head at all.
        kept: Whether the head is the model's own, so that it is as good as the backbone.
        watched: What the monitor's images are: validation, or training if there are none.
        classes: K.
        attack: What is trained against; None if nothing is.
    """

    epochs: int
    kept: bool
    watched: str
    classes: int
    attack: AttackOptions | None

    def __call__(
        self,
        run: Run,
        classifier: PixelModel,
        images: Store,
        features: Callable[[PixelModel, Store], Any],
        batches: Callable[[Store], Batches],
        monitor: Monitor,
    ) -> dict[str, Any]:
        """Train the head in place; what became of it, which is also left in ``head/start.json``.

        Args:
            run: The run whose folder it is done in. One that is resumed, and got past this, is told what was found then.
            classifier: A backbone with its head.
            images: The training images.
            features: Gives those (N, D) of a store's images.
            batches: This process's batches of a store of the training images, or of their features.
            monitor: Gives ``validation_recall`` and, under attack, ``validation_robust_recall``.
        """
        record = run.folder / "head" / "start.json"
        if run.check() and record.is_file():
            found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            return found
        facts = asdict(_Start("kept" if self.kept else "new", CLEAN_EPOCHS if self.epochs else 0, watched=self.watched))
        if self.epochs:
            log.info("the head is trained first: %d epochs on features of the frozen backbone", CLEAN_EPOCHS)
            self._train(run, "clean", LinearProbe(classifier), batches(Resident(features(classifier, images))), CLEAN_EPOCHS)
        if (self.epochs or self.kept) and self.attack is not None:
            seen = run.mean(monitor())
            facts |= {**seen, "robust": is_robust(seen["validation_recall"], seen["validation_robust_recall"], self.classes)}
            log.info("the start is %s: %s", "robust" if facts["robust"] else "not robust", ", ".join(f"{k} {v:.4f}" for k, v in seen.items()))
            if facts["robust"] and self.epochs:
                facts["adversarial_epochs"] = self.epochs
                log.info("then %d epochs on adversarial images through the frozen backbone", self.epochs)
                self._train(run, "robust", RobustProbe(classifier, self.attack), batches(images), self.epochs)
        if run.is_main:
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(facts), encoding="utf-8")
        return facts

    def _train(self, run: Run, name: str, objective: LinearProbe | RobustProbe, batches: Batches, epochs: int) -> None:
        run.train_before(f"head/{name}", objective, batches, OPTIMIZER.create(objective), OPTIMIZER.over(epochs))


@dataclass(frozen=True)
class _Start:
    head: str
    clean_epochs: int
    adversarial_epochs: int = 0
    robust: bool = False
    watched: str = "validation"
