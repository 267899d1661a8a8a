"""A Hub on loopback for tests: what the real clients need to publish and load, and faults to order.

``with StandInHub() as hub``: run a child process with ``{**os.environ, **hub.environment(home)}`` and look at ``hub.files(...)`` and
``hub.requests`` afterwards. Everything is held in memory and is gone at the end.

Not there: pull requests, the running of Spaces, organisations, pages of long lists, uploads in parts, downloads by Xet, the dataset viewer, and gated
repositories other than as a fault (``Fault("status", path, status=403, code="GatedRepo")``).
"""

from .faults import Fault, Kind
from .repos import Commit, File, HubError, Repo
from .server import StandInHub
from .state import OWNER, READER, STRANGER, Seen, User

__all__ = ["OWNER", "READER", "STRANGER", "Commit", "Fault", "File", "HubError", "Kind", "Repo", "Seen", "StandInHub", "User"]
