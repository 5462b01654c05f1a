"""When a process asks the store, and when it need not; and what it does with the answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from posthog_jobs.apps import registry as module
from posthog_jobs.apps.installation import AppEntry
from posthog_jobs.apps.registry import Registry, SharedVersion
from posthog_jobs.apps.store import Snapshot
from posthog_jobs.errors import ConfigurationError, StoreUnavailableError
from posthog_jobs.settings import Settings

if TYPE_CHECKING:
    from posthog_jobs.apps.installation import InstalledApp
    from posthog_jobs.apps.store import Edit


class Store:
    """A store with one installation, named after the version; it notes what it is asked."""

    def __init__(self) -> None:
        self.newest = 0
        self.asked: list[str] = []
        self.error: Exception | None = None

    def version(self) -> int:
        return self._answer("version")

    def read(self) -> Snapshot:
        version = self._answer("read")
        name = f"v{version}"
        entry = AppEntry(id=name, module="a", config={}, team_id=1, enabled=False, since=1)
        return Snapshot(version=version, entries={name: entry})

    def change(self, app_id: str, edit: Edit) -> InstalledApp:
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


def registry_of(store: Store) -> Registry:
    return Registry(Settings(apps={}), store, lambda _: None)


def use(registry: Registry) -> list[str]:
    """Do what a job does; return who is installed."""
    registry.refresh()
    return list(registry.known.all)


def test_a_worker_asks_only_when_the_version_has_grown(clock: Clock) -> None:
    """In a worker on Redis a job costs no call; the first one after a change takes it."""
    store = Store()
    registry = registry_of(store)
    store.newest = 5
    registry.seen.note(5)

    assert [use(registry), use(registry)] == [["v5"], ["v5"]]
    clock.now += 1000
    store.newest = 6
    assert use(registry) == ["v5"]
    registry.seen.note(6)
    assert [use(registry), use(registry)] == [["v6"], ["v6"]]
    assert store.asked == ["read", "read"]


def test_others_ask_twice_a_second(clock: Clock) -> None:
    """A process that nobody tells asks for the version, at its next use, every half second."""
    store = Store()
    registry = registry_of(store)
    assert [use(registry), use(registry)] == [["v0"], ["v0"]]
    store.newest = 1
    clock.now += 0.49
    assert use(registry) == ["v0"]
    clock.now += 0.02
    assert [use(registry), use(registry)] == [["v1"], ["v1"]]
    clock.now += 1
    assert use(registry) == ["v1"]

    assert store.asked == ["read", "version", "read", "version"]


def test_a_store_that_was_emptied(clock: Clock) -> None:
    """After Redis lost its data, what was installed goes on; and the next change is taken."""
    store = Store()
    registry = registry_of(store)
    store.newest = 5
    registry.seen.note(5)
    assert use(registry) == ["v5"]

    store.newest = 0
    registry.seen.note(0)
    assert use(registry) == ["v5"]
    store.newest = 7
    registry.seen.note(7)
    assert use(registry) == ["v7"]


def test_a_store_that_is_away(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """While it is away it is asked twice a second at most, and the log says so once."""
    store = Store()
    registry = registry_of(store)
    registry.seen.note(5)
    store.newest = 5
    store.error = StoreUnavailableError("Redis does not answer")
    for _ in range(10):
        assert [use(registry), use(registry)] == [[], []]
        clock.now += 0.51
    assert len(store.asked) == 10
    assert caplog.text.count("Redis does not answer") == 1

    store.error = None

    assert use(registry) == ["v5"]


def test_no_store_at_all(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Without any Redis there is no store, which is not an error."""
    store = Store()
    store.error = ConfigurationError("needs Redis")
    registry = registry_of(store)
    for _ in range(3):
        assert use(registry) == []
        clock.now += 1

    assert store.asked == ["read"]
    assert caplog.text == ""


def test_an_error_while_taking_is_tried_again(clock: Clock) -> None:
    """What could not be taken is not regarded as taken."""
    store = Store()
    registry = registry_of(store)
    store.newest = 5
    registry.seen.note(5)
    store.error = KeyError("a fault of this package")
    with pytest.raises(KeyError):
        use(registry)

    store.error = None

    assert use(registry) == ["v5"]


def test_who_is_told_of_changes() -> None:
    """A listener is told of each change in its own process, and not in a fork of it."""
    store = Store()
    registry = registry_of(store)
    told: list[str] = []
    registry.on_change(lambda: told.append("changed"))
    for version in (1, 1, 2):
        store.newest = version
        registry.seen.note(version)
        registry.refresh()
    assert told == ["changed", "changed"]

    store.newest = 3
    registry.seen.note(3)
    pid = os.fork()
    if pid == 0:
        registry.refresh()
        os._exit(len(told))

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


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
