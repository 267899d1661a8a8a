"""Bars of progress: they move on a terminal and leave a line now and then in a file; their totals never change while they run."""

import logging
import os
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

log = logging.getLogger("rocl_transfer")
_FIRST, _LEAST, _MOST = 30.0, 60.0, 3600.0  # seconds to the first line in a file, and between lines: half of what has passed, within these


def duration(seconds: float) -> str:
    """``seconds`` as a person says them: 42 s, 5 min, 3.5 hours, 4.1 days."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class Bar:
    """How far something is, of a total that is known when it begins.

    Args:
        total: How many of the ``unit``.
        what: Is being done.
        unit: What is counted.
        begun: What was done before.
        shown: Whether this process shows anything.
        delay: Seconds before anything is shown on a terminal.
    """

    def __init__(self, total: float, what: str, unit: str = "image", *, begun: float = 0, shown: bool = True, delay: float = 0) -> None:
        self.total, self.what, self.unit, self.done, self.begun = total, what, unit, float(begun), float(begun)
        self.shown = shown and os.environ.get("TQDM_DISABLE", "") in ("", "0")
        self.digits = 1 if total < 100 else 0  # of few images, a tenth is worth showing
        self.start = time.monotonic()
        self.due, self.lines, self.words = _FIRST, 0, ""
        self.bar: Any = None
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(total=round(total), initial=round(begun), unit=unit, desc=what, delay=delay, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def update(self, amount: float = 1, **numbers: str) -> None:
        """``amount`` more is done; ``numbers`` are shown beside it."""
        self.to(self.done + amount, **numbers)

    def to(self, done: float, **numbers: str) -> None:
        """So much is done, less than before where something is done once more."""
        self.done = min(done, self.total)
        if numbers:
            self.words = ", ".join(f"{name} {value}" for name, value in numbers.items())
        if self.bar is not None:
            if numbers:
                self.bar.set_postfix_str(self.words, refresh=False)
            shown = round(self.done, self.digits) if self.digits else round(self.done)
            if shown < self.bar.n:
                self.bar.n = shown
                self.bar.refresh()
            else:
                self.bar.update(shown - self.bar.n)
        elif self.shown and (passed := time.monotonic() - self.start) >= self.due:
            self._line(passed)
            self.due = passed + min(max(passed / 2, _LEAST), _MOST)

    def _line(self, passed: float) -> None:
        self.lines += 1
        left, gained = "", self.done - self.begun
        if gained > 0 and self.done < self.total:
            left = f", about {duration(passed * (self.total - self.done) / gained)} left"
        beside = f" ({self.words})" if self.words else ""
        log.info(
            "%s: %s of %s %ss, %s%s%s", self.what, f"{self.done:,.{self.digits}f}", f"{self.total:,.0f}", self.unit, duration(passed), left, beside
        )

    def close(self) -> None:
        """Nothing moves any more; a file that has lines gets a last one."""
        if self.bar is not None:
            self.bar.close()
        elif self.lines:
            self._line(time.monotonic() - self.start)
            self.lines = 0
