"""What a user can mend: one sentence that names the thing and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake of the user's, told in one sentence. Recipes print it last and end with status 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a sentence: ``"; did you mean 'x'?"`` where something known is near, else nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
