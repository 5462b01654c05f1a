from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

import pytest

from posthog_jobs import lifecycle
from posthog_jobs.errors import AppSetupError, RetryError
from posthog_jobs.lifecycle import Lifecycle
from tests.installed import build, install

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.meta import Meta


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
        assert go_on.wait(10)
        meta.global_["ready"] = True

    life = Lifecycle(build)
    installation = install(setup_plugin=setup_plugin)
    threads = [
        threading.Thread(target=lambda: ready.append("ready" in life.meta(installation).global_))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    assert ready == []
    go_on.set()
    for thread in threads:
        thread.join(10)

    assert len(runs) == 1
    assert ready == [True] * 8


def test_one_setup_does_not_hold_up_another() -> None:
    """setup_plugin: while one installation is being set up, another can run."""
    other = install("two")
    life = Lifecycle(build)

    def setup_plugin(meta: Meta) -> None:
        thread = threading.Thread(target=lambda: meta.global_.update(other=life.meta(other)))
        thread.start()
        thread.join(10)

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
