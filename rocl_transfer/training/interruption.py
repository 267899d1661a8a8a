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
_waiting: int | None = None


def listen() -> None:
    """From now on those signals raise :class:`Interrupted` in the main thread; ``nohup`` stays respected."""
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
    global _waiting
    if not _held:
        raise Interrupted(number)
    _waiting = number


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What arrives inside is raised at the end."""
    global _held, _waiting
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held and _waiting is not None:
            number, _waiting = _waiting, None
            raise Interrupted(number)
