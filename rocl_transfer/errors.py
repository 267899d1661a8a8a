"""What a user can mend: one sentence that names the thing and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_PICKLES = (".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")  # what torch, NumPy and pandas read them under


class UserError(Exception):
    """A mistake of the user's, told in one sentence. Recipes print it last and end with status 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a sentence: ``"; did you mean 'x'?"`` where something known is near, else nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_pickle(paths: Iterable[Path]) -> str:
    """The tail of a sentence that says why nothing is read: names the first file that is a pickle by its extension, else nothing."""
    found = sorted(path.name for path in paths if path.suffix.lower() in _PICKLES)
    return f"; {found[0]} is a pickle, which can run code when it is read, and is never opened" if found else ""
