"""What waits can be seen and steered: from the app, and from the handle of a job."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import kombu.compression
import pytest

from posthog_jobs.broker.schedule import Forecast
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DueError,
    NaiveDatetimeError,
    PageError,
    UnsupportedByBrokerError,
)
from posthog_jobs.jobs.message import Steered
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.odd_times import IN_BROKEN_ZONE, NOT_A_TIME
from tests.overdue import bring_forward
from tests.pace import Pace
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.broker.schedule import Schedule, WaitingJob
    from posthog_jobs.jobs.trigger import JobHandle, Jobs, TriggerableJob
    from tests.servers.nodes import RedisProcess

HOUR = timedelta(hours=1)
NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)
NAIVE = datetime(2100, 1, 1)  # noqa: DTZ001


@pytest.fixture
def jobs(idle_app: PostHogJobs) -> Jobs:
    return idle_app.meta_for("recorder").jobs


@pytest.fixture
def schedule(idle_app: PostHogJobs) -> Schedule:
    return idle_app.schedule


def queued(app: PostHogJobs) -> int:
    """Return how many messages are in the queue."""
    with app.connection_for_read() as connection:
        return int(connection.default_channel.client.llen("celery"))


def ids(jobs: tuple[WaitingJob, ...]) -> list[str]:
    return [job.id for job in jobs]


# -- what waits, seen -------------------------------------------------------------------------


def test_get_shows_a_waiting_job(jobs: Jobs, schedule: Schedule) -> None:
    """get: a job that waits is shown with app, task, due time, key, queue and message."""
    handle = jobs.record({"url": "http://x"}, key="user-42").run_at(NOON)

    job = schedule.get(handle.id)

    assert job is not None
    assert (job.id, job.app_id, job.due, job.key) == (handle.id, "recorder", NOON, "user-42")
    assert (job.job, job.queue) == ("posthog_jobs.recorder.record", "celery")
    assert job.message["headers"]["id"] == handle.id
    assert b'["recorder", {"url": "http://x"}]' in job.body


def test_a_compression_that_workers_do_not_unpack(idle_app: PostHogJobs) -> None:
    """A message whose own compression workers cannot read is refused where it is sent."""
    kombu.compression.register(bytes, bytes, "application/x-of-test", aliases=["of-test"])

    with pytest.raises(ConfigurationError, match=r"x-of-test.* let its task have gzip"):
        idle_app.send_task("plain", compression="of-test")


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_the_body_of_a_compressed_message(idle_app: PostHogJobs, compression: str) -> None:
    """get: the body is as its serializer made it, also where task_compression is set."""
    idle_app.conf.task_compression = compression
    handle = idle_app.meta_for("recorder").jobs.record("x").run_in(1, "hour")

    job = idle_app.schedule.get(handle.id)

    assert job is not None
    assert b'["recorder", "x"]' in job.body


def test_get_of_what_does_not_wait(jobs: Jobs, schedule: Schedule) -> None:
    """get: None for a job that is in its queue, and for an id that never was."""
    handle = jobs.record(1).run_now()

    assert schedule.get(handle.id) is None
    assert schedule.get("no such id") is None


def test_list_is_in_due_order_over_all_apps_and_jobs(
    idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule
) -> None:
    """list: what waits of all apps and jobs, the first due first."""
    second = idle_app.meta_for("second").jobs
    sent = {
        hours: call.run_at(NOON + hours * HOUR).id
        for hours, call in (
            (3, jobs.record(1)),
            (1, second.record(1)),
            (4, jobs.record_nothing()),
            (2, jobs.slow({})),
        )
    }

    page = schedule.list()

    assert ids(page.jobs) == [sent[hours] for hours in sorted(sent)]
    assert page.cursor is None


def test_filters(idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule) -> None:
    """list, count, forecast: by app id, by a job's name or its task's, and by due time."""
    second = idle_app.meta_for("second").jobs
    calls: list[TriggerableJob] = [jobs.record, jobs.slow, second.record]
    one, other, elsewhere = (
        call(1).run_at(NOON + hour * HOUR).id for hour, call in enumerate(calls)
    )
    task = "posthog_jobs.recorder.record"
    expected: list[tuple[dict[str, Any], list[str]]] = [
        ({}, [one, other, elsewhere]),
        ({"app_id": "recorder"}, [one, other]),
        ({"job": "record"}, [one, elsewhere]),
        ({"job": task}, [one, elsewhere]),
        ({"app_id": "second", "job": "record"}, [elsewhere]),
        ({"app_id": "second", "job": task}, [elsewhere]),
        ({"app_id": "second", "job": "slow"}, []),
        ({"app_id": ""}, []),
        ({"app_id": "nobody"}, []),
        ({"app_id": "nobody", "job": task}, []),
        ({"before": NOON + HOUR}, [one]),
        ({"before": NOON + HOUR + timedelta(milliseconds=1)}, [one, other]),
        ({"before": (NOON + HOUR).astimezone(timezone(timedelta(hours=9)))}, [one]),
        ({"job": "record", "before": NOON + 3 * HOUR}, [one, elsewhere]),
    ]
    for filters, wanted in expected:
        assert ids(schedule.list(**filters).jobs) == wanted, filters
        assert schedule.count(**filters) == len(wanted), filters
        if "before" not in filters:
            assert schedule.forecast(**filters).total == len(wanted), filters


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_paging_through_equal_due_times(
    idle_app: PostHogJobs, schedule: Schedule, limit: int
) -> None:
    """list: the pages of hundreds that are due at one instant have each of them once."""
    calls = [
        idle_app.meta_for(app_id).jobs[name](1)
        for app_id in ("recorder", "second")
        for name in ("record", "slow", "fail")
    ]
    count = 12 if limit == 1 else 300
    sent = {calls[n % len(calls)].run_at(NOON).id for n in range(count)}

    seen: list[str] = []
    cursor, more = None, True
    while more:
        page = schedule.list(limit=limit, cursor=cursor)
        assert 0 < len(page.jobs) <= limit
        seen += ids(page.jobs)
        cursor, more = page.cursor, page.cursor is not None

    assert sorted(seen) == sorted(sent)
    assert seen == ids(schedule.list(limit=count).jobs), "each page goes on where the last ended"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_page_that_each_partition_has_one_job_of_leads_on(
    jobs: Jobs, schedule: Schedule, limit: int
) -> None:
    """list: a page leads on while more waits, also if the rest is of other jobs."""
    sent = [
        jobs[name](1).run_at(NOON + hour * HOUR).id
        for hour, name in enumerate(("record", "slow", "fail", "fail_once"))
    ]

    page = schedule.list(limit=limit)

    assert ids(page.jobs) == sent[:limit]
    assert page.cursor is not None
    assert ids(schedule.list(cursor=page.cursor).jobs) == sent[limit:]


def test_paging_while_jobs_come_and_go(jobs: Jobs, schedule: Schedule) -> None:
    """list: a cursor leads on although the job that it ended with does not wait any more."""
    sent = [jobs.record(hour).run_at(NOON + hour * HOUR) for hour in range(4)]
    page = schedule.list(limit=2)
    assert sent[1].cancel() is Steered.CANCELLED
    jobs.record("before").run_at(NOON - HOUR)

    rest = schedule.list(cursor=page.cursor)

    assert ids(rest.jobs) == [sent[2].id, sent[3].id]


@pytest.mark.parametrize("cursor", ["", "x", "é", "bm8=", "bm86aWQ=", "%%%"])
def test_a_wrong_cursor(schedule: Schedule, cursor: str) -> None:
    """list: what is no cursor is refused by name."""
    with pytest.raises(PageError, match="is no cursor of this list"):
        schedule.list(cursor=cursor)


@pytest.mark.parametrize("look", [lambda schedule: schedule.list, lambda schedule: schedule.count])
def test_before_needs_a_time_zone(
    schedule: Schedule, look: Callable[[Schedule], Callable[..., object]]
) -> None:
    """list, count: a naive `before` is refused, also while nothing waits."""
    with pytest.raises(NaiveDatetimeError, match=r"^before\(datetime.* has no time zone"):
        look(schedule)(before=NAIVE)
    for moment in (NOT_A_TIME, IN_BROKEN_ZONE):
        with pytest.raises(DueError, match=r"^before\(.* does not name a moment"):
            look(schedule)(before=moment)


def test_forecast(jobs: Jobs, schedule: Schedule) -> None:
    """forecast: how many come due in each period, and how many in all."""
    for seconds in (30, 90, 120, 7200, 2 * 86_400, 8 * 86_400, 31 * 86_400, 9e9):
        jobs.record(seconds).run_in(seconds, "seconds")

    forecast = schedule.forecast()

    assert forecast == Forecast(minute=1, hour=2, day=1, week=1, month=1, later=2, late=timedelta())
    assert forecast.total == 8


def test_forecast_of_nothing(schedule: Schedule) -> None:
    """forecast: all zero while nothing waits."""
    assert schedule.forecast().total == 0
    assert schedule.forecast(app_id="nobody").late == timedelta()


def test_forecast_tells_how_late_the_first_is(
    idle_server: RedisProcess, idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule
) -> None:
    """forecast: with no worker to promote it, what is overdue counts and its lateness shows."""
    due = jobs.record(1).run_in(1, "hour").due - HOUR - timedelta(seconds=2)
    jobs.slow(1).run_in(1, "hour")
    bring_forward(idle_server.client, "recorder", "record", 3600 + 2)

    late = schedule.forecast().late

    assert timedelta(seconds=1) < late <= datetime.now(UTC) - due + timedelta(milliseconds=1)
    assert schedule.forecast().minute == 1
    assert schedule.forecast(job="record").late >= late
    assert schedule.forecast(job="slow").late == timedelta()
    assert schedule.forecast(app_id="second").late == timedelta()
    assert schedule.forecast(app_id="").late == timedelta()
    assert queued(idle_app) == 0


# -- what waits, steered ----------------------------------------------------------------------


def test_cancel(jobs: Jobs, schedule: Schedule) -> None:
    """cancel: what waits is gone; a second time nothing waits under the id."""
    handle = jobs.record(1, key="k").run_in(1, "hour")

    assert schedule.cancel(handle.id) is Steered.CANCELLED
    assert schedule.count() == 0
    assert schedule.cancel(handle.id) is Steered.UNKNOWN
    assert schedule.cancel("no such id") is Steered.UNKNOWN


def test_cancel_all(idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule) -> None:
    """cancel_all: all of an app, or of one of its jobs, in however many batches."""
    for number in range(600):
        jobs.record(number).run_in(1, "hour")
    jobs.record("k", key="k").run_in(1, "hour")
    jobs.slow(1).run_in(1, "hour")
    jobs.fail(1).run_in(1, "hour")
    kept = idle_app.meta_for("second").jobs.record(1).run_in(2, "hours")

    assert schedule.cancel_all(app_id="recorder", job="posthog_jobs.recorder.slow") == 1
    assert schedule.cancel_all(app_id="recorder", job="record") == 601
    assert schedule.cancel_all(app_id="recorder") == 1
    assert schedule.cancel_all(app_id="recorder") == 0
    assert ids(schedule.list().jobs) == [kept.id]
    jobs.record("again", key="k", if_waiting="keep").run_in(1, "hour")
    assert schedule.count(app_id="recorder") == 1, "nothing waited under the key any more"


def test_reschedule(idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule) -> None:
    """reschedule: to later, to sooner, and to what has passed, which is now."""
    one = jobs.record(1, key="k").run_at(NOON).id
    two = jobs.record(2).run_at(NOON + HOUR).id

    assert schedule.reschedule(one, NOON + 2 * HOUR) is Steered.RESCHEDULED
    assert ids(schedule.list().jobs) == [two, one]
    assert schedule.reschedule(one, NOON - HOUR) is Steered.RESCHEDULED
    moved = schedule.list().jobs[0]
    assert (moved.id, moved.due, moved.key) == (one, NOON - HOUR, "k")
    assert schedule.reschedule(one, datetime(1960, 1, 1, tzinfo=UTC)) is Steered.QUEUED
    assert schedule.reschedule(one, NOON) is Steered.PROMOTED
    assert schedule.reschedule("no such id", NOON) is Steered.UNKNOWN
    assert (queued(idle_app), schedule.count()) == (1, 1)


def test_reschedule_to_no_usable_time(jobs: Jobs, schedule: Schedule) -> None:
    """reschedule: a naive time, or one past year 9999, is refused and nothing is changed."""
    handle = jobs.record(1).run_at(NOON)

    with pytest.raises(NaiveDatetimeError, match="has no time zone"):
        schedule.reschedule(handle.id, NAIVE)
    for move in (schedule.reschedule, lambda _, at: handle.reschedule(at)):
        with pytest.raises(DueError, match="does not name a moment"):
            move(handle.id, NOT_A_TIME)
    with pytest.raises(DueError, match="lies past 9999-12-31"):
        schedule.reschedule(handle.id, datetime.max.replace(tzinfo=timezone(-HOUR)))

    job = schedule.get(handle.id)
    assert job is not None
    assert job.due == NOON


def test_a_task_that_is_due_past_year_9999(idle_app: PostHogJobs, schedule: Schedule) -> None:
    """list: a plain task whose eta no datetime in UTC can have is shown at the last one."""
    far = datetime.max.replace(tzinfo=timezone(-HOUR))
    idle_app.send_task("somebody.elses", eta=far, task_id="far")

    (job,) = schedule.list().jobs

    assert (job.id, job.app_id, job.job) == ("far", "", "somebody.elses")
    assert job.due.year == 9999


def test_run_now(idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule) -> None:
    """run_now: what waits is in its queue, once, and says that it was due by then."""
    start = time.time() * 1000
    handle = jobs.record(1).run_in(1, "hour")

    assert schedule.run_now(handle.id) is Steered.QUEUED
    assert schedule.run_now(handle.id) is Steered.PROMOTED
    assert schedule.run_now("no such id") is Steered.UNKNOWN
    assert (queued(idle_app), schedule.count()) == (1, 0)
    with idle_app.connection_for_read() as connection:
        message = connection.SimpleQueue("celery").get(block=False)
        due = message.headers["posthog_jobs_due"]
    assert start - 1 <= due <= time.time() * 1000 + 1


def test_what_left_the_schedule_is_promoted(
    idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule
) -> None:
    """Races: all calls say of what has left the schedule that it has, and change nothing."""
    handle = jobs.record(1).run_in(1, "hour")
    schedule.run_now(handle.id)

    assert schedule.cancel(handle.id) is Steered.PROMOTED
    assert schedule.reschedule(handle.id, NOON) is Steered.PROMOTED
    assert handle.cancel() is Steered.PROMOTED
    due = handle.due
    assert handle.reschedule(NOON) is Steered.PROMOTED
    assert handle.due == due
    assert (queued(idle_app), schedule.count()) == (1, 0)


# -- the handle -------------------------------------------------------------------------------


def test_handle_cancels_and_reschedules(jobs: Jobs, schedule: Schedule) -> None:
    """Handle: from sync code both return what they did, and due follows."""
    handle = jobs.record(1).run_in(1, "hour")

    assert handle.reschedule(NOON) is Steered.RESCHEDULED
    assert handle.due == NOON
    assert [job.due for job in schedule.list().jobs] == [NOON]
    assert handle.reschedule(NOON).waited
    assert handle.cancel() is Steered.CANCELLED
    assert handle.reschedule(NOON + HOUR) is Steered.UNKNOWN
    assert handle.due == NOON
    assert schedule.count() == 0


def test_a_handle_is_due_when_the_schedule_says(jobs: Jobs, schedule: Schedule) -> None:
    """Handle: its due time is the one that the job waits for, to the millisecond, at every call."""

    async def in_a_loop() -> JobHandle:
        handle = jobs.record(1).run_in(1, "month")
        await handle
        return handle

    odd = NOON + timedelta(microseconds=1)
    moved = jobs.record(1).run_in(1, "hour")
    moved.reschedule(odd)
    handles = [
        jobs.record(1).run_in(1 / 3, "hours"),
        jobs.record(1).run_at(odd),
        jobs.record(1, key="k").run_in(1.0001, "days"),
        asyncio.run(in_a_loop()),
        moved,
    ]

    for handle in handles:
        waiting = schedule.get(handle.id)
        assert waiting is not None
        assert handle.due == waiting.due
        assert handle.due.microsecond % 1000 == 0
    assert moved.due == NOON + timedelta(milliseconds=1)


def test_handle_in_a_loop(jobs: Jobs, schedule: Schedule) -> None:
    """Handle: in a running loop both are awaited for what they did, the job sent or not yet."""

    async def steer() -> list[Any]:
        handle = jobs.record(1).run_in(1, "hour")
        moved = await handle.reschedule(NOON)
        where = schedule.get(handle.id)
        assert where is not None
        return [moved, where.due, handle.due, await handle.cancel(), await handle.cancel()]

    assert asyncio.run(steer()) == [
        Steered.RESCHEDULED,
        NOON,
        NOON,
        Steered.CANCELLED,
        Steered.UNKNOWN,
    ]
    assert schedule.count() == 0


@pytest.mark.parametrize(
    ("moment", "error"),
    [
        (NAIVE, NaiveDatetimeError),
        ("tomorrow", DueError),
        (datetime.max.replace(tzinfo=timezone(-HOUR)), DueError),
    ],
)
def test_handle_refuses_what_is_no_time(
    jobs: Jobs, schedule: Schedule, moment: Any, error: type[Exception]
) -> None:
    """Handle: what is no usable time is refused at the call, in a loop too; nothing changes."""
    handle = jobs.record(1).run_at(NOON)

    async def call_alone() -> None:
        with pytest.raises(error):
            handle.reschedule(moment)

    with pytest.raises(error):
        handle.reschedule(moment)
    asyncio.run(call_alone())

    assert handle.due == NOON
    assert [job.due for job in schedule.list().jobs] == [NOON]


# -- the broker -------------------------------------------------------------------------------


def test_a_broker_that_is_gone(default_redis_broker: RedisProcess) -> None:
    """Every call raises BrokerUnavailableError when the broker is down, known before or not."""
    config = {
        "broker_url": default_redis_broker.url,
        "posthog_jobs_apps": APPS,
        "task_publish_retry": False,
    }
    app = PostHogJobs(config_source=config)
    schedule = app.schedule
    handle = app.meta_for("recorder").jobs.record(1).run_in(1, "hour")
    default_redis_broker.kill()

    calls: list[Callable[[], object]] = [
        lambda: schedule.get("x"),
        schedule.list,
        schedule.count,
        schedule.forecast,
        lambda: schedule.cancel("x"),
        lambda: schedule.cancel_all(app_id="x"),
        lambda: schedule.reschedule("x", NOON),
        lambda: schedule.run_now("x"),
        handle.cancel,
        lambda: handle.reschedule(NOON),
        lambda: app.meta_for("recorder").jobs.record(1, key="k").run_in(1, "hour"),
        PostHogJobs(config_source=config).schedule.count,
    ]
    for call in calls:
        with pytest.raises(BrokerUnavailableError, match="see that it runs"):
            call()

    async def awaited() -> None:
        with pytest.raises(BrokerUnavailableError):
            await handle.cancel()

    asyncio.run(awaited())


def test_a_publish_that_is_tried_again_still_waits(default_redis_broker: RedisProcess) -> None:
    """Never early: a job that the broker took at the second try waits as long as it should."""
    config = {
        "broker_url": default_redis_broker.url,
        "posthog_jobs_apps": APPS,
        "posthog_jobs_enqueue_timeout": 120,
    }
    app = PostHogJobs(config_source=config)
    jobs = app.meta_for("recorder").jobs
    jobs.record("connects").run_now()
    default_redis_broker.kill()
    default_redis_broker.start()  # not ready yet, so the first try finds nobody

    handle = jobs.record("later", key="k").run_at(NOON)
    default_redis_broker.ready()

    job = app.schedule.get(handle.id)
    assert job is not None
    assert (job.due, job.key) == (NOON, "k")
    assert queued(app) == 0


def test_another_broker_cannot() -> None:
    """On a broker other than Redis, schedule, handle and keys say that it cannot do this."""
    app = PostHogJobs(config_source={"broker_url": "memory://", "posthog_jobs_apps": APPS})
    jobs = app.meta_for("recorder").jobs
    handle = jobs.record(1).run_in(1, "hour")

    calls: list[Callable[[], object]] = [
        app.schedule.count,
        handle.cancel,
        lambda: handle.reschedule(NOON),
        lambda: jobs.record(1, key="k").run_now(),
    ]
    for call in calls:
        with pytest.raises(UnsupportedByBrokerError, match="memory, which cannot do this; Redis"):
            call()


def test_global_keyprefix(idle_server: RedisProcess, idle_app: PostHogJobs) -> None:
    """What one key prefix has waiting, an app with another prefix neither sees nor steers."""
    config = {
        "broker_url": idle_server.url,
        "posthog_jobs_apps": APPS,
        "broker_transport_options": {"global_keyprefix": "mine:"},
    }
    app = PostHogJobs(config_source=config)
    handle = app.meta_for("recorder").jobs.record(1).run_in(1, "hour")

    assert ids(app.schedule.list().jobs) == [handle.id]
    assert idle_app.schedule.count() == 0
    assert idle_app.schedule.cancel(handle.id) is Steered.UNKNOWN
    assert app.schedule.run_now(handle.id) is Steered.QUEUED
    assert idle_server.client is not None
    assert idle_server.client.llen("mine:celery") == 1


# -- with a worker ----------------------------------------------------------------------------


def test_cancelled_never_runs_and_moved_runs_at_its_new_time(jobs_app: PostHogJobs) -> None:
    """With a worker: what is cancelled never runs; what is moved runs then, and not before."""
    jobs = jobs_app.meta_for("recorder").jobs
    sooner = jobs.record("sooner").run_in(1, "hour")
    now = jobs.record("now").run_in(1, "hour")
    with Pace() as pace:
        start = datetime.now(UTC)
        cancelled = jobs.record("cancelled").run_in(3.5, "seconds")
        later = jobs.record("later").run_in(3, "seconds")

        assert cancelled.cancel() is Steered.CANCELLED
        assert later.reschedule(start + timedelta(seconds=4)) is Steered.RESCHEDULED
        assert sooner.reschedule(start + timedelta(seconds=2.5)) is Steered.RESCHEDULED
        asked = time.time()
        assert jobs_app.schedule.run_now(now.id) is Steered.QUEUED

        ran = {note["payload"]: note["at"] for note in wait_for(jobs_app, "record", 3)}
        assert list(ran) == ["now", "sooner", "later"]
        most = pace.allow(0.5)
    assert 0 <= ran["now"] - asked < most
    assert 0 <= ran["sooner"] - sooner.due.timestamp() < most
    assert 0 <= ran["later"] - later.due.timestamp() < most, "which is after the cancelled one"


@pytest.fixture
def one_at_a_time(default_worker_command: list[str]) -> None:
    """The worker runs one job at a time."""
    at = default_worker_command.index("--concurrency=2")
    default_worker_command[at] = "--concurrency=1"


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_cancelling_what_was_just_promoted_revokes_it(
    one_at_a_time: None, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Races: what has left for its queue and not started is revoked, in every pool."""
    jobs = jobs_app.meta_for("recorder").jobs
    jobs.hold(1).run_now()
    wait_for(jobs_app, "hold started")
    handles = [jobs.record(number).run_in(1, "hour") for number in range(3)]
    for handle in handles:
        assert jobs_app.schedule.run_now(handle.id) is Steered.QUEUED

    assert handles[1].cancel() is Steered.PROMOTED
    if pool != "solo":  # which hears of it when the job has ended, and before it begins the next
        inspect = jobs_app.control.inspect(timeout=1)
        poll("all have heard", lambda: handles[1].id in str(inspect.revoked()))
    assert notes(jobs_app, "hold ended") == []
    jobs_app.meta_for("recorder").cache.set("let go", 1)

    wait_for(jobs_app, "record", 2)
    jobs.record("last").run_now()
    ran = [note["payload"] for note in wait_for(jobs_app, "record", 3)]
    assert ran == [0, 2, "last"]
    celery_setup.worker.assert_log_exists("Discarding revoked task")


def test_what_has_run(jobs_app: PostHogJobs) -> None:
    """Races: of a job that waited and has run it is said that it had left the schedule."""
    jobs = jobs_app.meta_for("recorder").jobs
    waited = jobs.record("waited").run_in(2, "seconds")
    wait_for(jobs_app, "record")

    assert waited.cancel() is Steered.PROMOTED
    assert waited.reschedule(NOON) is Steered.PROMOTED
    assert jobs_app.schedule.run_now(waited.id) is Steered.PROMOTED
    assert jobs_app.schedule.count() == 0


def test_a_retry_waits_and_can_be_cancelled(jobs_app: PostHogJobs) -> None:
    """Retries wait in the schedule under the job's id; cancelled, one never runs."""
    jobs = jobs_app.meta_for("recorder").jobs
    handle = jobs.fail_once({"job": "x", "delay": 50}).run_in(50, "milliseconds")
    other = jobs.fail_once({"job": "y", "delay": 50}).run_now()

    ran = wait_for(jobs_app, "fail_once", 2)
    page = poll("two retries", lambda: (p := jobs_app.schedule.list()).jobs[1:] and p)
    seen = time.time()

    assert {job.id for job in page.jobs} == {handle.id, other.id}
    assert {(job.app_id, job.job) for job in page.jobs} == {
        ("recorder", "posthog_jobs.recorder.fail_once")
    }
    raised = sorted(job.due.timestamp() - 50 for job in page.jobs)
    assert all(note["at"] <= at <= seen + 0.001 for note, at in zip(ran, raised, strict=True))
    assert jobs_app.schedule.forecast().minute == 2
    assert handle.cancel() is Steered.CANCELLED
    assert handle.cancel() is Steered.UNKNOWN, "it waited again, and does not any more"
    assert jobs_app.schedule.run_now(other.id) is Steered.QUEUED
    attempts = [note["attempt"] for note in wait_for(jobs_app, "fail_once", 3)]
    assert attempts == [1, 1, 2]
    assert jobs_app.schedule.count() == 0


def test_steering_needs_no_installed_app(jobs_app: PostHogJobs) -> None:
    """What waits is steered by any process that reaches the broker, with no app installed."""
    handle = jobs_app.meta_for("recorder").jobs.record(1).run_in(1, "hour")
    operator = PostHogJobs(config_source={"broker_url": jobs_app.conf.broker_url})

    assert ids(operator.schedule.list(app_id="recorder").jobs) == [handle.id]
    assert operator.schedule.run_now(handle.id) is Steered.QUEUED
    wait_for(jobs_app, "record")


def test_nobody_listens() -> None:
    """schedule: a broker that never was there is told with the fix, and no traceback of Redis'."""
    url = f"redis://127.0.0.1:{closed_port()}/0"

    with pytest.raises(BrokerUnavailableError, match="the broker does not answer"):
        PostHogJobs(config_source={"broker_url": url}).schedule.count()
