"""What the Hub's client raises: tried again where that may help, then one sentence with a remedy. No sentence ever holds a token."""

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, errors

from rocl_transfer.errors import UserError

log = logging.getLogger("rocl_transfer")
Result = TypeVar("Result")

_PAUSES = (1.0, 4.0)  # seconds before the second and the third attempt
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
# The first that fits; several are each other's subclasses.
_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (errors.HFValidationError, "{reason}; write USER/NAME"),
    (errors.LocalTokenNotFoundError, f"no token; {_LOGIN}"),
    (errors.GatedRepoError, f"its owner has to let you in; ask there, then {_LOGIN}"),
    (errors.RevisionNotFoundError, "there is no such revision; check the branch, tag or commit"),
    (errors.RepositoryNotFoundError, f"there is no such repository, or your token does not open it; check the name, or {_LOGIN}"),
    (errors.OfflineModeIsEnabled, "offline mode is on; unset HF_HUB_OFFLINE"),
    # Also what the client says when it could not connect.
    (errors.LocalEntryNotFoundError, "it is not in the cache, and the Hub did not give it; check your network, and HF_HUB_OFFLINE"),
    (errors.EntryNotFoundError, "a file is missing ({reason})"),
)
_STATUSES = {
    401: f"the Hub does not know the token; {_LOGIN}",
    403: "your token does not allow it; use one with the right to write there",
    429: "the Hub wants fewer requests; try again later",
}


def patiently(call: Callable[[], Result], what: str) -> Result:
    """Make a call to the Hub, again where the fault may pass: the client repeats some requests itself, but no commit, and few that failed with 500.

    Args:
        call: Harmless to repeat.
        what: Failed, if it did: the beginning of the sentence.

    Raises:
        UserError: It failed for good, or three times.
    """
    for pause in (*_PAUSES, None):
        try:
            return call()
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise explain(error, what) from error
            log.info("%s (%s): trying again", what, _reason(error))
            time.sleep(pause)
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    if isinstance(error, errors.LocalEntryNotFoundError):  # said of a Hub that failed, too
        return not constants.HF_HUB_OFFLINE
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status >= 500 or status == 429
    final = (UserError, ValueError, TypeError, LookupError, AssertionError, PermissionError, FileNotFoundError)
    return not isinstance(error, (*final, *(kind for kind, _ in _REMEDIES)))


def explain(error: Exception, what: str) -> UserError:
    """The sentence for ``error``, beginning with ``what`` failed."""
    if isinstance(error, UserError):
        return error
    reason = _reason(error)
    remedy = next((words for kind, words in _REMEDIES if isinstance(error, kind)), None)
    if remedy is None and isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        remedy = _STATUSES.get(status, "the Hub failed ({reason}); try again later" if status >= 500 else "the Hub answered: {reason}")
    remedy = remedy or f"{type(error).__name__}: {{reason}}; check your network, and try again"
    return UserError(f"{what}: {remedy.replace('{reason}', reason)}")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    plain = re.sub(r"(https?://[^/\s']+)[^\s']*", r"\1", lines[0])  # the rest of an address may be signed
    return re.sub(r"hf_\w+", "(token)", plain)[:200].rstrip(".")
