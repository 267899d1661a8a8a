"""The only place that builds an Accelerator."""

import ctypes
import errno
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, LoggerType, set_seed
from torch import nn

from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.objectives import Objective
from rocl_transfer.training.bf16 import warn_of_slow_bf16
from rocl_transfer.training.interruption import follow_launcher, listen

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("rocl_transfer")
_locks: dict[Path, TextIO] = {}


def start(output_dir: str | Path, seed: int, log_with: str | None = None, options: Mapping[str, Any] | None = None) -> Accelerator:
    """Devices, processes, precision and trackers, as ``accelerate launch`` or torchrun set them up.

    Args:
        output_dir: The run folder; created.
        seed: For the weights' initial values, the same on every process.
        log_with: One of Accelerate's trackers.
        options: What the tracker records as the run's configuration.

    Raises:
        UserError: There is no such tracker, its package is not installed, or the folder cannot be written.
    """
    _check_tracker(log_with)
    folder = writable(Path(output_dir))
    listen()
    follow_launcher()
    # One process evaluates while the others wait: hours, where NCCL gives up after ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    # Without a GPU, torchrun's processes do not find each other unless Accelerate is told that the CPU is meant.
    cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, log_with=log_with, project_dir=str(folder), kwargs_handlers=[patience])
    if accelerator.mixed_precision == "fp16":
        raise UserError("fp16 autocast rounds an attack's pixel gradients to zero: use --mixed_precision bf16, or no")
    if accelerator.is_main_process and not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    if accelerator.gradient_accumulation_steps > 1:
        raise UserError("accelerate launch --gradient_accumulation_steps has no effect: give --gradient_accumulation_steps to the recipe")
    if accelerator.is_main_process:
        _lock(folder)
    log.setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    if accelerator.device.type == "cpu":
        _use_all_cores()
        keep_memory()
        if accelerator.mixed_precision == "bf16":
            warn_of_slow_bf16(accelerator.device, "--mixed_precision bf16")
    set_seed(seed)
    if log_with is not None:
        plain = {k: float(v) if isinstance(v, float) else v if isinstance(v, (int, str)) else str(v) for k, v in (options or {}).items()}
        accelerator.init_trackers(folder.name or "run", config=plain)
    return accelerator


def arithmetic(accelerator: Accelerator) -> str:
    """What training computes in: Accelerate's word for its autocast; ``tf32`` if there is none and a GPU convolves in that, torch's default."""
    word, device = str(accelerator.mixed_precision), accelerator.device
    rounds = word == "no" and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if rounds and torch.cuda.get_device_capability(device) >= (8, 0) else word


@contextmanager
def tuned_kernels(chosen: bool) -> Iterator[None]:
    """Whether cuDNN times its kernels for each shape of batch that it meets and takes the fastest; as it was afterwards.

    The timing differs from run to run, and so may the kernel and its roundings: it is for training, never for what is reported.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = chosen
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def synchronised(objective: Objective) -> Objective:
    """``objective`` with BatchNorm over all processes' images.

    By timm's conversion: torch's own drops the activation inside timm's norms, and so does timm's if it sees them a second time.
    """
    from timm.layers import convert_sync_batchnorm

    done = any(isinstance(part, nn.SyncBatchNorm) for part in objective.modules())
    result: Objective = objective if done else convert_sync_batchnorm(objective)
    return result


def regrouped(accelerator: Accelerator, before: int) -> str:
    """What differs if a run is resumed with another number of processes than ``before``."""
    seen = "all processes' images (SyncBN)" if accelerator.device.type == "cuda" else "the images of each process alone"
    return (
        f"the run is resumed with {accelerator.num_processes} process(es) instead of {before}: the same images, views, attacks and negatives; sums "
        f"are rounded differently, dropout and stochastic depth draw anew, and BatchNorm sees {seen}"
    )


def _lock(folder: Path) -> None:
    """Keep other processes from writing there as long as this one lives.

    A record lock: the kernel drops it with the process, however that ends, and forked workers do not keep it.

    Raises:
        UserError: One does already.
    """
    if fcntl is None or folder.resolve() in _locks:
        return
    handle = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # some network filesystems know no locks
            log.info("the folder %s cannot be locked (%s): see to it that no second run writes there", folder, error.strerror)
            return
        handle.seek(0)
        raise UserError(
            f"{folder} is being written by another process ({handle.read() or 'unknown'}): wait for it, or choose another --output_dir"
        ) from error
    path = folder / ".lock"
    if not (path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino):  # its last owner has just removed it
        handle.close()
        _lock(folder)
        return
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    _locks[folder.resolve()] = handle  # closing any handle of the file would drop the lock


def writable(folder: Path) -> Path:
    """``folder``, created, once it is sure that files can be written there.

    Raises:
        UserError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written ({error.strerror}): choose another --output_dir") from error
    return folder


def _use_all_cores() -> None:
    """``accelerate launch`` and torchrun give each CPU process one thread by default.

    The quick start's RoCL pre-training took 3.2 s per epoch on one of two cores, 2.2 s on both.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MiB instead of handing them back to the kernel, which zeroes them again for the next layer.

    Larger ones still go back: keeping all of them made steps of ResNet-18 with 512 images a quarter faster, but their peak 20 GB instead of 13.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-3, 32 * 2**20), (-1, 2**31 - 1)):  # M_MMAP_THRESHOLD, at its largest, and M_TRIM_THRESHOLD
            mallopt(option, value)


def _check_tracker(name: str | None) -> None:
    known = [item.value for item in LoggerType if item.value != "all"]
    if name is not None and name not in known:
        raise UserError(f"there is no tracker {name!r}{did_you_mean(name, known)}: Accelerate has {', '.join(known)}")
    if name is not None and find_spec(name) is None:
        raise UserError(f"--log_with {name} needs a package that is not installed: pip install {name}")


def finish(accelerator: Accelerator) -> None:
    """Close trackers and let go of the run folder; the processes stay together, so that another run can follow."""
    for tracker in accelerator.trackers:
        tracker.finish()
    handle = _locks.pop(Path(accelerator.project_dir).resolve(), None)
    if handle is not None:
        Path(handle.name).unlink(missing_ok=True)
        handle.close()
