"""What a user can mend: one sentence that names the thing and the remedy."""

import json
import os
import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

_PICKLES = (".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")  # what torch, NumPy and pandas read them under
# Line breaks of every kind, terminal commands, letters that turn the writing around, and bytes of a name that are no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake of the user's, told in one sentence. Recipes print it last and end with status 2."""


class Interrupted(KeyboardInterrupt):
    """A signal that asks the program to end; no handler of errors takes it for one.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number
        self.saved = ""

    def __str__(self) -> str:
        return f"{self.args[0]}{self.saved}"

    @property
    def status(self) -> int:
        """What shells and schedulers expect of a process that a signal ended."""
        return 128 + self.number


def one_line(text: str) -> str:
    """``text`` as it can be printed and listed whatever a file is called: what would break or forge a line is written as its code."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def tell_launcher(sentence: str) -> None:
    """Leave ``sentence`` where torchrun and ``accelerate launch`` over several processes look for what ended one: it stands in their last lines.

    They otherwise end with a page of their own, in which the cause is a link to their manual.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": sentence, "extraInfo": {"py_callstack": sentence, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")


def path_of(name: str | Path) -> Path:
    """``name`` as a path, with the home folder where ``~`` or ``~USER`` stands.

    Raises:
        UserError: There is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name} begins with the home folder of a user who does not exist here: write ./{name} for a file of that name, or the whole path"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a sentence: ``"; did you mean 'x'?"`` where something known is near, else nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_pickle(paths: Iterable[Path]) -> str:
    """The tail of a sentence that says why nothing is read: names the first file that is a pickle by its extension, else nothing."""
    found = sorted(path.name for path in paths if path.suffix.lower() in _PICKLES)
    return f"; {found[0]} is a pickle, which can run code when it is read, and is never opened" if found else ""
