"""Random numbers that belong to a sample: a function of its seed, a purpose and a counter, whatever stands beside it and on any device.

Generators would have to be kept, one per sample, through thousands of queries; a hash of (seed, purpose, counter) needs no state.
"""

import math
import zlib

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014), whose constants are written as the signed integers that torch has.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shifted(bits: Tensor, by: int) -> Tensor:
    return torch.bitwise_and(bits >> by, 2 ** (64 - by) - 1)  # torch's shift drags the sign along


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def uniform(seeds: Tensor, purpose: str, shape: tuple[int, ...], counter: int | Tensor = 0) -> Tensor:
    """Uniform draws in the open interval (0, 1).

    Args:
        seeds: (N,) int64, one per sample.
        purpose: Different purposes draw different streams from the same seeds.
        shape: Shape of one sample's draws.
        counter: Which block of the stream: one for all, or (N,) int64.

    Returns:
        (N, *shape), float32.
    """
    stream = _mix(_mix(seeds + zlib.crc32(purpose.encode()) * 2**31) + counter)
    index = torch.arange(1, math.prod(shape) + 1, device=seeds.device) * _GOLDEN
    bits = _shifted(_mix(stream[:, None] + index), 41)
    return (bits.float() + 0.5).div_(2**23).view(len(seeds), *shape)


def normal(seeds: Tensor, purpose: str, shape: tuple[int, ...], counter: int | Tensor = 0) -> Tensor:
    """Standard normal draws; see :func:`uniform`."""
    return torch.erfinv(2 * uniform(seeds, purpose, shape, counter) - 1).mul_(math.sqrt(2))


def below(limit: int, draws: Tensor) -> Tensor:
    """Uniform draws as whole numbers 0 .. ``limit`` - 1."""
    return (draws * limit).long().clamp_(max=limit - 1)
