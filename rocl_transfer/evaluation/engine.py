"""Attacks run over many samples: those that stand are attacked on, every success is judged by the model itself, all is written down as it comes."""

import datetime
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rocl_transfer.attacks import Attack, Network, margin, threat_model
from rocl_transfer.bars import Bar
from rocl_transfer.data import Store, derive_seed
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.journal import Journal
from rocl_transfer.evaluation.network import Metered, measure, search_network
from rocl_transfer.evaluation.protocols import Ensemble, parts_of

log = logging.getLogger("rocl_transfer")

CLEAN = "clean"
_HELD = 1024  # samples at once: as some leave, batches can still be filled
_HELD_BYTES = 2**28  # of their pixels
_PICTURES = 128  # adversarial images kept to be shown, of all classes
_SAME = 0.01  # of the spread of an image's logits: another batch size or machine moves a clean margin by far less


def key(attack: Attack | Ensemble) -> str:
    """What verdicts call an attack."""
    return f"{attack.name} {attack.norm} {attack.epsilon:.6g}"


@dataclass
class Verdicts:
    """Of one process's samples.

    Attributes:
        samples: (N,) positions.
        standing: For each attack (parts of an ensemble: this one and all before), (N,) bool: still right.
        margin: (N,): lowest margin that the first of the attacks found, as a share of the spread of the clean image's logits; negative where broken.
        broken_by: Which part of it broke the sample, or ``clean``.
        refuted: Successes of a search that the judge did not share.
        seconds: Spent on each attack, earlier parts of the run counted in.
        found: For a few samples that the pictured attack broke, the image that did and the answer to it.
        answers: (N,): the class given to each clean image.
        classes: K.
    """

    samples: Tensor
    standing: dict[str, Tensor] = field(default_factory=dict)
    margin: Tensor = field(default_factory=lambda: torch.empty(0))
    broken_by: list[str | None] = field(default_factory=list)
    refuted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    found: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    answers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    classes: int = 0


class Engine:
    """Runs attacks over the samples of one process.

    Args:
        model: The judge, in eval mode with frozen parameters.
        images: All images.
        labels: (all,), int64, on the model's device.
        samples: (N,) positions of those that this process attacks.
        seed: Each sample's own seed follows from it and the position.
        journal: What was found before, and what is found.
        batch_size: Images at once (default: measured).
        compiled: Compile the network that is searched on.
        precision: fp32, or bf16: of the search.
        plain: Search on the model as it is.
        pictured: Which of the attacks keeps a few of the images that it finds.
        progress: Show a bar.
    """

    def __init__(
        self, model: nn.Module, images: Store, labels: Tensor, samples: Tensor, *, seed: int, journal: Journal, batch_size: int | None = None,
        compiled: bool = False, precision: str = "fp32", plain: bool = False, pictured: int = 0,
        progress: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.images, self.labels, self.samples = model, images, labels, samples
        self.seed, self.journal, self.batch_size = seed, journal, batch_size
        self.compiled, self.precision, self.plain, self.pictured = compiled, precision, plain, pictured
        self.bar = Bar(len(samples), "evaluating", shown=progress)
        self.network: Network | None = None
        self.verdicts = Verdicts(samples)
        self.kept: Counter[int] = Counter()

    def run(self, attacks: Sequence[Attack | Ensemble]) -> Verdicts:
        """Clean answers, then every attack on the samples that were right."""
        parts: list[Verdicts] = []
        if attacks:
            self.verdicts.found = self.journal.found(key(attacks[self.pictured]))
            self.kept.update(int(self.labels[sample]) for sample in self.verdicts.found)
        # Images of 224 px fill 0.6 GB by the thousand, beside what the attacks hold.
        first = next(iter(self.images.stream([self.samples[:1]])))
        plan = self.samples.split(max(16, min(_HELD, _HELD_BYTES // (4 * first.numel()))))
        for number, (chunk, batch) in enumerate(zip(plan, self.images.stream(plan), strict=True)):
            pixels = pixels_of(batch)
            if self.network is None:
                self._prepare(pixels, [part for attack in attacks for part in parts_of(attack)])
            parts.append(self._chunk(chunk, pixels, attacks, sum(map(len, plan[number + 1 :]))))
        self.bar.close()
        self.verdicts.standing = {name: torch.cat([part.standing[name] for part in parts]) for name in parts[0].standing}
        self.verdicts.margin = torch.cat([part.margin for part in parts])
        self.verdicts.broken_by = [name for part in parts for name in part.broken_by]
        return self.verdicts

    def _prepare(self, images: Tensor, parts: Sequence[Attack]) -> None:
        """Arrange and measure the network, as far as what follows is worth it."""
        few = images[: min(16, images_at_once(images.shape, images.device))]
        foreseen = len(self.samples) * sum((forward + 3 * gradient) * part.runs for part in parts for forward, gradient in [part.passes])
        together = min(_HELD, len(images) * max((part.runs for part in parts), default=1))
        network = self.model if self.plain else search_network(self.model, few, self.compiled, self.precision, foreseen)
        with torch.no_grad():
            rates = measure(network, images[:4096], self.batch_size, together, foreseen)
        self.batch_size, self.enough = rates.size, rates.enough
        self.forward, self.backward = rates.forward, rates.gradient / rates.forward
        self.network = Metered(network, lambda passes: self.bar.update(passes / self.whole), self.backward)
        self.whole, self.foretold = 1.0, False  # passes that an image costs which no attack breaks

    def cost(self, attack: Attack) -> float:
        """Passes forward of one run on one sample that stands."""
        forward, gradient = attack.passes
        return forward + gradient * self.backward

    def _chunk(self, samples: Tensor, images: Tensor, attacks: Sequence[Attack | Ensemble], later: int) -> Verdicts:
        verdicts = Verdicts(samples)
        margins, spread = self._clean(samples, images)
        right = margins >= 0
        verdicts.margin, verdicts.standing[CLEAN] = margins.clone(), right
        broken_by: list[str | None] = [None if r else CLEAN for r in right.tolist()]
        costs = [[self.cost(part) * part.runs for part in parts_of(attack)] for attack in attacks]
        self.whole = max(sum(map(sum, costs)), 1.0)
        self._foresee(self.whole, int(right.sum()), len(right), later)
        begun = len(self.samples) - later - len(samples)
        self._done(begun + len(samples) - int(right.sum()))
        pictured = attacks[self.pictured] if attacks else None
        for number, attack in enumerate(attacks):
            standing, afterwards = right, int(right.sum()) * sum(map(sum, costs[number + 1 :]))
            for place, part in enumerate(parts_of(attack)):
                lowest = self._attack(part, samples, images, standing, key(attack) if attack is pictured else None)
                standing = standing & ~(lowest < 0)
                verdicts.standing[key(part)] = standing
                if attack is attacks[0]:
                    verdicts.margin = torch.where(right, torch.minimum(verdicts.margin, lowest), verdicts.margin)
                    for position in torch.nonzero(lowest < 0).flatten().tolist():
                        broken_by[position] = broken_by[position] or key(part)
                ahead = int(standing.sum()) * sum(costs[number][place + 1 :]) + afterwards
                self._done(begun + len(samples) - ahead / self.whole)
            verdicts.standing[key(attack)] = standing
        verdicts.margin, verdicts.broken_by = verdicts.margin / spread, broken_by
        return verdicts

    def _foresee(self, ahead: float, right: int, seen: int, later: int) -> None:
        """Say, once, how long it will take if no attack breaks anything."""
        passes = ahead * right * (1 + later / seen)
        if not self.foretold:
            self.foretold = True
            minutes = datetime.timedelta(seconds=round(passes * self.forward))
            log.info(
                "at most %s if every image stood: %d of the first %d are right, a pass takes %.2g ms an image, %.2g ms with its gradient, %d at once",
                minutes, right, seen, 1e3 * self.forward, 1e3 * self.forward * self.backward, self.batch_size,
            )  # fmt: skip

    def _done(self, images: float) -> None:
        """So many images are done: what was broken, or found before, needs no passes any more."""
        self.bar.to(max(images, self.bar.done))

    def _clean(self, samples: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) each: margins on clean images, and the spread of their logits."""
        assert self.batch_size is not None
        began, found, spread, answers = time.perf_counter(), [], [], [self.verdicts.answers]
        for chosen in torch.arange(len(samples)).split(self.batch_size):
            logits = self.model(images[chosen]).float()
            truth = self.labels[samples[chosen].to(self.labels.device)]
            if not logits.isfinite().all():
                raise UserError("the model's logits are not finite on clean images: nothing can be measured of it")
            if truth.min() < 0 or truth.max() >= logits.shape[1]:
                raise UserError(f"labels run from {int(truth.min())} to {int(truth.max())}, the model has {logits.shape[1]} classes, 0 and up")
            spread.append(logits.amax(1) - logits.amin(1))
            answers.append(logits.argmax(1).cpu())
            self.verdicts.classes = logits.shape[1]
            # A tie is settled as by argmax: the first class wins.
            found.append(torch.where(logits.argmax(1) == truth, margin(logits, truth).clamp_min(0), margin(logits, truth).clamp_max(-1e-30)))
        margins, self.verdicts.answers = torch.cat(found), torch.cat(answers)
        self.verdicts.seconds[CLEAN] = self.verdicts.seconds.get(CLEAN, 0.0) + time.perf_counter() - began
        margins, spreads = margins.cpu(), torch.cat(spread).cpu().clamp_min(1e-30)
        known = [self.journal.margin(CLEAN, 0, sample) for sample in samples.tolist()]
        before = torch.tensor([torch.nan if value is None else value for value in known])
        if changed := int(((before - margins).abs() > _SAME * spreads).sum()):
            raise UserError(
                f"the findings written down here are of another network or other images: {changed} of {len(samples)} clean images are answered "
                "otherwise; choose another --output_dir, or --resume none"
            )
        if before.isnan().any():
            self.journal.write(CLEAN, [0] * len(samples), samples.tolist(), margins.tolist(), 0.0)
        return margins, spreads

    def _attack(self, attack: Attack, samples: Tensor, images: Tensor, standing: Tensor, keep: str | None) -> Tensor:
        """(N,): lowest margins found; inf where there was no search. Runs of one sample wait for each other only as far as batches go."""
        assert self.batch_size is not None
        name, lowest = f"{key(attack)} {json.dumps(attack.conditions())}", torch.full((len(samples),), torch.inf)
        alive = torch.nonzero(standing).flatten()
        pending = torch.stack([torch.arange(attack.runs).repeat_interleave(len(alive)), alive.repeat(attack.runs)])
        known = [self.journal.margin(name, run, int(samples[row])) for run, row in pending.T.tolist()]
        for (_, row), value in zip(pending.T.tolist(), known, strict=True):
            lowest[row] = min(float(lowest[row]), torch.inf if value is None else value)
        pending = pending[:, [value is None for value in known]]
        while (pending := pending[:, lowest[pending[1]] >= 0]).shape[1]:
            began = time.perf_counter()
            runs, rows = pending[:, : self.batch_size]
            margins: Tensor | None = None
            with suppress(torch.OutOfMemoryError):
                margins = self._search(attack, samples[rows], images, rows, runs, keep)
            if margins is None:  # only here has the traceback let go of the search's tensors, so that the memory can go back
                self._shrink()
                continue
            pending = pending[:, len(runs) :]
            lowest.scatter_reduce_(0, rows, margins, "amin")
            self.journal.write(name, runs.tolist(), samples[rows].tolist(), margins.tolist(), time.perf_counter() - began)
        self.verdicts.seconds[key(attack)] = self.journal.seconds[name]
        return lowest

    def _shrink(self) -> None:
        """Go on with batches of half the size: attacks hold more than the pass that was measured."""
        assert self.batch_size is not None
        if self.batch_size == 1:
            raise UserError("the memory does not hold one image with what attacks need beside the network: use a device with more")
        self.batch_size //= 2
        self.enough = min(self.enough, self.batch_size)
        torch.cuda.empty_cache()
        log.warning("out of memory: going on with %d images at once", self.batch_size)

    def _search(self, attack: Attack, samples: Tensor, images: Tensor, rows: Tensor, runs: Tensor, keep: str | None) -> Tensor:
        """(n,): lowest margins of one volley, successes as the judge sees them."""
        assert self.network is not None
        device = self.labels.device
        seeds = torch.tensor([derive_seed(self.seed, sample) for sample in samples.tolist()], device=device)
        clean, truth = images[rows.to(images.device)], self.labels[samples.to(device)]
        outcome = attack.search(self.network, clean, truth, runs.to(device), seeds, self.enough)
        margins, broken = outcome.margin.clone(), outcome.broken
        if broken.any():
            found = outcome.adversarial[broken]
            far = threat_model(attack.norm, 1.0).length(found - clean[broken]).amax() > attack.epsilon * (1 + 1e-4) + 1e-6
            if far or found.min() < 0 or found.max() > 1:
                raise RuntimeError(f"{attack.name} returned an image outside of its ball")
            logits = self.model(found).float()
            judged = margin(logits, truth[broken])
            wrong = logits.argmax(1) != truth[broken]
            self.verdicts.refuted += int((~wrong).sum())
            if keep is not None:
                self._keep(keep, samples[broken.cpu()][wrong.cpu()].tolist(), found[wrong], logits[wrong])
            margins[broken] = torch.where(wrong, judged.clamp_max(-1e-30), judged.clamp_min(0))
        return margins.cpu()

    def _keep(self, attack: str, samples: Sequence[int], found: Tensor, logits: Tensor) -> None:
        """Put a few of the images that broke a sample aside, of every class two or more."""
        each = max(2, min(8, _PICTURES // logits.shape[1]))
        for row, sample in enumerate(samples):
            label = int(self.labels[sample])
            if sample not in self.verdicts.found and self.kept[label] < each and len(self.verdicts.found) < _PICTURES:
                kept = found[row].detach().cpu().clone(), int(logits[row].argmax())
                self.verdicts.found[sample] = kept
                self.kept[label] += 1
                self.journal.keep(attack, sample, *kept)


def pixels_of(batch: Tensor) -> Tensor:
    """A store's batch as float32 in [0, 1]."""
    images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
    if not (images.min() >= 0 and images.max() <= 1):
        raise UserError("images have pixels outside [0, 1]: leave the normalisation to the model, epsilon is in pixel units")
    return images
