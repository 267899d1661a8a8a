"""The server: HTTP in and out, and the faults in between."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

from . import publishing, reading  # noqa: F401 their routes
from .faults import CHUNK, Fault, Kind
from .repos import MESSAGES, HubError
from .routes import Answer, Call, answer
from .state import Seen, State

_OF_THE_BODY: tuple[Kind, ...] = ("slow", "cut", "flipped", "shortened")


class ClosedError(Exception):
    """The connection was closed as ordered."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    hub: ClassVar[State]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms an answer otherwise

    def log_message(self, *_: object) -> None:
        """The log is ``hub.requests``."""

    def _serve(self) -> None:
        seen = Seen(self.command, self.path, "Authorization" in self.headers, self.headers.get("Range"))
        self.hub.requests.append(seen)
        with contextlib.suppress(ClosedError, ConnectionError):
            if self.hub.down:
                self._close()
            body = self._receive()
            if fault := self._fault("status"):
                result = _refusal(fault, self.path)
            else:
                result = answer(Call(self.hub, self.command, self.path, self.headers, body))
            if self._fault("lost"):
                self._close()
            seen.status = result.status  # before it is sent: the client may be done before this thread continues
            self._send(result)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 the names that BaseHTTPRequestHandler looks for

    def _fault(self, *kinds: Kind) -> Fault | None:
        return self.hub.orders.take(self.command, self.path, kinds)

    def _receive(self) -> bytes:
        size = int(self.headers.get("Content-Length", 0))
        fault = self._fault(*_OF_THE_BODY) if size else None
        body = bytearray()
        for end in _ends(fault, size):
            body += self.rfile.read(end - len(body))
        if fault and fault.kind == "cut":
            self._close()
        return fault.damage(bytes(body)) if fault else bytes(body)

    def _send(self, result: Answer) -> None:
        body = result.body
        fault = None
        if self.command == "HEAD":
            fault = self._fault("slow")
        elif self.command == "GET" and result.status < 300:
            fault = self._fault(*_OF_THE_BODY)
        if fault:
            body = fault.damage(body)
        self.send_response(result.status)
        for name, value in {"Content-Length": str(len(body)), **result.headers}.items():
            self.send_header(name, value)
        if self.command == "HEAD":
            if fault:
                time.sleep(fault.seconds)
            self.end_headers()
            return
        self.end_headers()
        sent = 0
        for end in _ends(fault, len(body)):
            self.wfile.write(body[sent:end])
            sent = end
        if fault and fault.kind == "cut":
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ClosedError


def _ends(fault: Fault | None, size: int) -> Iterator[int]:
    """Where the parts end that a body passes in."""
    if fault is not None and fault.kind == "slow":
        for start in range(0, size, CHUNK):
            time.sleep(fault.seconds)
            yield min(size, start + CHUNK)
    else:
        yield int(size * fault.share) if fault is not None and fault.kind == "cut" else size


def _refusal(fault: Fault, path: str) -> Answer:
    """What the Hub answers with this status."""
    code = fault.code
    if fault.status == 404 and not code:
        code = "EntryNotFound" if "/resolve/" in path else "RepoNotFound" if path.startswith("/api/") else ""
    messages = {
        401: "Invalid credentials in Authorization header",
        403: "Forbidden: you don't have the right to do this",
        429: "We had to rate limit you",
    }
    result = Answer.error(HubError(fault.status, code, MESSAGES.get(code) or messages.get(fault.status, "Internal Error")))
    if fault.status == 429:
        result.headers["Retry-After"] = str(int(fault.seconds))
    return result


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # with the usual 5, parallel downloads wait a second for a lost SYN
    block_on_close = False  # a client that keeps its connection must not keep the test

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients that end reset theirs; anything else is a mistake here
            super().handle_error(request, client_address)


class StandInHub(State):
    """A Hub on loopback; enter it to start it."""

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on, and close those that clients kept, as a Hub that is down."""
        self.down = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Variables for a child process: this Hub, a cache of its own, and nothing of the user's."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",  # empty hides one that the user has
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",  # hf_xet tries as often as ever, but minutes sooner
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **more,
        }
