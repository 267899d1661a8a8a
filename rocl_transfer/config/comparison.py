"""The configuration of ``recipes/compare.py``."""

from dataclasses import dataclass, field

from rocl_transfer.errors import path_of
from rocl_transfer.options.checks import require

MOST_RUNS = 26  # they go by the letters A to Z


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Evaluated models compared sample by sample: differences in accuracy with intervals, as table and plot.

    Args:
        runs: Run folders with results.json and verdicts.jsonl, measured on the same images; the first is the reference.
        output_dir: Where comparison.json, comparison.md and comparison.png go, over older ones (default: a table on the screen alone).
        all_pairs: Compare every run with every other, not with the first alone. More comparisons make each p-value's adjustment stricter.
    """

    runs: tuple[str, ...] = field(metadata={"positional": "run folders"})
    output_dir: str | None = None
    all_pairs: bool = False

    def __post_init__(self) -> None:
        require(all(self.runs), "a run's name is empty: name run folders")
        require(len(self.runs) > 1, "there is one run and a comparison needs two: name the reference first, then the others")
        require(len(self.runs) <= MOST_RUNS, f"there are {len(self.runs)} runs and the table has room for {MOST_RUNS}: name fewer")
        paths = [path_of(run).resolve() for run in self.runs]
        twice = next((run for run, path in zip(self.runs, paths, strict=True) if paths.count(path) > 1), None)
        require(twice is None, f"{twice} is named twice: a run is not compared with itself")
        require(self.output_dir != "", "--output_dir is empty: name a folder, such as runs/comparison")
        require(not self.all_pairs or len(self.runs) > 2, "--all_pairs has no effect with two runs: leave it out")
