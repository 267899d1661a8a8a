"""What a run says of itself: running means, and ``metrics.jsonl`` without gap or double over a resume."""

import json
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Mean:
    """The mean of named numbers over steps; two plain values, so that a checkpoint can hold it."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Count one step."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means since the last :meth:`take`."""
        return {name: total / self.count for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = self.means()
        self.sums, self.count = {}, 0
        return means


class MetricsFile:
    """Appends one JSON object a line.

    Args:
        path: The file.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Forget what a killed run wrote after the checkpoint of ``step``, and what a shorter one wrote because it ended there."""
        if self.writes and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            whole = [(line, json.loads(line)) for line in lines if line.endswith("}")]
            kept = [line for line, values in whole if values["step"] <= step and "last" not in values]
            aside = self.path.with_name(f".{self.path.name}.writing")  # a kill here must not cost the lines that stay
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            aside.replace(self.path)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes of what computes on ``device``: the GPU's, or this process's where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
