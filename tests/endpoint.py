"""An HTTP server on this machine that answers as a test wants, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from tests.servers.nodes import HOST, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the server was asked; the names of headers are in small letters."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it answers; one that hangs takes the request, and says nothing."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hangs: bool = False


class Endpoint(ThreadingHTTPServer):
    """Gives one answer after another, then those of a function, or 200. Runs in a `with`."""

    def __init__(
        self, *answers: Answer, then: Callable[[Request], Answer] = lambda _: Answer()
    ) -> None:
        super().__init__((HOST, 0), _Handler)
        self.requests: list[Request] = []
        self._instead = dict(enumerate(answers))
        self._then = then
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def answers_after(self, count: int, answer: Answer) -> None:
        """Give this answer, in place of the function's, to the request after so many."""
        self._instead[count] = answer

    def wait_for(self, count: int) -> None:
        """Wait for so many requests, and see that there are no more."""
        poll(f"request {count}", lambda: len(self.requests) >= count)
        assert len(self.requests) == count

    def answer(self, request: Request) -> Answer:
        with self._lock:
            answer = self._instead.pop(len(self.requests), None) or self._then(request)
            self.requests.append(request)
        if answer.hangs:
            self._over.wait()
        return answer

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers["content-length"]))
        answer = self.server.answer(Request(path=self.path, headers=headers, body=body))
        if answer.hangs:
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
