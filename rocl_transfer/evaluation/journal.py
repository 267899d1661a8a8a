"""What an evaluation has found so far, on disk as it is found, so that a killed run can be resumed."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rocl_transfer.errors import UserError


@dataclass(frozen=True)
class Cost:
    """What an attack took.

    Attributes:
        seconds: By the clock.
        passes: Passes of an image, forward and back; nan if an earlier version did not write them down.
    """

    seconds: float = 0.0
    passes: float = 0.0

    def __add__(self, later: "Cost") -> "Cost":
        """One after the other."""
        return Cost(self.seconds + later.seconds, self.passes + later.passes)

    def beside(self, other: "Cost") -> "Cost":
        """Side by side, in two processes."""
        return Cost(max(self.seconds, other.seconds), self.passes + other.passes)


class Journal:
    """Lines of (attack, runs, samples, margins), appended by each process to a file of its own and read from all of them.

    Args:
        folder: Where; None for an evaluation that is not resumed.
        identity: What must be the same for the lines to count: model, data, seed.
        rank: This process's rank.

    Raises:
        UserError: The folder has lines of another evaluation.
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None, rank: int = 0) -> None:
        self._margins: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._file, self._folder, self._rank = None, folder, rank
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(dict(identity or {})))
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path, plain)
        path = folder / f"{rank}.jsonl"
        whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        if path.exists() and path.stat().st_size > whole:
            os.truncate(path, whole)  # a line that was cut off would spoil the next one
        self._file = path.open("a", encoding="utf-8")
        if not whole:
            self._append({"identity": plain})

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, path: Path, identity: Mapping[str, Any]) -> None:
        head, *lines = path.read_bytes().split(b"\n")[:-1] or [b"{}"]
        there = json.loads(head).get("identity", identity)
        # What an earlier version did not write down is not held against it.
        if differs := [name for name in there if there[name] != identity.get(name)]:
            raise UserError(f"{path.parent} holds another evaluation ({', '.join(differs)} differ): choose another --output_dir, or --resume none")
        spent: dict[str, Cost] = defaultdict(Cost)
        for line in map(json.loads, lines):
            # Every process reads all files, and their passes are added up in the end: one counts them.
            spent[line["attack"]] += Cost(line["seconds"], 0 if self._rank else line.get("passes", math.nan))
            for run, index, margin in zip(line["runs"], line["samples"], line["margins"], strict=True):
                self._margins[line["attack"], run][index] = math.inf if margin is None else margin
        for attack, cost in spent.items():
            self.costs[attack] = self.costs[attack].beside(cost)

    def margin(self, attack: str, run: int, sample: int) -> float | None:
        """The lowest margin this run found for the sample; None if it was not made."""
        return self._margins[attack, run].get(sample)

    def write(self, attack: str, runs: Sequence[int], samples: Sequence[int], margins: Sequence[float], cost: Cost) -> None:
        """Append what was found."""
        self.costs[attack] += cost
        if self._file is not None:
            finite = [None if math.isinf(margin) else margin for margin in margins]
            took = {"seconds": round(cost.seconds, 4), "passes": cost.passes}
            self._append({"attack": attack, "runs": list(runs), "samples": list(samples), "margins": finite, **took})

    def keep(self, attack: str, sample: int, image: Tensor, answer: int) -> None:
        """Put aside an image (C, H, W) with which an attack broke a sample, and the answer to it, whole or not at all."""
        if self._folder is not None:
            folder = self._folder / "found" / attack.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{sample}.safetensors"
            save_file({f"answer {answer}": image.contiguous()}, folder / f".{path.name}")
            (folder / f".{path.name}").replace(path)

    def found(self, attack: str) -> dict[int, tuple[Tensor, int]]:
        """The images put aside of an attack, by any process, with the answers to them."""
        kept: dict[int, tuple[Tensor, int]] = {}
        for path in () if self._folder is None else sorted((self._folder / "found" / attack.replace(" ", "_")).glob("[!.]*.safetensors")):
            ((name, image),) = load_file(path).items()
            kept[int(path.stem)] = image, int(name.split()[1])
        return kept

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.close()
