"""`meta.posthog`: into a real HTTP server by the official client, or into our own hooks."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    BrokerUnavailableError,
    CaptureError,
    ConfigurationError,
    EventError,
    PayloadError,
    PayloadTooLargeError,
)
from posthog_jobs.meta.posthog import PostHogClient
from tests.conftest import APPS
from tests.servers.nodes import HOST, closed_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.nodes import RedisProcess

NOW = datetime.now(UTC).isoformat()


class Ingestion(ThreadingHTTPServer):
    """Takes events as PostHog does, and keeps them; it can be told to refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.events: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Ingestion

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status == 200:
            self.server.events += body["batch"]
            self.server.keys.add(body["api_key"])
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b'{"status": 1}')

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def ingestion() -> Iterator[Ingestion]:
    with Ingestion() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def app_with(broker_url: str, **options: Any) -> PostHogJobs:
    return PostHogJobs(
        config_source={"broker_url": broker_url, "posthog_jobs_apps": APPS, **options}
    )


@pytest.fixture
def posthog(ingestion: Ingestion, idle_server: RedisProcess) -> Any:
    app = app_with(
        idle_server.url,
        posthog_jobs_posthog_host=ingestion.url,
        posthog_jobs_posthog_project_key="phc_key",
    )
    return app.meta_for("second").posthog


def test_the_official_client_has_sent_it(posthog: Any, ingestion: Ingestion) -> None:
    """PostHog: an event is there when capture returns, with its own distinct id or the app's."""
    happened = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert posthog.capture("tea is ready", {"cups": 2}) is None
    posthog.capture("tea is cold", {"distinct_id": "ada", "timestamp": happened})

    first, second = ingestion.events
    assert (first["event"], first["distinct_id"]) == ("tea is ready", "posthog-jobs-second")
    assert first["properties"]["cups"] == 2
    assert (second["event"], second["distinct_id"]) == ("tea is cold", "ada")
    assert second["timestamp"].startswith("2026-01-02T03:04:05")
    assert first["uuid"] != second["uuid"]
    assert ingestion.keys == {"phc_key"}


def test_coroutines_await_and_need_not(posthog: Any, ingestion: Ingestion) -> None:
    """PostHog: a coroutine is not blocked; what it does not await is sent all the same."""

    async def use() -> None:
        posthog.capture("one")
        await posthog.capture("two")

    asyncio.run(use())

    assert [event["event"] for event in ingestion.events] == ["one", "two"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_sends_too(posthog: Any, ingestion: Ingestion) -> None:
    """PostHog: a fork of a process that has captured has a client of its own, and loses nothing."""
    posthog.capture("parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            posthog.capture("child")
            code = 0
        finally:
            os._exit(code)

    assert os.waitpid(child, 0)[1] == 0
    assert [event["event"] for event in ingestion.events] == ["parent", "child"]


def test_posthog_refuses_or_is_away(posthog: Any, ingestion: Ingestion) -> None:
    """PostHog: an event that PostHog did not take is an error that shows no key."""
    ingestion.status = 401
    with pytest.raises(CaptureError, match="did not take the event 'tea'") as refused:
        posthog.capture("tea")
    away = PostHogClient(f"http://{HOST}:{closed_port()}", "phc_key").sink(
        {"event": "tea", "distinct_id": "a", "properties": {}, "uuid": None, "timestamp": NOW}
    )
    with pytest.raises(CaptureError):
        away()
    assert "phc_key" not in str(refused.value)
    assert ingestion.events == []


def test_without_the_extra(posthog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostHog: without the client's package the first use says what to install."""
    monkeypatch.setitem(sys.modules, "posthog", None)

    with pytest.raises(ConfigurationError, match=r"'posthog-jobs\[posthog\]'"):
        posthog.capture("tea")


def queued(server: RedisProcess) -> list[dict[str, Any]]:
    return [json.loads(message) for message in server.client.lrange("celery", 0, -1)]


def test_our_own_hooks_without_a_host(idle_app: PostHogJobs, idle_server: RedisProcess) -> None:
    """PostHog: with no host an event goes to the hooks of the installation's team, as captured."""
    posthog = idle_app.meta_for("second").posthog
    assert posthog.capture("tea is ready", {"cups": 2}) is None

    async def use() -> None:
        posthog.capture("one", {"distinct_id": "ada"})
        await posthog.capture("two")

    asyncio.run(use())

    assert len(queued(idle_server)) == 3
    assert {message["headers"]["task"] for message in queued(idle_server)} == {
        "posthog_jobs.capture"
    }


def test_what_our_own_hooks_get(idle_app: PostHogJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostHog: the event has the team, a time, an id, and the properties that were given then."""
    sent: list[dict[str, Any]] = []
    sender = type(idle_app.runtime.outbox.sender)
    monkeypatch.setattr(sender, "capture", lambda self, event, task_id, size: sent.append(event))
    properties = {"cups": [1], "distinct_id": "ada"}
    idle_app.meta_for("second").posthog.capture("tea", properties)
    properties["cups"].append(2)  # type: ignore[attr-defined]

    assert len(sent) == 1
    assert sent[0]["properties"] == {"cups": [1], "distinct_id": "ada"}
    assert (sent[0]["event"], sent[0]["distinct_id"], sent[0]["team_id"]) == ("tea", "ada", 2)
    assert datetime.fromisoformat(sent[0]["timestamp"]).tzinfo is not None
    assert sent[0]["uuid"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None,), EventError),
        (("",), EventError),
        (("tea", ["cups"]), EventError),
        (("tea", {"cups": {1}}), PayloadError),
        (("tea", {1: 2}), PayloadError),
        (("tea", {"timestamp": "yesterday"}), EventError),
        (("tea", {"timestamp": "2026-01-02T03:04:05"}), EventError),
        (("tea", {"timestamp": 5}), EventError),
        (("tea", {"cups": "x" * 2_000_000}), PayloadTooLargeError),
    ],
)
def test_what_is_no_event(
    idle_app: PostHogJobs, idle_server: RedisProcess, arguments: Any, error: type[Exception]
) -> None:
    """PostHog: what is no event is refused where it is given, in coroutines too."""
    posthog = idle_app.meta_for("second").posthog

    async def use() -> None:
        with pytest.raises(error):
            posthog.capture(*arguments)

    asyncio.run(use())
    assert queued(idle_server) == []


def test_the_broker_is_away(idle_app: PostHogJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostHog: with no host and no broker, an event that was not taken is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr("posthog_jobs.worker.hook_tasks.CaptureTask.apply_async", refuse)
    with pytest.raises(BrokerUnavailableError):
        idle_app.meta_for("second").posthog.capture("tea")


@pytest.mark.parametrize(
    "options",
    [
        {"posthog_jobs_posthog_host": "https://eu.i.posthog.com"},
        {"posthog_jobs_posthog_project_key": "phc_key"},
    ],
)
def test_host_and_key_belong_together(options: dict[str, str]) -> None:
    """Settings: one of PostHog's two settings without the other is refused."""
    with pytest.raises(ConfigurationError, match="belong together") as raised:
        assert app_with("memory://", **options).runtime
    assert "phc_key" not in str(raised.value)
