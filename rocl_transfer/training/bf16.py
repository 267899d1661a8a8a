"""Whether a device has units for bf16: without them it is emulated."""

import logging
import time

import torch
from torch.nn.functional import conv2d

log = logging.getLogger("rocl_transfer")
_SLOWER = 1.3  # times: less is the noise of a busy machine


def bf16_factor() -> float:
    """How many times as long a small convolution, forward and backward, takes this CPU in bf16 as in float32.

    Measured, not looked up: 0.6 on a CPU with such units, 1.6 with AVX-512 alone, 3 to 9 with AVX2; whole steps were 60 times as slow. 20 to 60 ms.
    """
    images, weight = torch.ones(4, 32, 16, 16), torch.ones(32, 32, 3, 3)
    best = []
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for dtype in (torch.float32, torch.bfloat16):
            batch = images.to(dtype).to(memory_format=torch.channels_last)
            kernel = weight.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
            taken = []
            for _ in range(5):
                began = time.perf_counter()
                torch.autograd.grad(conv2d(batch, kernel, padding=1).float().sum(), kernel)
                taken.append(time.perf_counter() - began)
            best.append(min(taken))
    return best[1] / best[0]


def warn_of_slow_bf16(device: torch.device, option: str) -> None:
    """Say that bf16 is slower than float32 where it is; ``option`` chose it. On other devices than the CPU nothing is measured."""
    if device.type == "cpu" and (factor := bf16_factor()) > _SLOWER:
        log.warning(
            "this CPU has no units for bf16: a small convolution takes it %.1f times as long as in float32, whole steps took up to 60; leave out %s",
            factor, option,
        )  # fmt: skip
