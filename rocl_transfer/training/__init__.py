"""How an objective is trained: runtime, optimiser and learning rate, the loop, checkpoints, metrics."""

from rocl_transfer.training.bf16 import warn_of_slow_bf16
from rocl_transfer.training.checkpoints import Checkpoints, sha256
from rocl_transfer.training.guard import Guard, Recovery, StudentGuard
from rocl_transfer.training.head_first import HeadFirst
from rocl_transfer.training.loop import train
from rocl_transfer.training.metrics import last_epoch
from rocl_transfer.training.optimization import AdaptationOptimizerOptions, OptimizerOptions, Schedule
from rocl_transfer.training.progress import Trained
from rocl_transfer.training.radius import poor_radius
from rocl_transfer.training.run import Run, RunOptions
from rocl_transfer.training.runtime import finish, keep_memory, start, writable
from rocl_transfer.training.settings import Cadence, Computing, Span, Watch

__all__ = [
    "AdaptationOptimizerOptions", "Cadence", "Checkpoints", "Computing", "Guard", "HeadFirst", "OptimizerOptions", "Recovery", "Run", "RunOptions",
    "Schedule", "Span", "StudentGuard", "Trained", "Watch", "finish", "keep_memory", "last_epoch", "poor_radius", "sha256", "start", "train",
    "warn_of_slow_bf16", "writable",
]  # fmt: skip
