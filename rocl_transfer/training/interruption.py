"""SIGTERM, Ctrl-C and a closed terminal end a run at once, but for the moments that must not be cut in two."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rocl_transfer.errors import Interrupted

_held = 0
_deaf = False
_arrived_number: int | None = None


def listen() -> None:
    """From now on those signals raise :class:`Interrupted` in the main thread; ``nohup`` stays respected."""
    global _arrived_number
    _arrived_number = None
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


def follow_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies that started this process: torchrun and ``accelerate launch`` leave orphans else."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" and launched else None
    if prctl is not None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _arrived(number: int, frame: FrameType | None) -> None:
    global _arrived_number
    if _deaf:
        return
    _arrived_number = number
    if not _held:
        raise Interrupted(number)


def arrived() -> int:
    """The signal that waits to be answered; 0 if none does."""
    return _arrived_number or 0


def raise_pending() -> None:
    """Raise what arrived and was not raised, or was swallowed: Python drops what is raised while it collects garbage."""
    if _arrived_number is not None and not _held:
        raise Interrupted(_arrived_number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What arrives inside is raised at the end, unless something else is."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    raise_pending()


@contextmanager
def ignore_signals() -> Iterator[None]:
    """What arrives inside is dropped: the run ends already, and launchers send more than one signal."""
    global _deaf, _arrived_number
    _deaf = True
    try:
        yield
    finally:
        _deaf, _arrived_number = False, None
