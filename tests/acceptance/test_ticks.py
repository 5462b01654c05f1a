"""run_every_minute, run_every_hour, run_every_day: when, how often, and what goes wrong."""

from __future__ import annotations

import contextvars
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import Ignore
from hypothesis import given
from hypothesis import strategies as st

from posthog_jobs.broker.envelope import DUE_HEADER
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import RetriesExhaustedError, UnsupportedByBrokerError
from posthog_jobs.hooks import ticks as ticks_module
from posthog_jobs.hooks.ticks import PERIODS, Tick, boundary_after, boundary_before
from posthog_jobs.jobs.retry import RetryDelays
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.pace import Pace
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.broker.schedule import WaitingJob
    from tests.servers.nodes import RedisProcess

MODULE = "tests.samples.ticking"
TICKING: dict[str, Any] = {
    "ticking": MODULE,
    "off": {"module": MODULE, "enabled": False},
    "raising": {"module": MODULE, "config": {"raises": "ValueError"}},
    "busy": {"module": MODULE, "config": {"raises": "RetryError"}},
    "busy-long": {"module": MODULE, "config": {"raises": "RetryError", "delay": 86_400}},
    "unready": {"module": MODULE, "config": {"setup": "fails"}},
    "broken": "tests.samples.raises",
    "no-hook": "tests.samples.recorder",
}

hooks = st.sampled_from(list(PERIODS))
moments = st.datetimes(
    min_value=datetime(1900, 1, 1),  # noqa: DTZ001  # the zone is drawn apart
    max_value=datetime(9000, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))),
)


@given(hooks, moments)
def test_boundaries(hook: str, moment: datetime) -> None:
    """A moment lies between two boundaries, one period apart, on the minute, hour or day in UTC."""
    before, after = boundary_before(hook, moment), boundary_after(hook, moment)

    assert before <= moment < after
    assert after - before == PERIODS[hook]
    assert (before.tzinfo, before.second, before.microsecond) == (UTC, 0, 0)
    assert hook == "run_every_minute" or before.minute == 0
    assert hook != "run_every_day" or before.hour == 0
    assert boundary_before(hook, before) == before
    assert boundary_after(hook, before) == after


@given(hooks, moments, moments)
def test_one_id_for_each_boundary(hook: str, one: datetime, other: datetime) -> None:
    """Whoever schedules a tick gives it the same id; another one's differs."""

    def tick_id(moment: datetime, app_id: str = "teapot") -> str:
        return Tick(app_id=app_id, hook=hook, boundary=boundary_before(hook, moment)).id

    same = boundary_before(hook, one) == boundary_before(hook, other)
    assert (tick_id(one) == tick_id(other)) is same
    assert tick_id(one, "kettle") != tick_id(one)


@pytest.mark.parametrize(
    ("hook", "boundary"),
    [
        ("run_every_minute", "2024-02-29T23:59:00+00:00"),
        ("run_every_hour", "2024-02-29T23:00:00+00:00"),
        ("run_every_day", "2024-02-29T00:00:00+00:00"),
    ],
)
def test_in_utc_whatever_the_zone(hook: str, boundary: str) -> None:
    """A day begins at midnight in UTC."""
    moment = datetime.fromisoformat("2024-03-01T05:29:59.999999+05:30")

    assert boundary_before(hook, moment) == datetime.fromisoformat(boundary)


@pytest.fixture
def app(idle_server: RedisProcess) -> PostHogJobs:
    """An app whose ticks wait, since there is no worker; the test runs them itself."""
    return PostHogJobs(config_source={"broker_url": idle_server.url, "posthog_jobs_apps": TICKING})


def waiting(app: PostHogJobs, app_id: str) -> list[WaitingJob]:
    return list(app.schedule.list(app_id=app_id).jobs)


def run_tick(app: PostHogJobs, tick: Tick, *, retries: int = 0, due: datetime | None = None) -> Any:
    """Run a tick as a worker does that the schedule gave it to, in this process."""

    def run() -> Any:
        task = app.tasks[f"posthog_jobs.{tick.hook}"]
        args = [tick.app_id, int(tick.boundary.timestamp())]
        headers = {DUE_HEADER: (due or tick.boundary).timestamp() * 1000}
        request = {"id": tick.id, "args": args, "kwargs": {}, "argsrepr": "", "headers": headers}
        task.push_request(**request, retries=retries, called_directly=False)
        try:
            task(*args)
        except Exception as error:  # noqa: BLE001
            return error
        finally:
            task.pop_request()
        return None

    return contextvars.copy_context().run(run)


def current(app: PostHogJobs, hook: str, app_id: str = "ticking", *, before: int = 0) -> Tick:
    boundary = boundary_before(hook, app.ticks.ledger.now()) - before * PERIODS[hook]
    return Tick(app_id=app_id, hook=hook, boundary=boundary)


def test_each_hook_has_one_tick_that_waits(app: PostHogJobs) -> None:
    """One tick of each hook waits on its next boundary, however often and by whom it is asked."""
    for _ in range(3):
        app.ticks.see_to_all()

    for app_id in ("ticking", "raising", "unready"):
        ticks = {tick.job: tick for tick in waiting(app, app_id)}
        assert ticks.keys() == {f"posthog_jobs.{hook}" for hook in PERIODS}
        for hook in PERIODS:
            tick = ticks[f"posthog_jobs.{hook}"]
            assert tick.due == boundary_before(hook, tick.due)
            assert abs(tick.due - app.ticks.ledger.now()) <= PERIODS[hook]
            expected = Tick(app_id=app_id, hook=hook, boundary=tick.due)
            assert (tick.id, tick.key) == (expected.id, "tick")
    for app_id in ("off", "broken", "no-hook"):
        assert waiting(app, app_id) == []
    assert app.schedule.count() == 15


@pytest.mark.parametrize("hook", PERIODS)
def test_a_tick_runs_once(app: PostHogJobs, hook: str) -> None:
    """A tick runs its hook, and has the next one wait; delivered again it does nothing."""
    tick, what = current(app, hook), hook.removeprefix("run_every_")

    assert [run_tick(app, tick) for _ in range(3)] == [None] * 3
    assert run_tick(app, current(app, hook, before=2)) is None

    assert [note["job"] for note in notes(app, what, "ticking")] == [None]
    (following,) = waiting(app, "ticking")
    # the second if a boundary has passed just now
    assert following.due in (tick.boundary + PERIODS[hook], tick.boundary + 2 * PERIODS[hook])


def test_a_tick_that_an_operator_runs_early(app: PostHogJobs) -> None:
    """A tick that is moved is one run more: the one on the boundary follows, and runs."""
    quiet_moment(app)
    tick = Tick(
        app_id="ticking",
        hook="run_every_day",
        boundary=boundary_after("run_every_day", app.ticks.ledger.now()),
    )

    assert run_tick(app, tick, due=tick.boundary - timedelta(minutes=1)) is None
    assert [each.due for each in waiting(app, "ticking")] == [tick.boundary]
    assert run_tick(app, tick) is None

    assert len(notes(app, "day", "ticking")) == 2


def test_hours_and_days_missed_are_made_up_once(
    app: PostHogJobs, idle_server: RedisProcess
) -> None:
    """A missed hour or day is run once, also where no tick of it waits any more; no minute is."""
    quiet_moment(app)
    for hook in PERIODS:
        app.ticks.ledger.end(current(app, hook, before=3))
    for _ in range(2):
        app.ticks.see_to_all()

    assert idle_server.client is not None
    queued = [json.loads(text)["headers"] for text in idle_server.client.lrange("celery", 0, -1)]
    made_up = {headers["task"]: headers["id"] for headers in queued}
    assert len(queued) == 2
    assert made_up == {
        f"posthog_jobs.{hook}": current(app, hook).id
        for hook in ("run_every_hour", "run_every_day")
    }
    assert len(waiting(app, "ticking")) == 3


def test_a_disabled_app_ends_its_ticks(app: PostHogJobs) -> None:
    """A tick of an app that is disabled or gone ends quietly; what it left out is not made up."""
    for app_id in ("off", "gone", "no-hook"):
        app.ticks.ledger.end(current(app, "run_every_day", app_id, before=3))
        assert run_tick(app, current(app, "run_every_day", app_id)) is None
        assert waiting(app, app_id) == []
    assert app.ticks.ledger.last("off", "run_every_day") is None
    assert app.ticks.ledger.last("gone", "run_every_day") is not None


def test_an_app_that_cannot_run_now_is_tried_at_the_next_tick(
    app: PostHogJobs, caplog: pytest.LogCaptureFixture
) -> None:
    """A tick of an app that does not load, or is not set up, is logged, and the next one waits."""
    for app_id, why in (("broken", "ZeroDivisionError"), ("unready", "ValueError: no url")):
        for hook in PERIODS:
            assert run_tick(app, current(app, hook, app_id)) is None
            assert f"{hook} of app id '{app_id}'" in caplog.text
            assert why in caplog.text
            caplog.clear()
        assert sorted(map(hook_of, waiting(app, app_id))) == sorted(PERIODS)


@pytest.mark.parametrize(
    "args", [[], ["ticking"], ["ticking", "1"], ["ticking", True], [1, 1], ["ticking", 1, 1]]
)
def test_a_message_that_is_no_tick(app: PostHogJobs, args: list[Any]) -> None:
    """Bad input: a message whose arguments are none of a tick is refused before it runs."""
    task = app.tasks["posthog_jobs.run_every_day"]

    assert not task.accepts(args, {})
    assert not task.accepts(["ticking", 1], {"app_id": "ticking"})
    assert task.accepts(["ticking", 1], {})


@pytest.mark.parametrize("hook", PERIODS)
def test_a_hook_that_raises(app: PostHogJobs, hook: str) -> None:
    """Bad input: what a hook raises is its task's failure, and the next tick waits all the same."""
    error = run_tick(app, current(app, hook, "raising"))

    assert isinstance(error, ValueError)
    assert [tick.key for tick in waiting(app, "raising")] == ["tick"]


def quiet_moment(
    app: PostHogJobs, hook: str = "run_every_hour", lasts: timedelta = timedelta(seconds=40)
) -> None:
    """Wait until no hour ends within the next seconds, which a retry does not outlast."""

    def is_quiet() -> bool:
        now = app.ticks.ledger.now()
        return boundary_after(hook, now) - now > lasts

    poll("a moment that is no tick's", is_quiet)


def test_retry_error(app: PostHogJobs) -> None:
    """RetryError: an hour or day is run again, by the table, until the next one; no minute is."""
    quiet_moment(app)

    for hook in ("run_every_hour", "run_every_day"):
        tick, before = current(app, hook, "busy"), app.ticks.ledger.now()
        assert isinstance(run_tick(app, tick), Ignore)
        after = app.ticks.ledger.now() + timedelta(milliseconds=1)  # = rounded up
        retry, _ = waiting(app, "busy")
        assert (retry.id, retry.key, retry.attempt) == (tick.id, None, 2)
        assert retry.last_error == "RetryError: not now"
        assert before <= retry.due - timedelta(seconds=5) <= after
        assert isinstance(run_tick(app, tick, retries=5), RetriesExhaustedError)
        app.schedule.cancel_all(app_id="busy")

    minute = run_tick(app, current(app, "run_every_minute", "busy"))
    assert isinstance(minute, RetriesExhaustedError)
    later = run_tick(app, current(app, "run_every_day", "busy-long"))
    assert later is None, "its RetryError asks for a time after the next day, which runs anyway"


@pytest.mark.parametrize("running", PERIODS)
def test_one_run_at_a_time(app: PostHogJobs, running: str) -> None:
    """While a hook runs, the installation's other ticks wait for its end."""
    for hook in PERIODS:
        quiet_moment(app, hook, timedelta(seconds=10))
        tick, what = current(app, hook), hook.removeprefix("run_every_")
        with app.ticks.ledger.lock(current(app, running, before=1)):
            before = app.ticks.ledger.now()
            outcome = run_tick(app, tick)
            other = run_tick(app, current(app, hook, "raising"))
        assert notes(app, what, "ticking") == []
        assert isinstance(other, ValueError), "another installation's hook is not held up"
        assert isinstance(outcome, Ignore)
        (again,) = (waits for waits in waiting(app, "ticking") if waits.id == tick.id)
        assert timedelta(seconds=1) <= again.due - before <= timedelta(seconds=10)
        assert run_tick(app, tick, due=again.due) is None
        assert len(notes(app, what, "ticking")) == 1


@pytest.mark.parametrize("hook", PERIODS)
def test_a_tick_waits_no_longer_than_until_the_next_one(
    app: PostHogJobs, hook: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tick that would wait until the next one is due is left out."""
    monkeypatch.setattr(ticks_module, "UNTIL_FREE", RetryDelays((PERIODS[hook].total_seconds(),)))

    with app.ticks.ledger.lock(current(app, hook)):
        assert run_tick(app, current(app, hook)) is None

    assert f"{hook} of app id 'ticking' is left out: another run_every_… of " in caplog.text
    assert [waits.key for waits in waiting(app, "ticking")] == ["tick"]
    assert notes(app, hook.removeprefix("run_every_"), "ticking") == []


def test_the_lock_is_kept_and_let_go(
    app: PostHogJobs, monkeypatch: pytest.MonkeyPatch, idle_server: RedisProcess
) -> None:
    """The lock of a hook that runs for long is renewed; that of a worker that died is free soon."""
    monkeypatch.setattr(ticks_module, "LOCK", 3)
    tick = current(app, "run_every_hour")
    client = idle_server.client
    assert client is not None
    name = "posthog_jobs:tick:ticking"

    with app.ticks.ledger.lock(tick):
        first = client.get(name)
        until = time.monotonic() + 4
        poll("longer than the lock is", lambda: time.monotonic() > until)
        assert client.get(name) == first
    assert client.get(name) is None

    client.set(name, "of a dead worker", px=100)
    poll("the lock is free", lambda: run_tick(app, tick) is None)
    assert len(notes(app, "hour", "ticking")) == 1


def test_an_app_that_is_uninstalled(app: PostHogJobs) -> None:
    """Ticks are no waiting jobs: an app that has them can be uninstalled, and they go with it."""
    app.apps.install(MODULE, id="new")
    app.ticks.see_to_all()
    app.ticks.ledger.end(current(app, "run_every_day", "new", before=3))
    assert app.apps.waiting_jobs("new") == 0
    app.meta_for("new").jobs.alive().run_in(1, "hour")
    assert app.apps.waiting_jobs("new") == 1

    assert app.apps.uninstall("new", cancel_jobs=True).cancelled == 1

    assert waiting(app, "new") == []
    assert app.ticks.ledger.last("new", "run_every_day") is None
    assert run_tick(app, current(app, "run_every_day", "new")) is None


def test_on_rabbitmq() -> None:
    """A broker that cannot hold a key is told of where an app has such a hook, and only there."""
    options = {"broker_url": "amqp://127.0.0.1:1//"}
    recorder = PostHogJobs(config_source={**options, "posthog_jobs_apps": APPS})
    ticking = PostHogJobs(config_source={**options, "posthog_jobs_apps": TICKING})

    recorder.ticks.see_to_all()
    with pytest.raises(UnsupportedByBrokerError, match="cannot do this; Redis can"):
        ticking.ticks.see_to_all()


class TestWorkers:
    """Real workers, in every pool."""

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"posthog_jobs_apps": {**APPS, **TICKING}}

    @pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
    def test_two_workers(
        self,
        jobs_app: PostHogJobs,
        celery_setup: CeleryTestSetup,
        start_worker: Callable[[], Any],
        pool: str,
    ) -> None:
        """Two workers run each tick once, after an app that raises, and leave the next one."""
        start_worker()
        quiet_moment(jobs_app)
        poll("the ticks wait", lambda: len(waiting(jobs_app, "ticking")) == 3)
        for hook in PERIODS:
            for app_id in ("raising", "ticking", "ticking"):
                tick = current(jobs_app, hook, app_id)
                jobs_app.tasks[tick.task].send(tick)
        jobs_app.meta_for("ticking").jobs.alive().run_now()

        for what in ("minute", "hour", "day"):
            wait_for(jobs_app, f"{what} ended", app_id="ticking")
        wait_for(jobs_app, "alive", app_id="ticking")

        poll("the queue is empty", lambda: queued(jobs_app) == 0)
        for what in ("hour", "day"):
            assert len(notes(jobs_app, what, "ticking")) == 1
        # a real minute may have begun
        assert 1 <= len(notes(jobs_app, "minute", "ticking")) <= 2

        def ticks() -> list[WaitingJob]:
            return [tick for tick in waiting(jobs_app, "ticking") if tick.key == "tick"]

        poll("the next ones wait", lambda: sorted(map(hook_of, ticks())) == sorted(PERIODS))
        assert all(tick.due == boundary_before(hook_of(tick), tick.due) for tick in ticks())

    def test_an_app_that_comes_while_workers_run(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
    ) -> None:
        """An app that is installed, disabled or enabled has its ticks scheduled in a moment."""
        quiet_moment(jobs_app)
        jobs_app.apps.install(MODULE, id="new")
        poll("the ticks wait", lambda: len(waiting(jobs_app, "new")) == 3)
        jobs_app.apps.disable("new")
        day = current(jobs_app, "run_every_day", "new")
        (waits,) = (tick for tick in waiting(jobs_app, "new") if hook_of(tick) == day.hook)
        jobs_app.schedule.run_now(waits.id)
        celery_setup.worker.assert_log_exists("run_every_day of app id 'new' ends: ")
        jobs_app.apps.enable("new")

        poll("the tick is back", lambda: jobs_app.schedule.get(waits.id))
        assert notes(jobs_app, "day", "new") == []

    def test_a_tick_moved_to_now(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
    ) -> None:
        """A waiting tick that an operator moves to now runs now, and on its boundary again."""
        quiet_moment(jobs_app)
        poll("the ticks wait", lambda: len(waiting(jobs_app, "ticking")) == 3)
        (day,) = (tick for tick in waiting(jobs_app, "ticking") if hook_of(tick) == "run_every_day")

        assert jobs_app.schedule.run_now(day.id).waited
        wait_for(jobs_app, "day ended", app_id="ticking")

        assert jobs_app.schedule.get(day.id) is not None

    @pytest.mark.soak
    @pytest.mark.timeout(300)
    def test_real_minutes(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, start_worker: Callable[[], Any]
    ) -> None:
        """On the minute in UTC, one run each, with two workers."""
        start_worker()

        with Pace() as pace:
            ran = wait_for(jobs_app, "minute", 2, app_id="ticking", timeout=140)
            # on the hour it may wait a second for the hour's run
            assert all(note["at"] % 60 < pace.allow(3) for note in ran)

        first, second = (int(note["at"]) // 60 for note in ran)
        assert second == first + 1


class TestBlocking:
    """An app that blocks."""

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        blocking = {"module": MODULE, "config": {"seconds": 3600}}
        return {"posthog_jobs_apps": {"ticking": MODULE, "blocking": blocking}}

    @pytest.mark.parametrize("pool", ["prefork", "threads"])
    def test_an_app_that_blocks(self, jobs_app: PostHogJobs, pool: str) -> None:
        """Bad input: a hook that blocks takes one place of the pool; the other runs what comes."""
        for before in (2, 1, 0):
            tick = current(jobs_app, "run_every_minute", "blocking", before=before)
            jobs_app.tasks[tick.task].send(tick)
        wait_for(jobs_app, "minute", app_id="blocking")
        jobs_app.meta_for("ticking").jobs.alive().run_now()

        wait_for(jobs_app, "alive", app_id="ticking")
        assert len(notes(jobs_app, "minute", "blocking")) == 1


def hook_of(tick: WaitingJob) -> str:
    return tick.job.removeprefix("posthog_jobs.")


def queued(app: PostHogJobs) -> int:
    with app.connection_for_read() as connection:
        return int(connection.default_channel.client.llen("celery"))
