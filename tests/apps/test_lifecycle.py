from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.apps import lifecycle
from posthog_jobs.apps.lifecycle import Lifecycle
from posthog_jobs.errors import AppSetupError, RetryError, StoreUnavailableError
from tests.installed import build, install
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.meta.meta import Meta


class Clock:
    """What `lifecycle` takes for the time."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lifecycle, "monotonic", clock)
    return clock


def failing(*errors: Exception) -> tuple[Callable[[Meta], None], list[Meta]]:
    # a setup_plugin that raises these, one at each run, and then succeeds
    runs: list[Meta] = []

    def setup_plugin(meta: Meta) -> None:
        runs.append(meta)
        if len(runs) <= len(errors):
            raise errors[len(runs) - 1]

    return setup_plugin, runs


def test_set_up_once() -> None:
    """setup_plugin: runs once, before the meta is handed out, and gets that same meta."""
    setup, runs = failing()
    life = Lifecycle(build)
    installation = install(setup_plugin=setup)

    metas = [life.meta(installation) for _ in range(3)]

    assert runs == [metas[0]]
    assert all(meta is metas[0] for meta in metas)


def test_an_async_setup() -> None:
    """setup_plugin: may be async, and is done before anything else runs."""

    async def setup_plugin(meta: Meta) -> None:
        meta.global_["ready"] = True

    assert Lifecycle(build).meta(install(setup_plugin=setup_plugin)).global_ == {"ready": True}


def test_once_for_each_installation_and_version() -> None:
    """setup_plugin: each installation, and each version of one, is set up, with its own meta."""
    setup, runs = failing()
    life = Lifecycle(build)

    for app_id, version in [("one", 1), ("two", 1), ("one", 2), ("one", 1), ("two", 1)]:
        life.meta(install(app_id, version, setup_plugin=setup))

    assert [meta.app_id for meta in runs] == ["one", "two", "one"]
    assert len({id(meta.global_) for meta in runs}) == 3


def test_racing_threads_set_up_once() -> None:
    """setup_plugin: of threads that race, one runs it and the others wait for its end."""
    started, go_on = threading.Event(), threading.Event()
    runs: list[str] = []
    ready: list[bool] = []

    def setup_plugin(meta: Meta) -> None:
        runs.append(threading.current_thread().name)
        started.set()
        assert go_on.wait(60)
        meta.global_["ready"] = True

    life = Lifecycle(build)
    installation = install(setup_plugin=setup_plugin)
    threads = [
        threading.Thread(target=lambda: ready.append("ready" in life.meta(installation).global_))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    assert ready == []
    go_on.set()
    for thread in threads:
        thread.join(60)

    assert len(runs) == 1
    assert ready == [True] * 8


def test_one_setup_does_not_hold_up_another() -> None:
    """setup_plugin: while one installation is being set up, another can run."""
    other = install("two")
    life = Lifecycle(build)

    def setup_plugin(meta: Meta) -> None:
        thread = threading.Thread(target=lambda: meta.global_.update(other=life.meta(other)))
        thread.start()
        thread.join(60)

    assert life.meta(install(setup_plugin=setup_plugin)).global_["other"].app_id == "two"


def test_without_set_up() -> None:
    """The meta alone, to trigger jobs from outside, runs no setup_plugin and no teardown_plugin."""
    setup, runs = failing()
    life = Lifecycle(build)
    installation = install(setup_plugin=setup, teardown_plugin=runs.append)

    meta = life.meta(installation, set_up=False)
    life.tear_down()

    assert runs == []
    assert meta.app_id == "one"


def test_retry_error_means_later(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """setup_plugin: RetryError means again after 5, 10, 20, 40, 80 s and not before, then never."""
    setup, runs = failing(*[RetryError("not yet")] * 99)
    life = Lifecycle(build)
    installation = install(setup_plugin=setup)

    for attempt, delay in enumerate([5, 10, 20, 40, 80], start=1):
        with pytest.raises(AppSetupError, match=f"not yet; it is run again in {delay} s"):
            life.meta(installation)
        clock.now += delay - 0.01
        with pytest.raises(AppSetupError, match=f"again in {delay} s"):
            life.meta(installation)
        assert len(runs) == attempt
        clock.now += 0.01
    with pytest.raises(AppSetupError, match="marked failed in this process; mend it and restart"):
        life.meta(installation)
    clock.now += 10**9
    with pytest.raises(AppSetupError, match="marked failed"):
        life.meta(installation)

    assert len(runs) == 6
    assert len(caplog.records) == 6


def test_a_setup_without_its_store(clock: Clock) -> None:
    """setup_plugin: a store that is away, for however long, does not mark the app failed."""
    setup, runs = failing(*[StoreUnavailableError("away")] * 20)
    life = Lifecycle(build)
    installation = install(setup_plugin=setup)

    for _ in range(20):
        with pytest.raises(AppSetupError, match="it is run again in") as error:
            life.meta(installation)
        assert not error.value.final
        clock.now += 60

    assert life.meta(installation)
    assert len(runs) == 21


def test_a_setup_that_succeeds_later(clock: Clock) -> None:
    """setup_plugin: one that succeeds after all is not run again."""
    setup, runs = failing(RetryError())
    life = Lifecycle(build)
    installation = install(setup_plugin=setup)
    with pytest.raises(AppSetupError):
        life.meta(installation)
    clock.now += 5

    assert life.meta(installation) is life.meta(installation)
    assert len(runs) == 2


def test_a_setup_that_says_how_long_to_wait(clock: Clock) -> None:
    """setup_plugin: RetryError(delay=…) takes the place of the next delay."""
    setup, runs = failing(RetryError("not yet", delay=30), RetryError("not yet"))
    life = Lifecycle(build)
    installation = install(setup_plugin=setup)

    for delay in (30, 10):
        with pytest.raises(AppSetupError, match=f"it is run again in {delay} s"):
            life.meta(installation)
        clock.now += delay
    life.meta(installation)

    assert len(runs) == 3


def test_any_other_error_is_final(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """setup_plugin: any other error marks the app failed, once, with its traceback in the log."""
    setup, runs = failing(ValueError("no url"))
    life = Lifecycle(build)
    installation = install(setup_plugin=setup)
    depths = []

    for _ in range(4):
        with pytest.raises(AppSetupError, match=r"app id 'one' raised ValueError: no url; the app"):
            life.meta(installation)
        clock.now += 10**6
    for _ in range(3):
        with pytest.raises(AppSetupError) as caught:
            life.meta(installation)
        depths.append(len(caught.traceback))

    assert len(runs) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ValueError: no url" in caplog.text
    assert len(set(depths)) == 1, "the error grows each time that it is raised"


def test_a_failed_app_does_not_harm_the_others() -> None:
    """setup_plugin: an app that failed leaves the others as they are."""
    setup, _ = failing(ValueError())
    life = Lifecycle(build)
    with pytest.raises(AppSetupError):
        life.meta(install(setup_plugin=setup))

    assert life.meta(install("two")).app_id == "two"


def test_tear_down(caplog: pytest.LogCaptureFixture) -> None:
    """teardown_plugin: runs once for all that were set up; a failing one is logged, not raised."""
    torn: list[str] = []

    def fail(meta: Meta) -> None:
        raise ValueError("in teardown")

    async def teardown_plugin(meta: Meta) -> None:
        torn.append(meta.app_id)

    setup, _ = failing(ValueError())
    life = Lifecycle(build)
    life.meta(install("bad", teardown_plugin=fail))
    life.meta(install("one", teardown_plugin=teardown_plugin))
    with pytest.raises(AppSetupError):
        life.meta(install("never", setup_plugin=setup, teardown_plugin=teardown_plugin))
    caplog.clear()

    life.tear_down()
    life.tear_down()

    assert torn == ["one"]
    assert "teardown_plugin of app id 'bad' failed" in caplog.text
    assert "ValueError: in teardown" in caplog.text


def test_a_fork_is_a_process_of_its_own() -> None:
    """setup_plugin: a forked process sets up again, and does not tear down its parent's."""
    setup, runs = failing()
    life = Lifecycle(build)
    installation = install(setup_plugin=setup, teardown_plugin=runs.append)
    life.meta(installation)

    pid = os.fork()
    if pid == 0:
        life.tear_down()
        torn_down = len(runs) > 1
        life.meta(installation)
        os._exit(9 if torn_down else len(runs))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


def teardowns() -> tuple[Callable[[Meta], None], list[str]]:
    # a teardown_plugin, and the app ids that it ran for
    torn: list[str] = []
    return lambda meta: torn.append(meta.app_id), torn


def test_retired_while_it_is_used() -> None:
    """teardown_plugin: of a changed installation, once, after all that runs with it has ended."""
    teardown, torn = teardowns()
    life = Lifecycle(build)
    old = install(teardown_plugin=teardown)
    _, release_first = life.hold(old)
    with life.holding() as meta:
        assert meta(old) is life.meta(old)
        life.retire(old)
        release_first()
        assert torn == []
    poll("teardown", lambda: torn)
    life.retire(old)
    life.tear_down()

    assert torn == ["one"]


def test_retired_while_nothing_uses_it() -> None:
    """teardown_plugin: of a changed installation at once; of one that was not set up, never."""
    teardown, torn = teardowns()
    life = Lifecycle(build)
    used, only_called = install(teardown_plugin=teardown), install("two", teardown_plugin=teardown)
    life.meta(used)
    life.meta(only_called, set_up=False)

    life.retire(used)
    life.retire(only_called)
    life.tear_down()  # which waits for those that are under way

    assert torn == ["one"]


def test_a_new_version_waits_for_the_teardown_of_the_old() -> None:
    """setup_plugin: of the new version after the old one's teardown, where nothing runs with it."""
    order: list[str] = []
    go_on = threading.Event()

    def teardown_plugin(meta: Meta) -> None:
        assert go_on.wait(60)
        order.append("teardown")

    life = Lifecycle(build)
    old = install(teardown_plugin=teardown_plugin)
    life.meta(old)
    life.retire(old)
    threading.Timer(0.1, go_on.set).start()

    life.meta(install(version=2, setup_plugin=lambda meta: order.append("setup")))

    assert order == ["teardown", "setup"]


def test_a_late_use_of_what_was_replaced() -> None:
    """A job that looked its installation up just before a change runs, and leaves nothing."""
    teardown, torn = teardowns()
    life = Lifecycle(build, is_current=lambda installation: installation.version == 2)
    _, release = life.hold(install(teardown_plugin=teardown))
    assert torn == []

    release()

    poll("teardown", lambda: torn)
    assert life._known == {}


def test_a_setup_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """setup_plugin: one that blocks holds up one job of its app, not every thread of the pool."""
    monkeypatch.setattr(lifecycle, "PATIENCE", 0.05)
    started, go_on = threading.Event(), threading.Event()

    def setup_plugin(meta: Meta) -> None:
        started.set()
        assert go_on.wait(60)

    life = Lifecycle(build)
    installation = install(setup_plugin=setup_plugin)
    thread = threading.Thread(target=life.meta, args=(installation,))
    thread.start()
    assert started.wait(60)

    with pytest.raises(AppSetupError, match=r"still runs for another job after 0\.05 s"):
        life.meta(installation)
    assert life.meta(install("two")).app_id == "two"
    go_on.set()
    thread.join(60)
    assert life.meta(installation).app_id == "one"


def test_a_setup_that_blocks_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """setup_plugin: once it has blocked for that long, no event waits for it any more."""
    monkeypatch.setattr(lifecycle, "PATIENCE", 1.0)
    started, go_on = threading.Event(), threading.Event()

    def setup_plugin(meta: Meta) -> None:
        started.set()
        assert go_on.wait(120)

    life = Lifecycle(build)
    installation = install(setup_plugin=setup_plugin)
    thread = threading.Thread(target=life.meta, args=(installation,))
    thread.start()
    assert started.wait(60)

    begun = time.monotonic()
    for _ in range(60):
        with pytest.raises(AppSetupError, match="still runs for another job"):
            life.meta(installation)
    took = time.monotonic() - begun
    go_on.set()
    thread.join(60)

    assert took < 30, "each alone waits for a second, if it waits"
    assert life.meta(installation).app_id == "one"


def test_a_teardown_that_exits(caplog: pytest.LogCaptureFixture) -> None:
    """teardown_plugin: one that calls sys.exit is logged, and ends nothing else."""

    def teardown_plugin(meta: Meta) -> None:
        sys.exit(3)

    life = Lifecycle(build)
    life.meta(old := install(teardown_plugin=teardown_plugin))

    life.retire(old)

    poll("the log", lambda: "called sys.exit(3)" in caplog.text)


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_teardown_that_ends_the_process(
    ends: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """teardown_plugin: when the process stops, one that exits keeps no other app from its own."""
    order: list[str] = []

    def teardown_plugin(meta: Meta) -> None:
        order.append(meta.app_id)
        raise ends

    life = Lifecycle(build)
    for app_id in ("one", "two"):
        life.meta(install(app_id, teardown_plugin=teardown_plugin))

    life.tear_down()

    assert order == ["one", "two"]
    assert [record.message for record in caplog.records] == [
        f"teardown_plugin of app id {app_id!r} failed" for app_id in order
    ]


@pytest.mark.parametrize("hook", ["teardown_plugin", "export_events"])
def test_what_comes_before_the_end(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """A changed app exports its rest before teardown_plugin, which runs though that fails."""
    order: list[str] = []

    def rest(installation: Installation, meta: Meta) -> None:
        order.append(f"rest of {installation.id}")
        raise ValueError("in the export")

    life = Lifecycle(build, before_end=rest)
    hooks: dict[str, Any] = {hook: lambda *_: order.append(hook)}
    one, never = install(**hooks), install("never", **hooks)
    life.meta(one)
    life.meta(never, set_up=False)

    life.retire(one)
    life.retire(never)
    life.tear_down()

    assert order == ["rest of one", *(["teardown_plugin"] if hook == "teardown_plugin" else [])]
    assert "what app id 'one' buffers stays there" in caplog.text
