"""Processes that read and decode ahead: a signal to the process group leaves them alone, and their errors keep their sentence."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from rocl_transfer.errors import UserError

CAN_WAIT = hasattr(signal, "sigwaitinfo")  # not on macOS and Windows


def from_workers(data: Dataset[Any] | IterableDataset[Any], *, workers: int, **options: Any) -> Iterator[Any]:
    """What a DataLoader gives, from workers that outlive a SIGTERM sent to the whole process group: torch would report their death as an error.

    Args:
        data: What each worker reads.
        workers: Processes.
        options: What else the DataLoader takes.

    Raises:
        UserError: A worker's, as it was raised there.
    """
    loader = DataLoader(data, num_workers=workers, worker_init_fn=_outlive_signals, **options)
    with _no_sigterm():  # a worker begins with what is blocked here, so that no moment of its start is open to a signal
        batches = iter(loader)
    try:
        yield from batches
    except UserError as error:  # it comes with the worker's traceback as its message, of which the sentence is the last line
        raise UserError(str(error).strip().splitlines()[-1].split(f"{type(error).__name__}: ", 1)[-1]) from None


@contextmanager
def _no_sigterm() -> Iterator[None]:
    """Hold back a SIGTERM to this thread until the end."""
    if not CAN_WAIT:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_signals(worker: int) -> None:
    """A SIGTERM from the worker's parent does end it: Python sends one to each daemon as it exits, and waits for it."""
    if CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a spawned worker does not have it from its parent
        Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)  # as torch answers it: any other status is reported as a failure of the worker
