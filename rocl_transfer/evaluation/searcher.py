"""An attack's runs over the samples that stand: batches that memory holds, every finding judged and written down as it comes."""

import json
import logging
import time
from contextlib import suppress

import torch
from torch import Tensor

from rocl_transfer.attacks import Attack
from rocl_transfer.data import derive_seed
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.journal import Cost
from rocl_transfer.evaluation.judge import Judge
from rocl_transfer.evaluation.results import attack_key
from rocl_transfer.evaluation.search_network import ProgressNetwork, Rates

log = logging.getLogger("rocl_transfer")


class Searcher:
    """Has attacks search on a network.

    Args:
        network: Images (N, 3, H, W) -> logits (N, K), its passes counted.
        rates: What it was measured to take.
        judge: Says which of the findings are successes; its journal has what was found before.
        seed: Each sample's own seed follows from it and the position.

    Attributes:
        batch_size: Images at once.
        costs: What each attack took, earlier parts of the run counted in.
    """

    def __init__(self, network: ProgressNetwork, rates: Rates, judge: Judge, seed: int) -> None:
        self.network, self.judge, self.seed = network, judge, seed
        self.batch_size, self.enough = rates.size, rates.enough
        self.costs: dict[str, Cost] = {}

    def run(self, attack: Attack, samples: Tensor, images: Tensor, standing: Tensor, keep: str | None = None) -> Tensor:
        """(N,): lowest margins found; inf if there was no search. Runs of one sample wait for each other only as far as batches go.

        Args:
            attack: What searches.
            samples: (N,) positions.
            images: (N, 3, H, W), float32.
            standing: (N,) bool: which are searched.
            keep: Put a few of the images that break a sample aside under this name.

        Raises:
            UserError: The memory does not hold one image.
        """
        journal = self.judge.journal
        name, lowest = f"{attack_key(attack)} {json.dumps(attack.conditions())}", torch.full((len(samples),), torch.inf)
        alive = torch.nonzero(standing).flatten()
        pending = torch.stack([torch.arange(attack.runs).repeat_interleave(len(alive)), alive.repeat(attack.runs)])
        known = [journal.margin(name, run, int(samples[row])) for run, row in pending.T.tolist()]
        for (_, row), value in zip(pending.T.tolist(), known, strict=True):
            lowest[row] = min(float(lowest[row]), torch.inf if value is None else value)
        pending = pending[:, [value is None for value in known]]
        while (pending := pending[:, lowest[pending[1]] >= 0]).shape[1]:
            began, before = time.perf_counter(), self.network.passes
            runs, rows = pending[:, : self.batch_size]
            margins: Tensor | None = None
            with suppress(torch.OutOfMemoryError):
                margins = self._search(attack, samples[rows], images[rows.to(images.device)], runs, keep)
            if margins is None:  # only here has the traceback let go of the search's tensors, so that the memory can go back
                self._shrink()
                continue
            pending = pending[:, len(runs) :]
            lowest.scatter_reduce_(0, rows, margins, "amin")
            cost = Cost(time.perf_counter() - began, self.network.passes - before)
            journal.write(name, runs.tolist(), samples[rows].tolist(), margins.tolist(), cost)
        self.costs[attack_key(attack)] = journal.costs[name]
        return lowest

    def _shrink(self) -> None:
        """Continue with batches of half the size: attacks hold more than the pass that was measured."""
        if self.batch_size == 1:
            raise UserError("one image and what attacks keep for it do not fit in memory beside the network: use a device with more memory")
        self.batch_size //= 2
        self.enough = min(self.enough, self.batch_size)
        torch.cuda.empty_cache()
        log.warning("out of memory: continuing with %d images at once", self.batch_size)

    def _search(self, attack: Attack, samples: Tensor, clean: Tensor, runs: Tensor, keep: str | None) -> Tensor:
        """(n,): lowest margins of one volley, successes as the judge sees them."""
        labels = self.judge.labels
        seeds = torch.tensor([derive_seed(self.seed, sample) for sample in samples.tolist()], device=labels.device)
        truth = labels[samples.to(labels.device)]
        outcome = attack.search(self.network, clean, truth, runs.to(labels.device), seeds, self.enough)
        return self.judge.margins(attack, samples, clean, outcome, keep)
