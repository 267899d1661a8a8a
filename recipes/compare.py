"""Evaluated models compared sample by sample: for each evaluation the difference in accuracy, its 95 % interval and whether it is shown.

    python recipes/compare.py RUN RUN ... [--output_dir DIR]
    python recipes/compare.py RUN ... --page models.html

A RUN is a folder with results.json and verdicts.jsonl; the first is the reference. Only samples and evaluations that all have are compared. Prints a
table; --output_dir gets comparison.json (with the samples that only one of two gets right), comparison.md and comparison.png.

With --page nothing is compared sample by sample: every number of any models, whatever they were measured on, goes into one HTML page, and into a
Markdown table beside it. Only results.json is read.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocl_transfer.config import command_line
from rocl_transfer.errors import path_of
from rocl_transfer.evaluation.comparison import LEVEL, Comparison, Difference, compare, draw_comparison, read_run
from rocl_transfer.evaluation.report import can_draw
from rocl_transfer.hub.overview import markdown_overview, read_models, render_overview
from rocl_transfer.options import require, require_untouched
from rocl_transfer.training import writable

log = logging.getLogger("rocl_transfer")
HEAD = ("evaluation", "pair", "n", "first", "second", "difference", "95 % interval", "only first", "only second", "p", "p (Holm)", "the second is")
WORDS = (0, 1, 11)  # columns of words; the others are numbers


MOST_RUNS = 26  # they go by the letters A to Z


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Evaluated models compared sample by sample: differences in accuracy with intervals, as table and plot.

    Args:
        runs: Run folders with results.json and verdicts.jsonl, measured on the same images; the first is the reference.
        output_dir: Folder for comparison.json, comparison.md and comparison.png, which replace older ones (default: only print a table).
        all_pairs: Compare every run with every other, not only with the first. More comparisons make each p-value's adjustment stricter.
        page: Instead of comparing, list the numbers of all runs on this HTML page and in a Markdown table beside it; one run, or runs on different
            data, will do.
    """

    runs: tuple[str, ...] = field(metadata={"positional": "run folders"})
    output_dir: str | None = None
    all_pairs: bool = False
    page: str | None = None

    def __post_init__(self) -> None:
        require(all(self.runs), "a run's name is empty: name run folders")
        if self.page is not None:
            require_untouched(self, ("output_dir", "all_pairs"), "with --page, which compares nothing sample by sample")
            require(self.page.endswith(".html"), f"--page is {self.page or 'empty'}: give the page's file, such as runs/models.html")
            return
        require(len(self.runs) > 1, "there is one run and a comparison needs two: name the reference first, then the others")
        require(len(self.runs) <= MOST_RUNS, f"there are {len(self.runs)} runs and the table has room for {MOST_RUNS}: name fewer")
        paths = [path_of(run).resolve() for run in self.runs]
        twice = next((run for run, path in zip(self.runs, paths, strict=True) if paths.count(path) > 1), None)
        require(twice is None, f"{twice} is named twice: a run is not compared with itself")
        require(self.output_dir != "", "--output_dir is empty: name a folder, such as runs/comparison")
        require(not self.all_pairs or len(self.runs) > 2, "--all_pairs has no effect with two runs: leave it out")


def main(config: CompareConfig) -> Comparison | None:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    if config.page is not None:
        write_page(config.runs, path_of(config.page))
        return None
    folder = None if config.output_dir is None else writable(path_of(config.output_dir))
    comparison = compare([read_run(path_of(run)) for run in config.runs], config.all_pairs)
    print(table(comparison))
    if folder is not None:
        write(comparison, folder)
        log.info("comparison: %s", folder)
    return comparison


def write_page(runs: tuple[str, ...], page: Path) -> None:
    """Print the table of all numbers; write it and the page."""
    models = read_models([path_of(run) for run in runs])
    writable(page.parent)
    beside = page.with_suffix(".md")
    require(page.exists() or not beside.exists(), f"{beside} is there, and the table of --page {page} would replace it: give another name")
    text = markdown_overview(models, beside)
    page.write_text(render_overview(models, page), encoding="utf-8")
    beside.write_text(text, encoding="utf-8")
    print(text, end="")
    log.info("page: %s; table: %s", page, beside)


def write(comparison: Comparison, folder: Path) -> None:
    """Write the numbers, the table and, with matplotlib, the picture."""
    (folder / "comparison.json").write_text(json.dumps(comparison.record(), indent=1) + "\n", encoding="utf-8")
    (folder / "comparison.md").write_text(markdown(comparison), encoding="utf-8")
    picture = folder / "comparison.png"
    picture.unlink(missing_ok=True)  # an older one would show other numbers
    if can_draw():
        draw_comparison(comparison, picture)


def table(comparison: Comparison) -> str:
    """The comparison for the screen, aligned."""
    runs = [(letter, run.shown, str(run.model["name"]), sha(run.model)) for letter, run in comparison.runs.items()]
    width = [max(len(line[column]) for line in runs) for column in range(4)]
    lines = ["  ".join(cell.ljust(width[i]) for i, cell in enumerate(line)).rstrip() for line in runs] + [""]
    rows = [HEAD, *map(cells, comparison.differences)]
    width = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines += ["  ".join(cell.ljust(width[i]) if i in WORDS else cell.rjust(width[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([*lines, "", *legend(comparison), *(f"note: {note}" for note in comparison.notes)])


def markdown(comparison: Comparison) -> str:
    """The comparison as ``comparison.md``."""
    lines = ["# Comparison", "", *(f"- {letter}: `{run.shown}`, {run.model['name']}, {sha(run.model)}" for letter, run in comparison.runs.items())]
    rule = [("---" if column in WORDS else "---:") for column in range(len(HEAD))]
    rows = [HEAD, rule, *map(cells, comparison.differences)]
    lines += ["", *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
    lines += ["", *legend(comparison)]
    if comparison.notes:
        lines += ["", *(f"- {note}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def sha(model: Mapping[str, Any]) -> str:
    return f"sha256 {str(model.get('sha256'))[:12]}"


def cells(one: Difference) -> tuple[str, ...]:
    """A row of the table."""
    low, high = (f"{100 * end:+.2f}" for end in one.interval)
    return (
        one.evaluation, f"{one.first}, {one.second}", str(one.n), *(f"{100 * share:.2f}" for share in one.accuracy), f"{100 * one.difference:+.2f}",
        f"[{low}, {high}]", str(len(one.only_first)), str(len(one.only_second)), chance(one.p), chance(one.p_holm), one.conclusion,
    )  # fmt: skip


def chance(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def legend(comparison: Comparison) -> list[str]:
    """How the table is to be read."""
    count = len(comparison.differences)
    return [
        "first, second: accuracy of the pair in %; difference: second - first in points, with Tango's 95 % score interval for paired samples.",
        "only first, only second: samples that one of both alone gets right. p: exact McNemar test on these, two-sided.",
        f"p (Holm): adjusted for {f'all {count} comparisons' if count > 1 else 'the one comparison'}; better or worse: it is below {LEVEL}. "
        "The intervals are not, and may exclude 0 where none is shown.",
        "All of it speaks of these trained models; the same training with another seed is another model.",
    ]


if __name__ == "__main__":
    command_line(main, CompareConfig)
