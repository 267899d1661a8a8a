"""One step: forward, backward and, where every number is finite, the optimiser."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from rocl_transfer.data import Batch, derive_seed
from rocl_transfer.models.multi_tensor import choose, copies, put
from rocl_transfer.objectives import Objective
from rocl_transfer.training.interruption import arrived


class Update:
    """Moves the parameters of an objective: :meth:`compute`, then :meth:`apply` or :meth:`undo`.

    Where the host does not wait for the device in a step, it cannot choose between these two: :meth:`apply_where` lets the device choose.

    Args:
        accelerator: Prepares both.
        objective: As one module, so that a step is one forward of it.
        optimizer: For its parameters.
        clip_grad: Largest norm of the gradient of all parameters together.
        accumulation: Parts that a process's batch is computed in, one after another; their gradients are averaged.
    """

    def __init__(
        self, accelerator: Accelerator, objective: Objective, optimizer: Optimizer, clip_grad: float | None, accumulation: int = 1
    ) -> None:  # fmt: skip
        self.accelerator, self.objective, self.clip_grad, self.accumulation = accelerator, objective, clip_grad, accumulation
        # What a resumed optimiser brings is where it belongs; placed anew, Adam's counters would go to the device and be read from there every step.
        self.prepared, self.optimizer = accelerator.prepare(objective, optimizer, device_placement=[accelerator.device_placement, False])
        self.trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.buffers = list(objective.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]
        self.rate = 0.0
        self.open = False

    def learn_at(self, rate: float) -> None:
        """Take the next steps at ``rate``, layers at their own share of it."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def compute(self, batch: Batch, step: int, total: int, seed: tuple[int, int]) -> tuple[tuple[str, ...], Tensor]:
        """The gradient of step ``step`` of ``total``.

        Args:
            batch: This process's.
            step: From 0.
            total: Steps of the whole schedule.
            seed: The run's, and this process's number.

        Returns:
            The names of the losses and of the gradient's norm, and their means over the processes, so that all of them see the same. If one is not
            finite, the step must not be taken. One number more: above 0 where a signal waits in any of them.
        """
        self.begin(step, total, seed)
        parts = batch.split(self.accumulation)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.prepared):
                # Positions are for the diagnosis alone; DDP would send them to the device, and wait.
                losses: dict[str, Tensor] = self.prepared(part._replace(positions=None))
                self.accelerator.backward(losses["loss"] / len(parts))
            sums = {name: sums.get(name, 0) + value.detach().float() / len(parts) for name, value in losses.items()}
        self.length = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        signal = torch.full_like(self.length, arrived(), dtype=torch.float32)
        means: Tensor = self.accelerator.reduce(torch.stack([*sums.values(), self.length.float(), signal]), "mean")
        return (*sums, "gradient_norm"), means

    def begin(self, step: int, total: int, seed: tuple[int, int]) -> None:
        """Keep what :meth:`undo` puts back, and let all that is random follow from the step; see :meth:`compute`."""
        put(self.before, self.buffers)
        self.open = True
        # Dropout and stochastic depth draw from the global generator: with this they too depend on the step alone.
        torch.manual_seed(derive_seed(seed[0], step, seed[1], 1))
        self.objective.begin_step(step, total)

    def apply(self) -> None:
        """Take the step."""
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.clip_grad, self.length)
        self.optimizer.step()
        self.objective.end_step()
        self.optimizer.zero_grad()
        self.open = False

    @torch.no_grad()
    def apply_where(self, finite: Tensor) -> None:
        """Take the step where ``finite``, a scalar on the device, is true; else leave everything as it was. The host does not wait.

        What an optimiser counts on the host, as Adam and LAMB do their steps, counts on.
        """
        tensors = [*self.objective.parameters(), *self._state(finite.device)]
        before, known = copies(tensors), {id(tensor) for tensor in tensors}
        self.apply()
        choose(finite, [*tensors, *self.buffers], [*before, *self.before])
        # Made in this step: where it is not taken, as if nothing had been seen.
        choose(finite, [made for made in self._state(finite.device) if id(made) not in known])

    def _state(self, device: torch.device) -> list[Tensor]:
        """What the optimiser keeps on ``device``."""
        slots = [value for slots in self.optimizer.state.values() for value in slots.values()]
        return [value for value in slots if isinstance(value, Tensor) and value.device == device]

    def undo(self) -> None:
        """Leave a step that was begun as if it had not been: BatchNorm's statistics have seen its batch."""
        if self.open:
            put(self.buffers, self.before)
            self.optimizer.zero_grad()
            self.open = False
