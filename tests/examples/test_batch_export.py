"""The app `examples.batch_export`: batches that outlast an endpoint that is busy or away."""

from __future__ import annotations

import gzip
import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest

from examples import batch_export
from posthog_jobs.errors import AppConfigError
from posthog_jobs.testing import AppTester, create_event
from tests.endpoint import Answer, Endpoint
from tests.servers.nodes import HOST, closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs.celery import PostHogJobs
    from tests.endpoint import Request

TOKEN = {"content_type": "text/plain", "file_name": "token.txt", "contents": b"let me in\n"}
EVENTS = [create_event(properties={"number": number}) for number in range(3)]
BUSY = Answer(status=500)
HANGS = Answer(hangs=True)
SLOW_DOWN = Answer(status=429, headers={"Retry-After": "1"})


def install(url: str, **config: Any) -> AppTester:
    return AppTester(batch_export, config={"url": url, "timeout": "60", **config})


def rows(request: Request) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(request.body).splitlines()]


class TestBatch:
    """One batch, and one endpoint."""

    def test_posted(self) -> None:
        """Batch export: a batch is one request of gzipped lines, with the token and a key."""
        with Endpoint() as endpoint:
            app = install(endpoint.url, token=TOKEN)
            app.export_events(EVENTS)
            app.export_events(EVENTS[:1])
            app.export_events(EVENTS)

        first, other, again = endpoint.requests
        assert [row["properties"]["number"] for row in rows(first)] == [0, 1, 2]
        assert first.headers["authorization"] == "Bearer let me in"
        assert first.headers["content-encoding"] == "gzip"
        assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
        assert first.headers["idempotency-key"] != other.headers["idempotency-key"]
        assert app.metrics == {"events": 7, "batches": 3, "largest": 3}

    def test_rows(self) -> None:
        """Batch export: each row has the same columns, filled from where the event has them."""
        with Endpoint() as endpoint:
            app = install(endpoint.url)
            app.export_events(
                [
                    create_event(uuid="one", properties={"$ip": "198.51.100.1"}),
                    {"event": "bare"},
                    create_event(**{"$set": {"email": "a@example.com"}, "timestamp": ""}),
                ]
            )

        full, bare, other = rows(endpoint.requests[0])
        assert "authorization" not in endpoint.requests[0].headers
        assert list(full) == list(bare) == list(other)
        assert (full["uuid"], full["ip"]) == ("one", "198.51.100.1")
        assert full["timestamp"] == create_event()["timestamp"]
        assert (bare["event"], bare["team_id"], bare["properties"]) == ("bare", 1, {})
        assert (bare["uuid"], bare["timestamp"], bare["people_set"]) == (None, None, {})
        assert (other["ip"], other["timestamp"]) == (create_event()["ip"], create_event()["now"])
        assert other["people_set"] == {"email": "a@example.com"}

    def test_not_now(self) -> None:
        """Batch export: 500, 429, silence and no server are tried again; Retry-After is heeded."""
        dated = Answer(status=429, headers={"Retry-After": "Wed, 21 Oct 2035 07:28:00 GMT"})
        with Endpoint(BUSY, SLOW_DOWN, dated, HANGS, Answer(status=408)) as endpoint:
            app = install(endpoint.url, timeout="2")
            start = app.clock.now
            app.export_events(EVENTS)
            ran = app.run_due(after=(1, "hour"))
        away = install(f"http://{HOST}:{closed_port()}/")
        away.export_events(EVENTS)

        waits = [6, 1, 24, 48, 96]
        assert [(job.due - start).total_seconds() for job in ran] == list(accumulate(waits))
        app.jobs.assert_nothing_scheduled()
        away.jobs.assert_scheduled("export_events", payload=EVENTS, in_=(6, "seconds"))
        assert len({each.headers["idempotency-key"] for each in endpoint.requests}) == 1
        assert app.metrics == {"events": 3, "batches": 1, "largest": 3}

    @pytest.mark.parametrize("status", [302, 401, 413, 422])
    def test_refused(self, status: int) -> None:
        """Batch export: what the endpoint does not take is no matter of time."""
        with Endpoint(Answer(status=status)) as endpoint:
            app = install(endpoint.url)
            with pytest.raises(batch_export.RefusedError, match=f"answered {status} to 3 events"):
                app.export_events(EVENTS)

        assert app.metrics == {"events": 0, "batches": 0, "largest": None}


class TestConfig:
    """What is shared by exports, and what cannot be configured."""

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"url": "warehouse.example"}, "url begins with neither"),
            ({"timeout": "soon"}, "soon"),
            ({"token": {**TOKEN, "contents": "é".encode()}}, "ascii"),
        ],
    )
    def test_what_cannot_be(self, config: dict[str, Any], message: str) -> None:
        """Bad input: a config that cannot work fails before the first export."""
        with pytest.raises(ValueError, match=message):
            install(**{"url": "http://warehouse.example/", **config}).setup()

    def test_what_is_missing(self) -> None:
        """Bad input: no endpoint is refused where it is installed."""
        with pytest.raises(AppConfigError, match="'url'"):
            AppTester(batch_export)

    def test_teardown(self) -> None:
        """Batch export: the connections are closed, and a new process opens its own."""
        with Endpoint() as endpoint:
            app = install(endpoint.url)
            client = app.setup().global_["client"]
            app.teardown()
            app.export_events(EVENTS)

        assert client.is_closed
        assert len(endpoint.requests) == 1


class TestWorker:
    """In a real worker."""

    @pytest.fixture
    def endpoint(self) -> Iterator[Endpoint]:
        with Endpoint(BUSY, SLOW_DOWN, HANGS, then=answer) as endpoint:
            yield endpoint

    @pytest.fixture
    def settings(self, endpoint: Endpoint) -> dict[str, Any]:
        config = {
            "url": endpoint.url,
            "token": TOKEN,
            "timeout": "2",
            "exportEventsBufferSeconds": "2",
        }
        app = {"module": "examples.batch_export", "config": config}
        return {"posthog_jobs_apps": {"batches": app}}

    def test_from_capturing_to_replaying(
        self, jobs_app: PostHogJobs, endpoint: Endpoint, run_now: Callable[[str, str], Any]
    ) -> None:
        """Batch export: a batch outlasts 500, 429 and silence; a refused one can be replayed."""
        for event in [*EVENTS, create_event(event="$feature_flag_called")]:
            jobs_app.capture(event)
        for count in (1, 3):  # the second one is followed by the third by itself
            endpoint.wait_for(count)
            run_now("batches", "posthog_jobs.export_events")
        poll("the batch", lambda: jobs_app.apps.metrics("batches")["batches"] == 1)

        assert len(endpoint.requests) == 4
        assert len({request.headers["idempotency-key"] for request in endpoint.requests}) == 1
        assert [row["uuid"] for row in rows(endpoint.requests[3])] == [
            event["uuid"] for event in EVENTS
        ]

        jobs_app.capture(create_event(event="refuse"))
        (failed,) = poll("the failed batch", lambda: jobs_app.failures.list(app_id="batches").jobs)
        assert failed.exception == "RefusedError"
        jobs_app.failures.replay(failed.id)
        endpoint.wait_for(6)
        assert jobs_app.apps.metrics("batches") == {"events": 3, "batches": 1, "largest": 3}


def answer(request: Request) -> Answer:
    """Refuse what asks for it."""
    return Answer(status=422 if rows(request)[0]["event"] == "refuse" else 200)
