"""Square Attack (Andriushchenko et al. 2020; for L1: Croce & Hein 2021): random search with square patches, no gradients."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rocl_transfer.attacks.draws import below, uniform
from rocl_transfer.attacks.margins import margin
from rocl_transfer.attacks.search import ActiveSamples, Attack, Network, Outcome, check_counts
from rocl_transfer.attacks.threat_models import ThreatModel, threat_model

_FIRST_SHARE = 0.8  # of the image's area that the first squares cover
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries

_BLOCK = 64  # queries whose draws are made together
_REPEATED = 0.05  # share of passes that looking ahead may cost
_RECENT = 32  # looks over which it is counted how often a proposal is kept
_SIGNS = 5  # where the signs begin in a query's draws


@dataclass
class _Best(ActiveSamples):
    seeds: Tensor
    at: Tensor
    lowest: Tensor  # its margin
    draws: Tensor  # (N, _BLOCK, _SIGNS + C), of the next queries: two corners, a turn, signs


class Square(Attack):
    """Keeps a patch where it lowers the margin. It needs no gradient, so it tells apart robust models from those that hide theirs.

    Args:
        epsilon: Radius in [0, 1] pixel units.
        norm: linf, l2 or l1.
        queries: Evaluations per sample.

    Raises:
        UserError: There is no such ball, or there are no queries.
    """

    def __init__(self, epsilon: float, norm: str = "linf", queries: int = 5000) -> None:
        self.epsilon, self.norm, self.queries = epsilon, norm, queries
        self.threat = threat_model(norm, epsilon)
        check_counts("Square", queries=queries)

    @property
    def name(self) -> str:
        """See :class:`Attack`."""
        return "square"

    @property
    def runs(self) -> int:
        """See :class:`Attack`."""
        return 1

    @property
    def passes(self) -> tuple[int, int]:
        """See :class:`Attack`."""
        return self.queries + 1, 0

    def conditions(self) -> dict[str, Any]:
        """See :class:`Attack`."""
        return {"queries": self.queries}

    def search(self, network: Network, images: Tensor, labels: Tensor, runs: Tensor, seeds: Tensor, at_once: int = 0) -> Outcome:
        """See :class:`Attack`."""
        outcome = Outcome(images)
        first, propose = (_stripes, _flat) if self.norm == "linf" else (_tiles, _bumps)
        # Channels last from the start: a query is one pass forward, and a copy of every proposal would show.
        images = images.contiguous(memory_format=torch.channels_last)
        start, channels = first(images, seeds, self.threat), images.shape[1]
        everything = torch.arange(len(images), device=images.device)
        lowest = margin(network(start), labels)
        lowest = torch.where(lowest.isnan(), torch.inf, lowest)  # of no answer any other is an improvement
        active = _Best(everything, images, labels, seeds, start, lowest, start)
        wrong = outcome.note(active.position, active.at, active.lowest)
        active.keep(~wrong)
        query, kept = 0, 1.0
        while query < self.queries and len(active):
            if query % _BLOCK == 0:
                active.draws = uniform(active.seeds, "square", (_BLOCK, _SIGNS + channels), query // _BLOCK)
            side = self._side(query, *images.shape[2:])
            ahead = self._ahead(query, min(at_once // len(active), int(2 * _REPEATED / max(kept, 1e-3))), *images.shape[2:])
            draws = active.draws[:, query % _BLOCK :][:, :ahead]
            share = _advance(network, active, draws, functools.partial(propose, active, side, self.threat))
            query, kept = query + ahead, kept + (share - kept) / _RECENT
            wrong = active.lowest < 0
            if wrong.any():
                outcome.note(active.position[wrong], active.at[wrong], active.lowest[wrong])
                active.keep(~wrong)
        outcome.note(active.position, active.at, active.lowest)
        return outcome

    def _ahead(self, query: int, most: int, height: int, width: int) -> int:
        """How many queries from this one on are looked at together: at most ``most``, whose draws are there and whose squares are of one size."""
        most = max(min(most, _BLOCK - query % _BLOCK, self.queries - query), 1)
        side = self._side(query, height, width)
        return next((number for number in range(1, most) if self._side(query + number, height, width) != side), most)

    def _side(self, query: int, height: int, width: int) -> int:
        """Side of the squares, in pixels: their area is halved again and again."""
        area = _FIRST_SHARE / 2 ** sum(query > limit for limit in _HALVED_AFTER) * height * width
        side = max(round(math.sqrt(area)), 1)
        if self.norm != "linf":
            side = max(side, 3) | 1  # bumps are odd
        return min(side, height, width)


def _advance(network: Network, active: _Best, draws: Tensor, propose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> float:
    """Take every sample through the queries of ``draws`` (N, Q, ...); returns the share of proposals that were kept.

    All Q proposals of a sample are looked at together, as if none of them were kept: that is rare (one in 30 after 300 queries, one in 400 after
    3,000), and a few images alone leave any device idle. After one that is kept, the later ones are made again from there, so the outcome is that of
    Q queries one after another.
    """
    settled = torch.zeros(len(active), dtype=torch.long, device=draws.device)  # the first query of each that is still open
    looked, kept, numbers = 0, 0, torch.arange(draws.shape[1], device=draws.device)
    while len(rows := (pairs := (settled[:, None] <= numbers).nonzero())[:, 0]):
        turns = pairs[:, 1]
        proposal, new = propose(rows, draws[rows, turns])
        margins = torch.full((len(rows),), torch.inf, device=draws.device)
        if len(new):
            margins[new] = margin(network(proposal[new]), active.labels[rows[new]])
        lower = (margins < active.lowest[rows]).nonzero().flatten()
        at = rows[lower]
        first = torch.ones_like(at, dtype=torch.bool)  # of each sample's: rows stand in order
        first[1:] = at[1:] != at[:-1]
        chosen, better = lower[first], at[first]
        active.at[better], active.lowest[better] = proposal[chosen], margins[chosen]
        settled.fill_(len(numbers))
        settled[better] = torch.where(margins[chosen] < 0, len(numbers), turns[chosen] + 1)
        looked, kept = looked + len(rows), kept + len(better)
    return kept / looked


def _corner(draws: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(N,) each: the upper row and left column of each sample's square, from draws (N, 2)."""
    return below(height - side + 1, draws[:, 0]), below(width - side + 1, draws[:, 1])


def _signs(draws: Tensor) -> Tensor:
    return (draws > 0.5).float().mul_(2).sub_(1)


def _stripes(images: Tensor, seeds: Tensor, threat: ThreatModel) -> Tensor:
    """L-inf's first point: vertical stripes of random sign."""
    _, channels, _, width = images.shape
    return (images + threat.epsilon * _signs(uniform(seeds, "square start", (channels, 1, width)))).clamp_(0, 1)


def _flat(active: _Best, side: int, threat: ThreatModel, rows: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """L-inf: a square on the ball's surface, one sign a channel; and the proposals in which it was not there already (15 of 16, digits at 16 px).

    ``rows`` says which sample each row of ``draws`` is for.
    """
    _, channels, height, width = active.images.shape
    square = _patch(*_corner(draws, side, height, width), side, channels)
    proposal, source = active.at[rows], (rows.view(-1, 1, 1, 1), *square[1:])
    flat = (active.images[source] + threat.epsilon * _signs(draws[:, _SIGNS:, None, None])).clamp_(0, 1)
    new = (flat != proposal[square]).flatten(1).any(1)
    proposal[square] = flat
    return proposal, new.nonzero().flatten()


def _tiles(images: Tensor, seeds: Tensor, threat: ThreatModel) -> Tensor:
    """L2's and L1's first point: five by five bumps of random sign."""
    _, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    corners = itertools.product(*(range((length % side) // 2, length - side + 1, side) for length in (height, width)))
    delta = torch.zeros_like(images)
    for number, (top, left) in enumerate(corners):
        draws = uniform(seeds, "square start", (1 + channels,), number)
        delta[:, :, top : top + side, left : left + side] = _bump(side, threat.norm, draws[:, 0]) * _signs(draws[:, 1:, None, None])
    return _on_surface(images, delta, threat)


def _on_surface(images: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    """The images perturbed by ``delta``, brought to the ball's whole length."""
    if threat.norm == "l2":
        delta = delta * (threat.epsilon / threat.length(delta).clamp_min(1e-12))
    return threat.project(images + delta, images)


def _bumps(active: _Best, side: int, threat: ThreatModel, rows: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """L2 and L1: what two squares hold of the ball's length, and what is left of it, goes into a bump in the first of them (algorithm 3).

    The bump is added to what stands in the square already, so that good patterns grow. ``rows`` says which sample each row of ``draws`` is for.
    """
    _, channels, height, width = active.images.shape
    norm, power = threat.norm, 2 if threat.norm == "l2" else 1
    size = _length_of_channels(norm)
    images = active.images[rows]
    delta = active.at[rows] - images
    to, source = (_patch(*_corner(draws[:, place:], side, height, width), side, channels) for place in (0, 2))
    spent = delta.clone()
    spent[to], spent[source] = 0, 0
    # What the two squares hold of each channel's length, and an equal share of what the ball has left.
    held = size(delta) ** power - size(spent) ** power
    left = (threat.epsilon**power - threat.length(delta) ** power).clamp_min(0) / channels
    there = delta[to]
    pattern = _bump(side, norm, draws[:, 4]) * _signs(draws[:, _SIGNS:, None, None]) + there / size(there).clamp_min(1e-12)
    length = (held.clamp_min(0) + left) ** (1 / power)
    # In L1 a bump may outgrow its share: the projection takes that from the small changes elsewhere, which keeps the perturbation sparse.
    spent[to] = pattern / size(pattern).clamp_min(1e-12) * length * (channels if norm == "l1" else 1)
    return _on_surface(images, spent, threat), torch.arange(len(spent), device=spent.device)


def _patch(top: Tensor, left: Tensor, side: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The index of each sample's square in (N, C, H, W)."""
    device, places = top.device, torch.arange(side, device=top.device)
    samples = torch.arange(len(top), device=device).view(-1, 1, 1, 1)
    rows, columns = (top[:, None] + places)[:, None, :, None], (left[:, None] + places)[:, None, None, :]
    return samples, torch.arange(channels, device=device).view(1, -1, 1, 1), rows, columns


def _length_of_channels(norm: str) -> Callable[[Tensor], Tensor]:
    return lambda delta: torch.linalg.vector_norm(delta, 2 if norm == "l2" else 1, dim=(2, 3), keepdim=True)


def _bump(side: int, norm: str, turn: Tensor) -> Tensor:
    """(N, 1, side, side), of length 1: a positive and a negative pyramid, side by side or one above the other as draws ``turn`` (N,) say."""
    pattern = _pair(side, norm, turn.device)
    return torch.where(turn.view(-1, 1, 1, 1) > 0.5, pattern.T, pattern)


@functools.cache
def _pair(side: int, norm: str, device: torch.device) -> Tensor:
    half = side // 2
    pattern = torch.cat([_pyramid(half, side, norm), -_pyramid(side - half, side, norm)])
    unit: Tensor = pattern / torch.linalg.vector_norm(pattern, 2 if norm == "l2" else 1)
    return unit.to(device)


def _pyramid(height: int, width: int, norm: str) -> Tensor:
    """(height, width), positive: sums of growing rectangles around the middle, each fainter than the one before."""
    pattern = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(height // 2, width // 2) + 1):
        rows, columns = slice(max(top - ring, 0), top + ring + 1), slice(max(left - ring, 0), left + ring + 1)
        pattern[rows, columns] += 1 / (ring + 1) ** (2 if norm == "l2" else 4)
    return pattern / torch.linalg.vector_norm(pattern, 2 if norm == "l2" else 1) if height else pattern
