"""Attacks run over many samples: those that stand are attacked on; how far it is, of what it would take if every sample stood."""

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rocl_transfer.attacks import Attack
from rocl_transfer.bars import Bar
from rocl_transfer.data import Store
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.evaluation.journal import Cost
from rocl_transfer.evaluation.judge import CLEAN, Judge
from rocl_transfer.evaluation.options import SearchOptions
from rocl_transfer.evaluation.protocols import Ensemble, parts_of
from rocl_transfer.evaluation.results import attack_key
from rocl_transfer.evaluation.samples import pixels_of
from rocl_transfer.evaluation.search_network import ProgressNetwork, Rates, measure, search_network
from rocl_transfer.evaluation.searcher import Searcher

log = logging.getLogger("rocl_transfer")

_HELD = 1024  # samples at once: as some leave, batches can still be filled
_HELD_BYTES = 2**28  # of their pixels


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What some samples stood.

    Attributes:
        samples: (N,) positions.
        answers: (N,): the class given to each clean image.
        classes: K.
        standing: For each attack (parts of an ensemble: this one and all before), (N,) bool: still right.
        margin: (N,): lowest margin that the first of the attacks found, as a share of the spread of the clean image's logits; negative where broken.
        broken_by: Which part of it broke the sample, or ``clean``.
    """

    samples: Tensor
    answers: Tensor
    classes: int
    standing: dict[str, Tensor]
    margin: Tensor
    broken_by: list[str | None]


@dataclass(frozen=True, kw_only=True)
class Verdicts(Standing):
    """The verdicts of one process's samples.

    Attributes:
        refuted: Successes of a search that the judge did not share.
        costs: What each attack took, earlier parts of the run counted in.
        found: For a few samples that the pictured attack broke, the image that did and the answer to it.
    """

    refuted: int
    costs: dict[str, Cost]
    found: dict[int, tuple[Tensor, int]]


class Forecast:
    """How far an evaluation is: images that need no passes any more, of all.

    Args:
        attacks: In order.
        rates: What a pass takes.
        bar: Counts all images.
    """

    def __init__(self, attacks: Sequence[Attack | Ensemble], rates: Rates, bar: Bar) -> None:
        self.rates, self.bar = rates, bar
        self.backward = rates.gradient / rates.forward  # a pass with gradient, in passes without
        self.costs = [[self._cost(part) for part in parts_of(attack)] for attack in attacks]
        self.whole = max(sum(map(sum, self.costs)), 1.0)  # passes that an image costs which no attack breaks

    def _cost(self, attack: Attack) -> float:
        forward, gradient = attack.passes
        return (forward + gradient * self.backward) * attack.runs

    def say(self, right: int, seen: int, count: int) -> None:
        """Log how long ``count`` images take if no attack breaks anything, by the share of the first ``seen`` that are ``right``."""
        minutes = datetime.timedelta(seconds=round(self.whole * self.rates.forward * right * count / seen))
        log.info(
            "at most %s if every image stood: %d of the first %d are right, a pass takes %.2g ms per image, %.2g ms with its gradient, %d at once",
            minutes, right, seen, 1e3 * self.rates.forward, 1e3 * self.rates.forward * self.backward, self.rates.size,
        )  # fmt: skip

    def spend(self, passes: float) -> None:
        """So many passes forward were made."""
        self.bar.update(passes / self.whole)

    def after(self, attack: int, part: int) -> float:
        """Passes that a sample still costs which stands to the end of the ensemble, after ``part`` of the ``attack``."""
        return sum(self.costs[attack][part + 1 :])

    def beyond(self, attack: int) -> float:
        """Passes of the attacks after ``attack``, which begin again with every sample that was right."""
        return sum(map(sum, self.costs[attack + 1 :]))

    def done(self, images: float) -> None:
        """So many images are done: what was broken, or found before, needs no passes any more."""
        self.bar.to(max(images, self.bar.done))


class Engine:
    """Has attacks, one after the other, search around the samples that stand.

    Args:
        judge: Says what is right.
        searcher: Runs an attack.
        forecast: Is told how far it is.
        attacks: In order.
        pictured: Which of them keeps a few of the images that it finds; None if none does.
    """

    def __init__(
        self, judge: Judge, searcher: Searcher, forecast: Forecast, attacks: Sequence[Attack | Ensemble], pictured: Attack | Ensemble | None
    ) -> None:  # fmt: skip
        self.judge, self.searcher, self.forecast, self.attacks, self.pictured = judge, searcher, forecast, attacks, pictured

    def run(self, samples: Tensor, images: Tensor, begun: int, count: int) -> Standing:
        """Clean answers, then every attack on the samples that were right.

        Args:
            samples: (N,) positions.
            images: (N, 3, H, W), float32.
            begun: How many samples of this process were before these.
            count: How many it has.
        """
        clean = self.judge.clean(samples, images, self.searcher.batch_size)
        right, margin = clean.margins >= 0, clean.margins
        standing, broken_by = {CLEAN: right}, [None if r else CLEAN for r in right.tolist()]
        whole, ended = self.forecast.whole, begun + len(samples)
        if not begun:
            self.forecast.say(int(right.sum()), len(right), count)
        self.forecast.done(ended - int(right.sum()))
        for number, attack in enumerate(self.attacks):
            still, afterwards = right, int(right.sum()) * self.forecast.beyond(number)
            keep = attack_key(attack) if attack is self.pictured else None
            for place, part in enumerate(parts_of(attack)):
                lowest = self.searcher.run(part, samples, images, still, keep)
                still = standing[attack_key(part)] = still & ~(lowest < 0)
                if attack is self.attacks[0]:
                    margin = torch.where(right, torch.minimum(margin, lowest), margin)
                    for position in torch.nonzero(lowest < 0).flatten().tolist():
                        broken_by[position] = broken_by[position] or attack_key(part)
                self.forecast.done(ended - (int(still.sum()) * self.forecast.after(number, place) + afterwards) / whole)
            standing[attack_key(attack)] = still
        return Standing(
            samples=samples, answers=clean.answers, classes=clean.classes, standing=standing, margin=margin / clean.spread, broken_by=broken_by
        )


def run_attacks(
    judge: Judge, images: Store, samples: Tensor, attacks: Sequence[Attack | Ensemble], *, seed: int, search: SearchOptions, pictured: int = 0,
    progress: bool = False,
) -> Verdicts:  # fmt: skip
    """Run attacks over the samples of one process.

    Args:
        judge: The model, the labels, and the journal of what was found before.
        images: All images.
        samples: (N,) positions of those that this process attacks.
        attacks: In order.
        seed: Each sample's own seed follows from it and the position.
        search: How.
        pictured: Which of the attacks keeps a few of the images that it finds.
        progress: Show a bar.
    """
    shown = attacks[pictured] if attacks else None
    if shown is not None:
        judge.recall(attack_key(shown))
    first = next(iter(images.batches([samples[:1]])))
    # Images of 224 px fill 0.6 GB by the thousand, beside what the attacks hold.
    plan = samples.split(max(16, min(_HELD, _HELD_BYTES // (4 * first.numel()))))
    batches = map(pixels_of, images.batches(plan))
    pixels = next(batches)
    network, rates = _arrange(judge, pixels, len(samples), [part for attack in attacks for part in parts_of(attack)], search)
    found: list[Standing] = []
    with Bar(len(samples), "evaluating", shown=progress) as bar:
        forecast = Forecast(attacks, rates, bar)
        searcher = Searcher(ProgressNetwork(network, forecast.spend, forecast.backward), rates, judge, seed)
        engine = Engine(judge, searcher, forecast, attacks, shown)
        for number, chunk in enumerate(plan):
            pixels = next(batches) if number else pixels  # the first are those that the network was measured on
            found.append(engine.run(chunk, pixels, sum(map(len, plan[:number])), len(samples)))
    return Verdicts(
        samples=samples, answers=torch.cat([part.answers for part in found]), classes=found[0].classes,
        standing={name: torch.cat([part.standing[name] for part in found]) for name in found[0].standing},
        margin=torch.cat([part.margin for part in found]), broken_by=[name for part in found for name in part.broken_by],
        refuted=judge.refuted, costs={CLEAN: Cost(judge.seconds, len(samples)), **searcher.costs}, found=judge.found,
    )  # fmt: skip


def _arrange(judge: Judge, images: Tensor, count: int, parts: Sequence[Attack], search: SearchOptions) -> tuple[torch.nn.Module, Rates]:
    """The network that attacks search on, and what it takes: arranged and measured on ``images``, as far as what follows is worth it."""
    few = images[: min(16, images_at_once(images.shape, images.device))]
    foreseen = count * sum((forward + 3 * gradient) * part.runs for part in parts for forward, gradient in [part.passes])
    together = min(_HELD, len(images) * max((part.runs for part in parts), default=1))
    as_it_is = search.engine == "reference"
    network = judge.model if as_it_is else search_network(judge.model, few, search.compile, search.search_precision, foreseen)
    with torch.no_grad():
        return network, measure(network, images[:4096], search.batch_size, together, foreseen)
