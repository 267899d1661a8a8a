"""Faults to order: what goes wrong with which request, how often."""

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["status", "slow", "cut", "lost", "flipped", "shortened"]
CHUNK = 1 << 16


@dataclass
class Fault:
    """What goes wrong.

    ``status``: answered with ``status`` before anything is done. ``lost``: done, but the connection closes in place of an answer. The others
    are about a body, the request's where it has one, else the answer's (redirects and errors do not count): ``slow`` waits ``seconds``
    before every 64 KiB of it (and before the answer to a HEAD), ``cut`` closes the connection after ``share`` of it, ``flipped`` changes
    one bit, ``shortened`` announces and carries only ``share`` of it.
    """

    kind: Kind
    path: str = ""  # a regular expression, looked for in the path with its query
    method: str = ""  # another one; GET, HEAD, POST, ...
    times: int = 1
    status: int = 500
    code: str = ""  # X-Error-Code, such as GatedRepo; empty: what the Hub says most often with this status
    seconds: float = 1.0  # of status 429: what Retry-After says
    share: float = 0.5
    met: int = 0  # how often it happened

    def damage(self, body: bytes) -> bytes:
        """``body`` as it arrives."""
        if self.kind == "flipped" and body:
            middle = len(body) // 2
            return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return body[: int(len(body) * self.share)] if self.kind == "shortened" else body


class Orders:
    """Faults that were ordered; the first that fits is taken."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._lock = threading.Lock()

    def take(self, method: str, path: str, kinds: Iterable[Kind]) -> Fault | None:
        """The fault that befalls this request, if any; it counts as met."""
        with self._lock:
            for fault in self.faults:
                if fault.kind in kinds and fault.met < fault.times and re.search(fault.path, path) and re.search(fault.method, method):
                    fault.met += 1
                    return fault
        return None
