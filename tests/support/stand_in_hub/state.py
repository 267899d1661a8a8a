"""What the stand-in Hub holds: users, repositories, large files, the log of requests and the orders."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from .faults import Fault, Orders
from .repos import Commit, File, HubError, Repo

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and whether it may write."""

    name: str
    write: bool


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str  # with its query, as it was sent
    token: bool
    range: str | None
    status: int = 0  # of the answer; 0 if there was none


class State:
    """A Hub without its server.

    ``hf_owner`` is a token of "user" that may write, ``hf_reader`` one that may only read, ``hf_stranger`` one of somebody else; more can be
    put into ``users``. Any other token is refused, as is the owner's in a foreign namespace.
    """

    def __init__(self) -> None:
        self.users = {OWNER: User("user", True), READER: User("user", False), STRANGER: User("stranger", True)}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256, committed or not
        self.xorbs: dict[str, list[bytes]] = {}
        self.requests: list[Seen] = []
        self.lock = threading.RLock()
        self.orders = Orders()
        self.down = False
        self.endpoint = ""  # what HF_ENDPOINT is to be
        self.storage = ""  # where large files are: like the Hub's, another host, to which clients send no token

    def add_repo(self, id: str, files: Mapping[str, bytes], type: str = "model", private: bool = False, title: str = "Add files") -> Commit:
        """Put ``files``, and no others, on the main branch of a repository that is made if need be."""
        with self.lock:
            repo = self.repos.setdefault((type, id), Repo(id, type, private))
            return repo.commit({path: File.of(path, data) for path, data in files.items()}, title)

    def repo(self, id: str, type: str = "model") -> Repo:
        """A repository, for what :meth:`files` does not tell."""
        return self.repos[type, id]

    def files(self, id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        """What a repository holds at a revision; one that a client made holds .gitattributes as well."""
        return {path: file.data for path, file in self.repo(id, type).at(revision).files.items()}

    def order(self, fault: Fault) -> Fault:
        """Let a fault happen; its ``met`` tells how often it did."""
        self.orders.faults.append(fault)
        return fault

    def seen(self, method: str = "", path: str = "") -> list[Seen]:
        """Requests of a method, with this text in their path."""
        return [request for request in self.requests if method in ("", request.method) and path in request.path]

    def find(self, type: str, id: str, user: User | None, write: bool = False) -> Repo:
        """The repository, if ``user`` may see it, and write where that is wanted."""
        repo = self.repos.get((type, id))
        owns = user is not None and user.name == id.split("/")[0]
        if user is None and (write or repo is None or repo.private):
            # The Hub sends no code with it; clients read RepoNotFound from its https address, which this one has not.
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        if repo is None or (repo.private and not owns):  # nobody else is told whether a private repository exists
            raise HubError(404, "RepoNotFound")
        if write and not (owns and user and user.write):
            raise HubError(403, message="Forbidden: you don't have write access to this repository")
        return repo
