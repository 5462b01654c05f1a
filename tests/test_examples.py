"""The examples do what they say, as processes that a newcomer starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.nodes import ENVIRONMENT, poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from posthog_jobs.celery import PostHogJobs


def start_demo(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(folder), "CELERY_BROKER_URL": "redis://127.0.0.1:1/"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that have to do with a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            cwd = str((process / "cwd").readlink())
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command or str(folder) in cwd or f"={folder}" in environment:
            found.append(command)
    return found


def test_the_demo_finds_the_teapot(tmp_path: Path) -> None:
    """Demo: it ends with the teapot and exit code 0, within 30 s, and leaves nothing behind."""
    demo = start_demo(tmp_path)

    output = demo.communicate(timeout=30)[0]

    assert demo.returncode == 0, output
    assert output.rstrip().endswith("found the teapot!")
    assert output.count("answered 503") == 3
    assert output.count("answered 418") == 1
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_cleans_up_when_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """Demo: after Ctrl-C, or SIGTERM, no process and no file is left."""
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "answered 503" in line:
            break

    os.kill(demo.pid, number)

    assert demo.wait(20) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert list(tmp_path.iterdir()) == []
    poll("the end of all processes", lambda: processes_of(tmp_path) == [])


class Endpoint(ThreadingHTTPServer):
    """Answers with one status after another, the last one for good; keeps what was posted."""

    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = statuses
        self.posted: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.end_headers()
        self.server.posted.append(json.loads(body))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint([503, 200])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class TestRetryExport:
    """The app `examples.retry_export` in a real worker."""

    @pytest.fixture
    def settings(self, endpoint: Endpoint) -> dict[str, Any]:
        url = f"http://127.0.0.1:{endpoint.server_address[1]}/"
        return {
            "posthog_jobs_apps": {
                "export": {"module": "examples.retry_export", "config": {"url": url}}
            }
        }

    def test_a_failed_request_is_retried_later(
        self, jobs_app: PostHogJobs, endpoint: Endpoint
    ) -> None:
        """Retry export: an event that the endpoint refuses is sent again after 3 s."""
        jobs_app.capture({"event": "sign up", "properties": {"plan": "free"}})

        poll("two requests", lambda: len(endpoint.posted) == 2)

        first, second = endpoint.posted
        assert first == second
        assert first["properties"] == {"plan": "free"}
        poll("the count", lambda: jobs_app.meta_for("export").cache.get("exported") == 1)
