"""How an objective is trained: runtime, optimiser and learning rate, the loop, checkpoints, metrics."""

from rocl_transfer.training.account import Cadence
from rocl_transfer.training.checkpoints import Checkpoints, sha256
from rocl_transfer.training.guard import Guard, Recovery
from rocl_transfer.training.loop import train
from rocl_transfer.training.optimization import Schedule, create_optimizer
from rocl_transfer.training.progress import Trained
from rocl_transfer.training.runtime import finish, keep_memory, start, writable

__all__ = [
    "Cadence", "Checkpoints", "Guard", "Recovery", "Schedule", "Trained", "create_optimizer", "finish", "keep_memory", "sha256", "start", "train",
    "writable",
]  # fmt: skip
