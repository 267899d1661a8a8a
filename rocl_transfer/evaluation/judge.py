"""The judge: the model itself, in float32, says what is right on clean images, and which of an attack's findings are successes."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import Attack, margin, threat_model
from rocl_transfer.attacks.search import Outcome
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.journal import Cost, Journal

CLEAN = "clean"
_PICTURES = 128  # adversarial images kept to be shown, of all classes
_SAME = 0.01  # of the spread of an image's logits: another batch size or machine moves a clean margin by far less


@dataclass(frozen=True)
class CleanAnswers:
    """What the model makes of clean images.

    Attributes:
        margins: (N,), negative where it is wrong.
        spread: (N,): from an image's lowest logit to its highest.
        answers: (N,): the class given.
        classes: K.
    """

    margins: Tensor
    spread: Tensor
    answers: Tensor
    classes: int


class Judge:
    """Asks the model itself.

    Args:
        model: In eval mode with frozen parameters.
        labels: (all,), int64, on the model's device.
        journal: What was found before, and what is found.

    Attributes:
        seconds: Spent on clean images.
        refuted: Successes of a search that it did not share.
        found: For a few samples that the pictured attack broke, the image that did and the answer to it.
    """

    def __init__(self, model: nn.Module, labels: Tensor, journal: Journal) -> None:
        self.model, self.labels, self.journal = model, labels, journal
        self.seconds, self.refuted = 0.0, 0
        self.found: dict[int, tuple[Tensor, int]] = {}
        self.kept: Counter[int] = Counter()

    def recall(self, attack: str) -> None:
        """Begin with the images that were kept of ``attack`` before."""
        self.found = self.journal.found(attack)
        self.kept.update(int(self.labels[sample]) for sample in self.found)

    def clean(self, samples: Tensor, images: Tensor, at_once: int) -> CleanAnswers:
        """What ``images`` (N, 3, H, W) at the positions ``samples`` get, ``at_once`` a pass.

        Raises:
            UserError: The logits are not finite, labels are not the model's classes, or the journal is of another network or other images.
        """
        began, found, spread, answers, classes = time.perf_counter(), [], [], [], 0
        for chosen in torch.arange(len(samples)).split(at_once):
            logits = self.model(images[chosen]).float()
            truth = self.labels[samples[chosen].to(self.labels.device)]
            if not logits.isfinite().all():
                raise UserError("the model's logits are not finite on clean images: nothing can be measured of it")
            classes = logits.shape[1]
            if truth.min() < 0 or truth.max() >= classes:
                raise UserError(f"labels run from {int(truth.min())} to {int(truth.max())}, the model has {classes} classes, 0 and up")
            spread.append(logits.amax(1) - logits.amin(1))
            answers.append(logits.argmax(1).cpu())
            # A tie is settled as by argmax: the first class wins.
            found.append(torch.where(logits.argmax(1) == truth, margin(logits, truth).clamp_min(0), margin(logits, truth).clamp_max(-1e-30)))
        margins = torch.cat(found)
        self.seconds += time.perf_counter() - began
        seen = CleanAnswers(margins.cpu(), torch.cat(spread).cpu().clamp_min(1e-30), torch.cat(answers), classes)
        self._write_clean(samples, seen)
        return seen

    def _write_clean(self, samples: Tensor, seen: CleanAnswers) -> None:
        """Into the journal, whose earlier findings must be of this network and these images."""
        known = [self.journal.margin(CLEAN, 0, sample) for sample in samples.tolist()]
        before = torch.tensor([torch.nan if value is None else value for value in known])
        if changed := int(((before - seen.margins).abs() > _SAME * seen.spread).sum()):
            raise UserError(
                f"the verdicts kept in this folder belong to another network or other images: {changed} of {len(samples)} clean images are answered "
                "otherwise; choose another --output_dir, or --resume none"
            )
        if before.isnan().any():
            self.journal.write(CLEAN, [0] * len(samples), samples.tolist(), seen.margins.tolist(), Cost(passes=len(samples)))

    def margins(self, attack: Attack, samples: Tensor, clean: Tensor, outcome: Outcome, keep: str | None) -> Tensor:
        """(n,): lowest margins of what ``attack`` found around the images ``clean`` (n, 3, H, W), its successes as the model sees them.

        Args:
            attack: What searched.
            samples: (n,) positions; one may stand more than once.
            clean: (n, 3, H, W).
            outcome: What it found.
            keep: Put a few of the images aside under this name.
        """
        margins, broken = outcome.margin.clone(), outcome.broken
        if broken.any():
            found, truth = outcome.adversarial[broken], self.labels[samples.to(self.labels.device)][broken]
            far = threat_model(attack.norm, 1.0).length(found - clean[broken]).amax() > attack.epsilon * (1 + 1e-4) + 1e-6
            if far or found.min() < 0 or found.max() > 1:
                raise RuntimeError(f"{attack.name} returned an image outside of its ball")
            logits = self.model(found).float()
            judged = margin(logits, truth)
            wrong = logits.argmax(1) != truth
            self.refuted += int((~wrong).sum())
            if keep is not None:
                self._keep(keep, samples[broken.cpu()][wrong.cpu()].tolist(), found[wrong], logits[wrong])
            margins[broken] = torch.where(wrong, judged.clamp_max(-1e-30), judged.clamp_min(0))
        return margins.cpu()

    def _keep(self, attack: str, samples: Sequence[int], found: Tensor, logits: Tensor) -> None:
        """Put a few of the images that broke a sample aside, of every class two or more."""
        each = max(2, min(8, _PICTURES // logits.shape[1]))
        for row, sample in enumerate(samples):
            label = int(self.labels[sample])
            if sample not in self.found and self.kept[label] < each and len(self.found) < _PICTURES:
                self.found[sample] = found[row].detach().cpu().clone(), int(logits[row].argmax())
                self.kept[label] += 1
                self.journal.keep(attack, sample, *self.found[sample])
