"""When a process asks the store, and when it need not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from posthog_jobs.apps import feed as module
from posthog_jobs.apps.feed import Feed
from posthog_jobs.apps.shared_version import SharedVersion
from posthog_jobs.apps.store import Snapshot
from posthog_jobs.errors import ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    from posthog_jobs.apps.entries import AppEntry
    from posthog_jobs.apps.store import Edit


class Store:
    """A store of which only the version counts; it notes what it is asked."""

    def __init__(self) -> None:
        self.newest = 0
        self.asked: list[str] = []
        self.error: Exception | None = None

    def version(self) -> int:
        return self._answer("version")

    def read(self) -> Snapshot:
        return Snapshot(version=self._answer("read"), entries=())

    def change(self, app_id: str, edit: Edit) -> AppEntry:
        raise NotImplementedError

    def _answer(self, what: str) -> int:
        self.asked.append(what)
        if self.error is not None:
            raise self.error
        return self.newest


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def use(feed: Feed) -> list[int]:
    """Do what a job does; return the versions that were taken."""
    taken: list[int] = []
    if feed.may_have_news():
        feed.follow(lambda snapshot: taken.append(snapshot.version))
    return taken


def test_a_worker_asks_only_when_the_version_has_grown(clock: Clock) -> None:
    """In a worker on Redis a job costs no call; the first one after a change takes it."""
    store, seen = Store(), SharedVersion()
    feed = Feed(store, seen)
    store.newest = 5
    seen.note(5)

    assert [use(feed), use(feed), use(feed)] == [[5], [], []]
    clock.now += 1000
    store.newest = 6
    assert use(feed) == []
    seen.note(6)
    assert [use(feed), use(feed)] == [[6], []]
    assert store.asked == ["read", "read"]


def test_others_ask_twice_a_second(clock: Clock) -> None:
    """A process that nobody tells asks for the version, at its next use, every half second."""
    store = Store()
    feed = Feed(store, SharedVersion())
    assert [use(feed), use(feed)] == [[0], []]
    store.newest = 1
    clock.now += 0.49
    assert use(feed) == []
    clock.now += 0.02
    assert [use(feed), use(feed)] == [[1], []]
    clock.now += 1
    assert use(feed) == []

    assert store.asked == ["read", "version", "read", "version"]


def test_a_store_that_was_emptied(clock: Clock) -> None:
    """After Redis lost its data, what was installed goes on; and the next change is taken."""
    store, seen = Store(), SharedVersion()
    feed = Feed(store, seen)
    store.newest = 5
    seen.note(5)
    assert use(feed) == [5]

    store.newest = 0
    seen.note(0)
    assert use(feed) == []
    store.newest = 7
    seen.note(7)
    assert use(feed) == [7]


def test_a_store_that_is_away(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """While it is away it is asked twice a second at most, and the log says so once."""
    store, seen = Store(), SharedVersion()
    feed = Feed(store, seen)
    seen.note(5)
    store.newest = 5
    store.error = StoreUnavailableError("Redis does not answer")
    for _ in range(10):
        assert [use(feed), use(feed)] == [[], []]
        clock.now += 0.51
    assert len(store.asked) == 10
    assert caplog.text.count("Redis does not answer") == 1

    store.error = None

    assert [use(feed), use(feed)] == [[5], []]


def test_no_store_at_all(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Without any Redis there is no store, which is no error."""
    store = Store()
    store.error = ConfigurationError("needs Redis")
    feed = Feed(store, SharedVersion())
    for _ in range(3):
        assert use(feed) == []
        clock.now += 1

    assert store.asked == ["read"]
    assert caplog.text == ""


def test_an_error_while_taking_is_tried_again(clock: Clock) -> None:
    """What could not be taken is not taken for taken."""
    store, seen = Store(), SharedVersion()
    feed = Feed(store, seen)
    seen.note(5)

    def fail(snapshot: Snapshot) -> None:
        raise KeyError(snapshot.version)

    with pytest.raises(KeyError):
        feed.follow(fail)
    assert use(feed) == [0]


def test_a_version_is_shared_with_forks() -> None:
    """What the parent sees after the fork, the child sees too; an older one counts for nothing."""
    seen = SharedVersion()
    assert seen.value is None
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        os._exit(0 if seen.value == 2**41 else 1)
    seen.note(2**41)
    seen.note(5)
    os.write(told, b"x")

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    seen.forget()
    assert seen.value is None
