"""Requests, answers, and which function makes one of the other."""

import email.message
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .repos import Commit, HubError, Repo
from .state import State, User


@dataclass
class Answer:
    """A status, headers and a body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Answer":
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    @classmethod
    def error(cls, error: HubError) -> "Answer":
        found = {"X-Error-Code": error.code, "X-Error-Message": error.message, "X-Repo-Commit": error.commit}
        return cls.json({"error": error.message}, error.status, {name: value for name, value in found.items() if value})


@dataclass
class Call:
    """A request, with what its path names."""

    hub: State
    method: str
    path: str
    headers: email.message.Message
    body: bytes
    names: dict[str, str] = field(default_factory=dict)

    @property
    def user(self) -> User | None:
        """Who asks; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise HubError(401, message="Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def repo(self, write: bool = False) -> Repo:
        """The repository in the path."""
        type = (self.names["type"] or "models").strip("/").removesuffix("s")
        return self.hub.find(type, self.names["id"], self.user, write)

    def commit(self) -> Commit:
        """The commit in the path."""
        return self.repo().at(self.names.get("rev") or "main")


ROUTES: list[tuple[str, re.Pattern[str], Callable[[Call], Answer]]] = []


def route(methods: str, pattern: str) -> Callable[[Callable[[Call], Answer]], Callable[[Call], Answer]]:
    """Answer requests of these methods whose path is of this pattern."""
    pattern = pattern.replace("API", "/api/(?P<type>models|datasets|spaces)/ID").replace("WEB", "/(?P<type>datasets/|spaces/)?ID")
    pattern = pattern.replace("ID", "(?P<id>[^/]+(?:/[^/]+)?)").replace("REV", "(?P<rev>[^/]+)").replace("PATH", "(?P<path>.+)")

    def note(function: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return note


def answer(call: Call) -> Answer:
    """The answer to a request."""
    try:
        for methods, pattern, function in ROUTES:
            found = pattern.fullmatch(call.path.partition("?")[0])
            if found and call.method in methods:
                call.names = {name: unquote(value or "") for name, value in found.groupdict().items()}
                with call.hub.lock:
                    return function(call)
        raise HubError(404, message=f"The stand-in does not know {call.method} {call.path}")
    except HubError as error:
        return Answer.error(error)
