"""The network that attacks search on: the same function as the model, arranged for speed. What they find is judged by the model itself."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rocl_transfer.attacks import Network
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.batch_sizes import images_at_once
from rocl_transfer.models import fold, hold_bf16
from rocl_transfer.training import warn_of_slow_bf16

log = logging.getLogger("rocl_transfer")

_LARGEST = 1024  # images at once: more than are held in memory for an attack
_AGREE = 1e-3  # of the logits' spread: more is another function, not another rounding
_BF16_TOLERANCE = 0.05  # of it: what bf16 may change for a search to find its way
_ARRANGING, _WORTH = 25, 20  # passes of each image looked at; times as many that follow make arranging worth it
_SLOWER = 1.2  # times: what a step may cost before it is skipped; fp32 on a CPU may want either layout, by how wide the network is


def search_network(
    model: nn.Module, images: Tensor, compiled: bool = False, precision: str = "fp32", foreseen: float = math.inf
) -> nn.Module:  # fmt: skip
    """A frozen copy of ``model`` with channels-last weights and BatchNorm folded into the convolutions before it.

    A step that cannot be done, changes what the copy says of ``images`` by more than rounding, or makes it slower is skipped, and the log says so.

    Args:
        model: In eval mode.
        images: A few (N, C, H, W), to compare on.
        compiled: Have ``torch.compile`` make kernels of it; the first calls take long.
        precision: fp32; or bf16, which also is rounding, but of more than goes unnoticed (see :class:`Bf16Network`).
        foreseen: Passes of an image that follow at most; if they are few, arranging the network would cost more than it saves, and is skipped.

    Raises:
        UserError: The network does not run in bf16, or says something else there.
    """
    if precision == "bf16":
        warn_of_slow_bf16(images.device, "--search_precision bf16")
    if foreseen < _WORTH * _ARRANGING * len(images) and precision == "fp32" and not compiled:
        return model
    truth = model(images)
    spread = _spread(truth).max()
    network, done = model, set()
    steps: list[tuple[str, Any]] = [("channels-last", _channels_last), ("folded BatchNorm", _folded)]
    for name, step in [*steps, ("compiled", _compiled)] if compiled else steps:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                candidate = step(network)
                difference = (candidate(images) - truth).abs().max() / spread
                before, after = _seconds((network, candidate), images, precision)
        except Exception as error:  # a user's network may refuse any of these in any way
            log.info("the search continues without a %s network (%s)", name, _first_line(error))
            continue
        if not difference < _AGREE:
            log.info("the search continues without a %s network: its logits differ by %.1e of their spread", name, difference)
        elif after > _SLOWER * before:
            log.info("the search continues without a %s network: a pass takes %.1f times as long here", name, after / before)
        else:
            network = candidate
            done.add(name)
    return network if precision == "fp32" else Bf16Network(network, images, "compiled" in done)


def _seconds(networks: tuple[nn.Module, ...], images: Tensor, precision: str) -> list[float]:
    """Seconds of each network's forward pass, the best of five that take turns.

    A GPU is asked of as many images at once as an evaluation begins with: with a few it would be the host's time that is measured, for launching
    kernels, which is the same in any layout.
    """
    if images.device.type != "cpu":
        images = images.repeat(-(-images_at_once(images.shape, images.device) // len(images)), 1, 1, 1)
    taken: list[list[float]] = [[] for _ in networks]
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(5):
            for network, times in zip(networks, taken, strict=True):
                began = time.perf_counter()
                network(images).sum().item()
                times.append(time.perf_counter() - began)
    return [min(times) for times in taken]


def _channels_last(model: nn.Module) -> nn.Module:
    result: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return result


def _folded(model: nn.Module) -> nn.Module:
    if not any(isinstance(part, _BatchNorm) for part in model.modules()):
        return model
    return fold(model)


def _compiled(model: nn.Module) -> nn.Module:
    result = copy.deepcopy(model)
    result.compile()
    return result


class Bf16Network(nn.Module):
    """A network under bf16 autocast, whose answers are those in float32 wherever bf16 leaves a doubt which class comes first.

    An image whose first class leads by less than three times the largest error seen is looked at once more in float32, without gradient: so a search
    neither takes a rounding for a success nor misses one (two logits that err that much move a lead by twice as much). Gradients are bf16's.

    Args:
        network: Images (N, C, H, W) -> logits (N, K).
        images: A few, on which the error is measured.
        compiled: Compile the copy that runs in bf16 as well.

    Raises:
        UserError: The network does not run in bf16, or says something else there.
    """

    def __init__(self, network: nn.Module, images: Tensor, compiled: bool = False) -> None:
        super().__init__()
        self.network, self.in_bf16 = network, copy.deepcopy(network)
        hold_bf16(self.in_bf16)
        if compiled:
            self.in_bf16.compile()
        with torch.no_grad():
            truth = network(images).float()
            try:
                found = self._bf16_logits(images)
            except Exception as error:  # a user's network may refuse it in any way
                raise UserError(f"the model does not run in bf16 ({_first_line(error)}): search with --search_precision fp32") from error
        wrong = ((found - truth).abs().amax(1) / _spread(truth)).max().item()
        if not wrong < _BF16_TOLERANCE:
            raise UserError(f"in bf16 the model's logits differ by {wrong:.0%} of their spread: search with --search_precision fp32")
        self.doubtful = 3 * wrong

    def _bf16_logits(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.in_bf16(images)
        return logits.float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K), float32."""
        logits = self._bf16_logits(images)
        known = logits.detach()
        first, second = known.topk(2, 1).values.unbind(1)
        doubts = (first - second < self.doubtful * _spread(known)).nonzero().flatten()
        if not len(doubts):
            return logits
        with torch.no_grad():
            change = self.network(images.detach()[doubts]).float() - known[doubts]
        return logits.index_add(0, doubts, change)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:150]


def _spread(logits: Tensor) -> Tensor:
    """(N,): from the lowest to the highest."""
    return (logits.amax(1) - logits.amin(1)).clamp_min(1e-12)


class ProgressNetwork:
    """A network whose passes are counted; its logits are float32.

    Args:
        network: What is called.
        spent: Told of them.
        backward: How long a pass with gradient takes, in passes without.

    Attributes:
        passes: Passes of an image so far, forward and back.
    """

    def __init__(self, network: nn.Module, spent: Callable[[float], None], backward: float) -> None:
        self.network, self.spent, self.backward = network, spent, backward
        self.passes = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        self.spent(len(images) * (self.backward if images.requires_grad else 1.0))
        self.passes += len(images) * (2 if images.requires_grad else 1)
        # The weights say which layout convolutions compute in; images that came channels-last out of an index would overrule them.
        logits: Tensor = self.network(images.contiguous()).float()
        return logits


@dataclass(frozen=True)
class Rates:
    """What a network was measured to take.

    Attributes:
        size: Images that are best taken at once.
        enough: Smallest batch within 10 % of the best forward time per image.
        forward: Seconds per image of a forward pass.
        gradient: The same for a pass with gradient.
    """

    size: int
    enough: int
    forward: float
    gradient: float


def measure(
    network: Network, images: Tensor, batch_size: int | None = None, most: int = _LARGEST, foreseen: float = math.inf
) -> Rates:  # fmt: skip
    """How many images are best taken at once, and how long a pass takes.

    The size is doubled, from 16 on, while memory lasts and a pass takes less than a quarter of a second: larger batches cost no more per image, and
    what is done beside the network gains from them. Where memory does not hold 16, or the size that was asked for, it is halved. It begins lower with
    images so large that 16 of them are many, and ends where measuring would cost more than a fiftieth of what follows.

    Args:
        network: What is measured.
        images: (N, C, H, W); repeated for larger sizes.
        batch_size: Measure this one alone.
        most: No more than this will ever be asked at once.
        foreseen: Passes of an image that follow at most.

    Raises:
        UserError: Not even one image's pass fits into memory.
    """
    size = min(batch_size or min(16, images_at_once(images.shape, images.device)), most)
    rough = foreseen < _WORTH * 12 * size  # too little follows for more than one look
    while (times := _times(network, images, size, rough)) is None:
        if size == 1:
            raise UserError("a pass of one image through the network, with its gradient, does not fit in memory: use a device with more memory")
        size //= 2
        log.warning("out of memory: continuing with %d images at once", size)
        batch_size = size
    seen, full = {size: times}, False
    asked = 12 * size
    while batch_size is None and not full and 2 * size <= most and seen[size][1] * size < 0.25 and foreseen > _WORTH * (asked + 24 * size):
        larger, asked = _times(network, images, 2 * size), asked + 24 * size
        if larger is None:
            full = True
        else:
            size *= 2
            seen[size] = larger
    chosen = max(size // 2, 1) if full else size  # some memory is left to what attacks keep beside the network
    least = min(forward for forward, _ in seen.values())
    enough = min(tried for tried, (forward, _) in seen.items() if forward <= 1.1 * least)
    return Rates(chosen, min(chosen, enough), *seen[size])


def _times(network: Network, images: Tensor, size: int, rough: bool = False) -> tuple[float, float] | None:
    """Seconds per image, forward and with gradient: the better of two after one to warm up, or the first; None if memory does not hold it."""
    batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]

    def forward() -> None:
        network(batch).sum().item()

    def gradient() -> None:
        with torch.enable_grad():
            leaf = batch.clone().requires_grad_(True)
            torch.autograd.grad(network(leaf).sum(), leaf)[0].sum().item()

    seconds: list[float] = []
    with suppress(torch.OutOfMemoryError):
        for run in (forward, gradient):
            if not rough:
                run()
            taken = []
            for _ in range(1 if rough else 2):
                began = time.perf_counter()
                run()
                taken.append(time.perf_counter() - began)
            seconds.append(min(taken) / size)
    if len(seconds) < 2:  # only here has the traceback let go of the pass's tensors, so that the memory can go back
        torch.cuda.empty_cache()
        return None
    return seconds[0], seconds[1]
