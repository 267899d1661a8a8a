"""What a training is told beside its objective and its optimiser: which steps to take, how one is computed, and who watches."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rocl_transfer.training.guard import Judge, Recovery

Monitor = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Cadence:
    """How often things happen beside the steps.

    Args:
        log: Steps between lines of ``metrics.jsonl``.
        checkpoint: Steps between checkpoints (default: one epoch's); the last step always has one.
        monitor: Epochs between calls of the monitor; the last step always has one.
        track: Whether Accelerate's trackers are told. Only one training of a run may: each counts its steps from 0.
    """

    log: int = 10
    checkpoint: int | None = None
    monitor: int = 1
    track: bool = True


@dataclass(frozen=True)
class Span:
    """Which steps of the schedule are taken.

    Args:
        max_steps: Where it ends (default: with the schedule); truncates it, never reshapes it.
        resume: Where it begins: ``auto``, ``none``, or a path; see :meth:`Checkpoints.find`.
    """

    max_steps: int | None = None
    resume: str = "auto"


@dataclass(frozen=True)
class Computing:
    """How a step is computed.

    Args:
        clip_grad: Largest norm of the gradient of all parameters together (default: no limit).
        accumulation: Parts that each batch is computed in, one after another; a part is whole groups of the sampler's.
        deferred: Read a step's numbers when they are logged instead of at once, so that the host does not wait for the device; the device then skips
            non-finite steps on its own (default: if the device is not the CPU).
        cudnn_benchmark: Have cuDNN time its kernels in the steps, and not in the monitor (default: on a GPU).
    """

    clip_grad: float | None = None
    accumulation: int = 1
    deferred: bool | None = None
    cudnn_benchmark: bool | None = None


@dataclass(frozen=True)
class Watch:
    """Which monitor validates a training, how often, and what is done if it collapses.

    Args:
        monitor: Its numbers go into the metrics; called on every process.
        guard: Judges what the monitor sees: a dead run goes back to its last good checkpoint with a lower learning rate, or ends in a sentence; the
            best checkpoint is kept. Without one only losses and gradients that are not finite are a death.
        recovery: What is tried before a dead run is given up.
        cadence: How often to log, to save, to monitor.
    """

    monitor: Monitor | None = None
    guard: Judge | None = None
    recovery: Recovery = field(default_factory=Recovery)
    cadence: Cadence = field(default_factory=Cadence)
