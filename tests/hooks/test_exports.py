"""The buffer on Redis, and what is sent of it, without a worker."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.transport.transport import redis_server
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import BrokerUnavailableError, RetryError, StoreUnavailableError
from posthog_jobs.hooks import exports as exporter_module
from posthog_jobs.hooks.exports import Exporter
from tests.installed import install
from tests.recorder import Recorder
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from posthog_jobs.apps.installation import Installation
    from tests.servers.nodes import RedisProcess

LIST, STATE = Keys().export("one")


@pytest.fixture
def redis(idle_server: RedisProcess) -> Redis:
    client: Redis | None = idle_server.client
    assert client is not None
    return client


@pytest.fixture
def sender() -> Recorder:
    return Recorder()


@pytest.fixture
def exporter(idle_app: PostHogJobs, sender: Recorder, redis: Redis) -> Exporter:
    return Exporter(sender, redis_server(idle_app.connection_for_write))


def exporting(app_id: str = "one", **config: Any) -> Installation:
    installation = install(app_id, export_events=lambda events, meta: None)
    return replace(installation, config=config)


def event(number: int, name: str = "sign up") -> dict[str, Any]:
    return {"event": name, "properties": {"number": number}, "team_id": 1}


SIZE = len(json.dumps(event(10)))


def numbers(sender: Recorder) -> list[list[int]]:
    """Take out of the sender what each batch was made of."""
    batches = [sent for sent in sender.exported if sent[0] == "export"]
    sender.exported = [sent for sent in sender.exported if sent[0] != "export"]
    return [[one["properties"]["number"] for one in sent[2]] for sent in batches]


def flushes(sender: Recorder) -> list[float]:
    """Take out of the sender when flushes are due, in seconds."""
    found = [sent[2] for sent in sender.exported if sent[0] == "flush"]
    sender.exported = [sent for sent in sender.exported if sent[0] != "flush"]
    return found


def test_the_first_event_sends_a_flush(exporter: Exporter, sender: Recorder) -> None:
    """Buffer: its first event sends a flush for when it must be exported, later ones none."""
    for number in range(3):
        exporter.add(event(number), [exporting()])

    assert sender.exported == [("flush", "one", 10.0)]


def test_a_full_buffer_is_flushed_at_once(exporter: Exporter, sender: Recorder) -> None:
    """Buffer: the event that fills it moves the flush to now, and those after it do not."""
    one = exporting(exportEventsBufferBytes=3 * SIZE)
    for number in range(10, 16):
        exporter.add(event(number), [one])
    assert flushes(sender) == [10.0, 0.0]

    exporter.flush("one", one, "owner")

    assert numbers(sender) == [[10, 11, 12], [13, 14, 15]]
    assert sender.exported == []


def test_what_is_not_full_stays(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Buffer: a flush sends full batches, in order, and the rest waits its own time."""
    one, began = exporting(exportEventsBufferBytes=3 * SIZE + 1), time.monotonic()
    for number in range(10, 18):
        exporter.add(event(number), [one])
    flushes(sender)

    exporter.flush("one", one, "owner")

    assert numbers(sender) == [[10, 11, 12], [13, 14, 15]]
    (left,) = flushes(sender)
    assert 9.99 - (time.monotonic() - began) < left <= 10
    assert redis.llen(LIST) == 2
    exporter.add(event(18), [one])
    assert flushes(sender) == []


def test_what_is_due_is_sent(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Buffer: after its seconds all of it is sent, and it leaves no key behind."""
    one = exporting(exportEventsBufferSeconds=1)
    started = time.monotonic()
    for number in range(3):
        exporter.add(event(number), [one])

    def batches() -> list[list[int]]:
        exporter.flush("one", one, "owner")
        return numbers(sender)

    assert poll("what is due", batches) == [[0, 1, 2]]
    assert time.monotonic() - started > 0.9
    assert redis.keys(f"{Keys().prefix}*") == []


def test_an_event_larger_than_the_buffer(exporter: Exporter, sender: Recorder) -> None:
    """Buffer: an event that no buffer could hold is a batch of its own."""
    one = exporting(exportEventsBufferBytes=1)
    for number in range(250):
        exporter.add(event(number), [one])

    exporter.flush("one", one, "owner")

    assert numbers(sender) == [[number] for number in range(250)]


def test_values_arrive_equal(exporter: Exporter, sender: Recorder) -> None:
    """Buffer: what kombu's JSON carries is exported as it was captured."""
    one = exporting(exportEventsBufferBytes=1)
    rich = {
        **event(1),
        "properties": {"at": datetime.now(UTC), "data": b"\0", "list": [], "of": {}},
    }

    exporter.add(rich, [one])
    exporter.flush("one", one, "owner")

    assert sender.exported[-1][2] == [rich]


def test_who_gets_an_event(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Buffer: each app with the hook has its own; ignored events and snapshots get to none."""
    two = exporting("two", exportEventsToIgnore="sign up, other")
    apps = [exporting(), two, install("none")]

    exporter.add(event(1), apps)
    exporter.add(event(2, "$snapshot"), apps)
    exporter.add(event(3, "third"), apps)

    assert [sent[1] for sent in sender.exported] == ["one", "two"]
    assert redis.llen(LIST) == 2
    assert redis.llen(Keys().export("two")[0]) == 1
    assert redis.exists(Keys().export("none")[0]) == 0


def test_a_flush_that_was_never_sent(exporter: Exporter, sender: Recorder) -> None:
    """Never lost: if the flush of an event cannot be sent, the next call for it sends it."""
    sender.error, began = BrokerUnavailableError("away"), time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        exporter.add(event(1), [exporting()])
    sender.error = None

    exporter.look([exporting(), install("none")])

    (left,) = flushes(sender)
    assert 9.99 - (time.monotonic() - began) < left <= 10
    exporter.look([exporting()])
    assert flushes(sender) == []


def test_a_flush_that_was_lost(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Never lost: a minute after its flush should have come, the next event sends another one."""
    exporter.add(event(1), [exporting()])
    past = str(int(time.time() * 1000) - 61_000)
    redis.hset(STATE, mapping={"due": past, "armed": past})
    flushes(sender)

    exporter.add(event(2), [exporting()])
    exporter.add(event(3), [exporting()])

    assert flushes(sender) == [0.0]
    exporter.flush("one", None, "owner")
    assert numbers(sender) == [[1, 2, 3]]


def test_a_batch_that_could_not_be_sent(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Never lost: a batch that was taken and not sent is sent by the same flush, or a later one."""
    one = exporting(exportEventsBufferBytes=1)
    exporter.add(event(1), [one])
    exporter.add(event(2), [one])
    sender.error = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError):
        exporter.flush("one", one, "first")
    sender.error = None
    flushes(sender)

    exporter.flush("one", one, "other")
    assert numbers(sender) == []
    assert flushes(sender) == [1.0]

    redis.hincrby(STATE, "since", -61_000)
    exporter.flush("one", one, "other")
    assert numbers(sender) == [[1], [2]]


def test_a_flush_that_is_delivered_again(exporter: Exporter, sender: Recorder) -> None:
    """Never lost: the flush of a killed worker, delivered again, goes on where it was."""
    one = exporting(exportEventsBufferBytes=1)
    exporter.add(event(1), [one])
    sender.error = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError):
        exporter.flush("one", one, "first")
    sender.error = None

    exporter.flush("one", one, "first")

    assert numbers(sender) == [[1]]


def test_an_app_that_is_gone(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Never lost: what an app has buffered before it went is sent, to be kept as its jobs are."""
    exporter.add(event(1), [exporting(exportEventsBufferBytes=SIZE)])
    redis.hset(STATE, "due", 1)

    exporter.flush("one", None, "owner")

    assert numbers(sender) == [[1]]


def test_without_redis(sender: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """Never lost: where the buffer's Redis is away, events are sent one by one; logged once."""
    app = PostHogJobs(config_source={"broker_url": f"redis://127.0.0.1:{closed_port()}/0"})
    exporter = Exporter(sender, redis_server(app.connection_for_write))

    exporter.add(event(1), [exporting(), exporting("two")])
    exporter.add(event(2), [exporting()])

    assert numbers(sender) == [[1], [1], [2]]
    assert len(caplog.records) == 1
    assert "events are exported one by one, without a buffer" in caplog.text
    with pytest.raises(StoreUnavailableError):
        exporter.flush("one", None, "owner")


def test_a_config_that_is_wrong(
    exporter: Exporter, sender: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Options: what is wrong with a config is one error in the log, of app id, field and fix."""
    wrong = exporting(exportEventsBufferBytes="abc")

    exporter.add(event(1), [wrong])
    exporter.add(event(2), [wrong])

    assert len(caplog.records) == 1
    assert "the config of app id 'one': exportEventsBufferBytes is not a number; use" in caplog.text
    assert sender.exported == [("flush", "one", 10.0)]
    exporter.add(event(3), [replace(exporting(exportEventsBufferBytes=1), version=2)])
    assert flushes(sender) == [10.0, 0.0]


def test_drained(exporter: Exporter, sender: Recorder, redis: Redis) -> None:
    """Shutdown: what this process has buffered is exported in it, in batches, and once."""
    exported: list[tuple[str, list[int]]] = []

    def batch(app_id: str, events: list[dict[str, Any]]) -> Callable[[], None]:
        found = [one["properties"]["number"] for one in events]
        return lambda: exported.append((app_id, found))

    one, two = exporting(exportEventsBufferBytes=2 * SIZE), exporting("two")
    for number in range(10, 13):
        exporter.add(event(number), [one, two])
    flushes(sender)

    exporter.drain_all(batch)
    exporter.drain_all(batch)

    assert sorted(exported) == [("one", [10, 11]), ("one", [12]), ("two", [10, 11, 12])]
    assert sender.exported == []
    assert redis.keys(f"{Keys().prefix}*") == []


@pytest.mark.parametrize(
    ("error", "delay", "retries"), [(RetryError("not now"), 6, 1), (ValueError("never"), 0, 0)]
)
def test_drained_in_vain(
    exporter: Exporter, sender: Recorder, error: Exception, delay: float, retries: int
) -> None:
    """Shutdown: a batch whose export fails is sent, to be tried again by a worker."""
    exporter.add(event(1), [exporting(), exporting("two")])
    flushes(sender)
    exported: list[str] = []

    def batch(app_id: str, events: list[dict[str, Any]]) -> Callable[[], None]:
        if app_id == "one":
            raise error
        return lambda: exported.append(app_id)

    exporter.drain_all(batch)

    assert sender.exported == [("export", "one", [event(1)], delay, retries)]
    assert exported == ["two"]


def test_drained_by_an_app_that_blocks(
    exporter: Exporter,
    sender: Recorder,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shutdown: an app that blocks holds it up for a bounded time, and loses no event."""
    monkeypatch.setattr(exporter_module, "PATIENCE", 1)
    blocking = exporting(exportEventsBufferBytes=1)
    exporter.add(event(1), [blocking, exporting("two")])
    exporter.add(event(2), [blocking])
    flushes(sender)
    exported: list[str] = []
    go_on = threading.Event()

    def batch(app_id: str, events: list[dict[str, Any]]) -> Callable[[], None]:
        def export() -> None:
            if app_id == "one":
                go_on.wait(60)

        exported.append(app_id)
        return export

    exporter.drain_all(batch)  # comes back, although the app never does
    go_on.set()

    poll("the flush of the rest", lambda: flushes(sender))
    assert sorted(exported) == ["one", "two"]
    assert redis.llen(LIST) == 1
    assert redis.hget(STATE, "batch") is None
