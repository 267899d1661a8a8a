"""How far something is: on a terminal, and in a file."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from rocl_transfer import bars
from rocl_transfer.bars import Bar, duration
from tests.conftest import ROOT


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bars, "time", clock)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.26, "0.26 s"), (42.4, "42 s"), (99, "99 s"), (336, "6 min"), (5400, "90 min"), (8000, "2.2 hours"), (4 * 86400, "4.0 days")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_a_file_gets_a_line_now_and_then(clock, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    with Bar(100_000, "training") as bar:
        for _ in range(1000):
            clock.now += 100
            bar.update(100, loss="1.5")
    lines = [record.message for record in caplog.records]
    assert lines[0] == "training: 100 of 100,000 images, 2 min, about 27.8 hours left (loss 1.5)"
    assert lines[-1] == "training: 100,000 of 100,000 images, 27.8 hours (loss 1.5)"
    assert 30 < len(lines) < 50  # one an hour at the least, more at the beginning


def test_what_is_over_soon_leaves_no_line(clock, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    with Bar(10, "training") as bar:
        for _ in range(10):
            clock.now += 2
            bar.update()
    with Bar(10, "training", shown=False) as bar:
        clock.now += 1000
        bar.update()
    assert not caplog.records


def test_what_is_done_once_more_counts_once_more_and_no_bar_passes_its_total(clock, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    bar = Bar(50, "evaluating", begun=20)
    clock.now = 40
    bar.to(30)
    bar.to(25)
    clock.now = 200
    bar.update(70.0)
    assert [record.message for record in caplog.records] == [
        "evaluating: 30.0 of 50 images, 40 s, about 80 s left",
        "evaluating: 50.0 of 50 images, 3 min",
    ]


def test_on_a_terminal_the_bar_moves_by_images_and_keeps_its_total(tmp_path):
    code = (
        "from rocl_transfer.bars import Bar\nimport time\n"
        "with Bar(1484, 'training') as bar:\n    for i in range(5):\n        time.sleep(0.15); bar.update(256, loss='1.0')\n    bar.to(512)\n"
    )
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    done = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=terminal, env={"PYTHONPATH": str(ROOT)})
    assert done.wait(60) == 0
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 4096):
            shown += part
    except OSError:  # the end of a terminal
        pass
    counts = re.findall(r"(\d+)/(\d+)", shown.decode())
    assert {total for _, total in counts} == {"1484"}
    assert {"0", "1280", "512"} <= {count for count, _ in counts}
    assert "image" in shown.decode()


@pytest.mark.parametrize("value", ["1", "true"])
def test_no_bar_shows_anything_where_tqdm_is_disabled(clock, monkeypatch, caplog, value):
    caplog.set_level(logging.INFO, "rocl_transfer")
    monkeypatch.setenv("TQDM_DISABLE", value)
    monkeypatch.setattr(bars, "tqdm", lambda **options: pytest.fail("a bar of tqdm's"))
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        with Bar(10, "training") as bar:
            clock.now += 1000
            bar.update(10)
    assert not caplog.records


def test_nobody_makes_a_bar_of_another_kind():
    for path in (ROOT / "rocl_transfer").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) tqdm\S* ?.*$", path.read_text(), re.MULTILINE)
        assert path.name == "bars.py" or all("logging_redirect_tqdm" in line for line in imports), path
