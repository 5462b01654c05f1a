from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.errors import AppSetupError, RetryError
from posthog_jobs.hooks.events import on_event, process_event, process_events
from posthog_jobs.jobs.execution import in_worker
from tests.installed import build, install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.meta.meta import Meta

Event = dict[str, Any]


def event() -> Event:
    return {"event": "sign up", "properties": {"by": []}, "team_id": 1}


def by(name: str) -> Any:
    # a process_event that leaves its name in the event
    def process(event: Event, meta: Meta) -> Event:
        event["properties"]["by"].append(name)
        return event

    return process


def run(*hooks: Any) -> Event | None:
    installations = [install(f"app{n}", process_event=hook) for n, hook in enumerate(hooks)]
    return process_event(event(), installations, build)


def test_in_order() -> None:
    """process_event: each gets what the one before it returned; an app without it is skipped."""

    async def async_hook(event: Event, meta: Meta) -> Event:
        return {**event, "properties": {"by": [*event["properties"]["by"], meta.app_id]}}

    installations = [
        install("a", process_event=by("a")),
        install("none"),
        install("b", processEvent=async_hook),
        install("c", process_event=by("c")),
    ]

    result = process_event(event(), installations, build)

    assert result == {"event": "sign up", "properties": {"by": ["a", "b", "c"]}, "team_id": 1}


def test_no_hook_at_all() -> None:
    """process_event: an event that no hook wants comes out as it went in."""
    assert process_event(event(), [install()], build) == event()


def test_dropped() -> None:
    """process_event: None drops the event, and no later hook sees it."""
    seen: list[Event] = []

    assert run(by("a"), lambda event, meta: None, lambda event, meta: seen.append(event)) is None
    assert seen == []


def test_the_callers_event_is_not_changed() -> None:
    """process_event: a hook that writes into its event does not write into the caller's."""
    mine = event()

    process_event(mine, [install(process_event=by("a"))], build)

    assert mine == event()


def raises(event: Event, meta: Meta) -> Event:
    event["properties"]["by"].append("half done")
    raise ValueError("in the hook")


async def raises_later(event: Event, meta: Meta) -> Event:
    return raises(event, meta)


def changes_team(event: Event, meta: Meta) -> Event:
    event["properties"]["by"].append("half done")
    return {**event, "team_id": 2}


def loses_team(event: Event, meta: Meta) -> Event:
    del event["team_id"]
    return event


class Abyss(BaseException):
    """What `except Exception` lets pass."""


def falls(event: Event, meta: Meta) -> Event:
    raise Abyss("deep")


async def interrupts(event: Event, meta: Meta) -> Event:
    raise KeyboardInterrupt


class MuteError(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


def mute(event: Event, meta: Meta) -> Event:
    raise MuteError


def loses_name(event: Event, meta: Meta) -> Event:
    del event["event"]
    return event


@pytest.fixture
def _in_worker() -> Iterator[None]:
    """A worker, in which no app can end more than its own hook."""
    token = in_worker.set(True)
    yield
    in_worker.reset(token)


@pytest.mark.usefixtures("_in_worker")
@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (raises, "ValueError: in the hook"),
        (raises_later, "ValueError: in the hook"),
        (falls, "falls raised Abyss, which is not an Exception"),
        (interrupts, "interrupts raised KeyboardInterrupt, which is not an Exception"),
        (mute, "mute raised MuteError, whose text cannot be read"),
        (changes_team, "changed team_id from 1 to 2; an app must leave it"),
        (loses_team, "changed team_id from 1 to None"),
        (loses_name, "returned what is not an event: the event has no name"),
        (lambda event, meta: True, "returned bool; return the event, or None"),
        (lambda event, meta: [event], "returned list"),
    ],
)
def test_a_hook_that_fails(hook: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """process_event: an error is recorded, and the chain goes on with the event before it."""
    result = run(by("a"), hook, by("c"))

    assert result == {**event(), "properties": {"by": ["a", "c"]}}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert (
        "process_event of app id 'app1' failed, and left event 'sign up' as before" in caplog.text
    )
    assert reason in caplog.text


def build_but(app_id: str) -> Any:
    # gives each installation its meta, but for one that is not set up
    def meta(installation: Installation) -> Meta:
        if installation.id == app_id:
            raise AppSetupError("setup_plugin failed")
        return build(installation)

    return meta


def test_an_app_that_is_not_set_up(caplog: pytest.LogCaptureFixture) -> None:
    """process_event: an app whose setup failed is skipped, with a warning."""
    installations = [install(name, process_event=by(name)) for name in ("a", "b", "c")]

    result = process_event(event(), installations, build_but("b"))

    assert result is not None
    assert result["properties"]["by"] == ["a", "c"]
    assert "event 'sign up' left out an app: setup_plugin failed" in caplog.text


def test_each_on_event_sees_the_event(caplog: pytest.LogCaptureFixture) -> None:
    """on_event: all get the event, in order, whatever the others do to it or raise."""
    seen: list[tuple[str, Event]] = []

    def spoils(event: Event, meta: Meta) -> None:
        seen.append((meta.app_id, dict(event)))
        event.clear()
        raise ValueError("in on_event")

    async def sees(event: Event, meta: Meta) -> None:
        seen.append((meta.app_id, dict(event)))

    mine = event()
    installations = [
        install("a", on_event=spoils),
        install("b", onEvent=sees),
        install("c", on_event=sees),
    ]

    on_event(mine, installations, build, lambda *_: pytest.fail("nothing to retry"))

    assert seen == [("a", event()), ("b", event()), ("c", event())]
    assert mine == event()
    assert "on_event of app id 'a' failed on event 'sign up'" in caplog.text
    assert "ValueError: in on_event" in caplog.text


def test_on_event_is_retried() -> None:
    """on_event: RetryError, or an app not set up, asks for a retry of that app alone."""
    seen: list[str] = []
    retried: list[tuple[str, str]] = []

    def later(event: Event, meta: Meta) -> None:
        raise RetryError("not now")

    async def later_async(event: Event, meta: Meta) -> None:
        raise RetryError("nor now")

    installations = [
        install("a", on_event=later),
        install("b", on_event=later_async),
        install("c", on_event=lambda event, meta: seen.append("c")),
        install("d", on_event=lambda event, meta: seen.append("d")),
    ]

    on_event(
        event(),
        installations,
        build_but("c"),
        lambda installation, error: retried.append((installation.id, str(error))),
    )

    assert retried == [("a", "not now"), ("b", "nor now"), ("c", "setup_plugin failed")]
    assert seen == ["d"]


def named(name: str) -> Event:
    return {"event": name, "properties": {"by": []}, "team_id": 1}


def names(events: list[Event]) -> list[str]:
    return [event["event"] for event in events]


def test_a_batch_at_once() -> None:
    """process_event_batch: gets all events where there is no process_event, and may reorder."""
    seen: list[list[str]] = []

    async def batch(events: list[Event], meta: Meta) -> list[Event]:
        seen.append(names(events))
        return [named("new"), *reversed(events[1:])]

    installations = [
        install("a", process_event=by("a")),
        install("b", processEventBatch=batch),
        install("c", process_event=by("c"), process_event_batch=lambda events, meta: []),
    ]
    mine = [named("1"), named("2"), named("3")]

    results = process_events(mine, installations, build)

    assert seen == [["1", "2", "3"]]
    assert names(results) == ["new", "3", "2"]
    assert [event["properties"]["by"] for event in results] == [["c"], ["a", "c"], ["a", "c"]]
    assert mine == [named("1"), named("2"), named("3")]


def test_a_batch_of_one() -> None:
    """process_event_batch: one event goes through it alone; an empty list drops it."""
    batch = install("a", process_event_batch=lambda events, meta: events[:1])
    drops = install("b", process_event_batch=lambda events, meta: [])

    assert process_event(event(), [batch], build) == event()
    assert process_event(event(), [batch, drops, install("c", process_event=raises)], build) is None


def test_a_batch_that_makes_two_of_one(caplog: pytest.LogCaptureFixture) -> None:
    """process_event: of several events that a batch hook made, the first; the rest is told."""
    doubles = install("a", process_event_batch=lambda events, meta: [*events, *events])

    assert process_event(event(), [doubles], build) == event()
    assert "made 2 events of 'sign up', of which process_event returns the first" in caplog.text
    twins = process_events([event()], [doubles, install("b", process_event=by("b"))], build)
    assert [twin["properties"]["by"] for twin in twins] == [["b"], ["b"]]


def test_a_dropped_event_of_several() -> None:
    """process_events: an event that process_event drops or fails on is its own affair."""

    def picky(event: Event, meta: Meta) -> Event | None:
        if event["event"] == "2":
            raise ValueError("not this one")
        return None if event["event"] == "1" else event

    events = [named(str(number)) for number in range(4)]

    assert names(process_events(events, [install(process_event=picky)], build)) == ["0", "2", "3"]
    assert process_events([], [install(process_event=picky)], build) == []


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "returned NoneType; return a list of the events, an empty one"),
        ({"event": "sign up"}, "returned dict; return a list"),
        ([None], "returned a list with NoneType in it; leave out what is dropped"),
        ([event(), {**event(), "team_id": 2}], "changed team_id from 1 to 2"),
        ([{"team_id": 1}], "returned what is not an event: the event has no name"),
    ],
)
def test_a_batch_hook_that_fails(
    result: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """process_event_batch: an error is recorded, and the chain goes on with the batch before it."""
    installations = [
        install("a", process_event=by("a")),
        install("b", process_event_batch=lambda events, meta: events.clear() or result),
        install("c", process_event_batch=raises),
        install("d", process_event=by("d")),
    ]

    results = process_events([named("1"), named("2")], installations, build_but("e"))

    assert [event["properties"]["by"] for event in results] == [["a", "d"], ["a", "d"]]
    assert "process_event_batch of app id 'b' failed, and left 2 event(s) as before" in caplog.text
    assert reason in caplog.text


def test_a_batch_hook_that_is_not_set_up(caplog: pytest.LogCaptureFixture) -> None:
    """process_event_batch: an app whose setup failed is skipped, with a warning."""
    installations = [install("a", process_event_batch=lambda events, meta: [])]

    assert process_events([event()], installations, build_but("a")) == [event()]
    assert "1 event(s) left out an app: setup_plugin failed" in caplog.text


def test_a_snapshot_has_its_own_hook() -> None:
    """on_snapshot: gets the events named $snapshot, on_event all others."""
    seen: list[tuple[str, str]] = []
    retried: list[str] = []

    def note(hook: str) -> Any:
        def hear(event: Event, meta: Meta) -> None:
            seen.append((hook, event["event"]))
            if meta.app_id == "later":
                raise RetryError("not now")

        return hear

    installations = [
        install("a", on_event=note("on_event"), onSnapshot=note("on_snapshot")),
        install("none", on_event=note("on_event")),
        install("later", on_event=lambda event, meta: None, on_snapshot=note("on_snapshot")),
    ]

    for name in ("$snapshot", "sign up"):
        on_event(named(name), installations, build, lambda app, _: retried.append(app.id))

    assert seen == [
        ("on_snapshot", "$snapshot"),
        ("on_snapshot", "$snapshot"),
        ("on_event", "sign up"),
        ("on_event", "sign up"),
    ]
    assert retried == ["later"]
