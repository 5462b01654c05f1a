"""Keys: of the jobs of an app and a name, at most one waits under each."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import TYPE_CHECKING, Any, Literal

import pytest

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import JobCallError, UnsupportedByBrokerError
from posthog_jobs.jobs.message import Steered
from tests.conftest import APPS, ROOT
from tests.notes import notes, wait_for
from tests.servers.nodes import ENVIRONMENT, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.broker.schedule import Schedule
    from posthog_jobs.jobs.trigger import Jobs
    from tests.servers.nodes import RedisProcess

HOUR = timedelta(hours=1)
NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def jobs(idle_app: PostHogJobs) -> Jobs:
    return idle_app.meta_for("recorder").jobs


@pytest.fixture
def schedule(idle_app: PostHogJobs) -> Schedule:
    return idle_app.schedule


def waiting(schedule: Schedule) -> list[tuple[str, datetime]]:
    """Return id and due time of what waits."""
    return [(job.id, job.due) for job in schedule.list().jobs]


def queued(server: RedisProcess) -> int:
    """Return how many messages are in the queue."""
    assert server.client is not None
    return int(server.client.llen("celery"))


@pytest.mark.parametrize("options", [{}, {"if_waiting": "replace"}])
@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_replace(jobs: Jobs, schedule: Schedule, options: Any, hours: int) -> None:
    """Replace, the default: the newest payload waits, until its own due time, sooner or later."""
    first = jobs.record("first", key="user-42", **options).run_at(NOON)
    second = jobs.record("second", key="user-42", **options).run_at(NOON + hours * HOUR)

    (job,) = schedule.list().jobs
    assert (job.id, job.due, job.key) == (second.id, NOON + hours * HOUR, "user-42")
    assert b'"second"' in job.body
    assert (second.due, first.id != second.id) == (job.due, True)
    assert first.cancel() is Steered.UNKNOWN, "it does not wait, and never will run"
    assert schedule.count() == 1


def test_keep(jobs: Jobs, schedule: Schedule) -> None:
    """Keep: the first stays with payload and due time, and the second one's handle is of it."""
    first = jobs.record("first", key="k").run_at(NOON)
    second = jobs.record("second", key="k", if_waiting="keep").run_at(NOON - HOUR)

    (job,) = schedule.list().jobs
    assert (job.id, job.due) == (first.id, NOON)
    assert b'"first"' in job.body
    assert (second.id, second.due) == (first.id, NOON)
    assert second.reschedule(NOON + HOUR) is Steered.RESCHEDULED
    assert waiting(schedule) == [(first.id, NOON + HOUR)]
    assert second.cancel() is Steered.CANCELLED
    assert schedule.count() == 0


def test_keep_when_none_waits(jobs: Jobs, schedule: Schedule) -> None:
    """Keep: without one that waits, the job is as any other."""
    handle = jobs.record("first", key="k", if_waiting="keep").run_at(NOON)

    assert waiting(schedule) == [(handle.id, NOON)]


def test_in_a_loop(jobs: Jobs, schedule: Schedule) -> None:
    """In a running loop, the handle is of the kept job once it was awaited; calls keep order."""

    async def trigger() -> list[Any]:
        first = jobs.record("first", key="k").run_at(NOON)
        kept = jobs.record("second", key="k", if_waiting="keep").run_at(NOON + HOUR)
        await kept
        unawaited = jobs.record("third", key="k", if_waiting="keep").run_at(NOON + HOUR)
        return [first.id, (kept.id, kept.due), await unawaited.reschedule(NOON - HOUR)]

    first, kept, moved = asyncio.run(trigger())

    assert kept == (first, NOON)
    assert moved is Steered.RESCHEDULED, "the handle was sent by then, though nobody awaited it"
    assert waiting(schedule) == [(first, NOON - HOUR)]


def test_what_does_not_collide(idle_app: PostHogJobs, jobs: Jobs, schedule: Schedule) -> None:
    """Another app id, another job, another key, or no key: each waits beside the others."""
    second = idle_app.meta_for("second").jobs
    calls = [
        jobs.record(1, key="k"),
        second.record(1, key="k"),
        jobs.slow(1, key="k"),
        jobs.record(1, key="K"),
        jobs.record(1, key="k "),
        jobs.record(1, key="5:k"),
        jobs.record(1),
        jobs.record(1),
    ]
    sent = [call.run_at(NOON) for call in calls]

    assert {job.id for job in schedule.list().jobs} == {handle.id for handle in sent}
    for call in calls[:-2]:
        call.run_at(NOON)
    assert schedule.count() == len(calls)


@pytest.mark.parametrize(
    "key", ["user-42", "a b", "é ☃ 😀", '"', "\\", "{}:", "k" * 200, "0", "%1"]
)
def test_keys_are_kept_as_they_are(jobs: Jobs, schedule: Schedule, key: str) -> None:
    """Any printable key of up to 200 characters is listed as it was given."""
    jobs.record(1, key=key).run_at(NOON)
    handle = jobs.record(2, key=key).run_at(NOON)

    assert [(job.id, job.key) for job in schedule.list().jobs] == [(handle.id, key)]


@pytest.mark.parametrize(
    "key", ["", "k" * 201, "a\nb", "tab\t", "\x00", "\x7f", "\ud800", 42, b"k", ["k"], True]
)
def test_bad_keys(idle_server: RedisProcess, jobs: Jobs, schedule: Schedule, key: Any) -> None:
    """What is no key is refused at the call, naming app, job and fix; nothing is enqueued."""
    with pytest.raises(JobCallError, match=r"job 'record' of app 'recorder' .*use 1 to 200 print"):
        jobs.record(1, key=key).run_at(NOON)
    assert (schedule.count(), queued(idle_server)) == (0, 0)


@pytest.mark.parametrize("if_waiting", ["", "Replace", "drop", None, True, ["keep"]])
def test_bad_if_waiting(
    idle_server: RedisProcess, jobs: Jobs, schedule: Schedule, if_waiting: Any
) -> None:
    """An unknown if_waiting is refused at the call, and what waits stays."""
    first = jobs.record(1, key="k").run_at(NOON)

    with pytest.raises(JobCallError, match='use "replace" or "keep"'):
        jobs.record(2, key="k", if_waiting=if_waiting).run_now()
    assert waiting(schedule) == [(first.id, NOON)]
    assert queued(idle_server) == 0


def test_run_now_with_a_key(idle_server: RedisProcess, jobs: Jobs, schedule: Schedule) -> None:
    """run_now with a key: instead of what waits with replace; nothing is sent with keep."""
    first = jobs.record("first", key="k").run_at(NOON)
    kept = jobs.record("second", key="k", if_waiting="keep").run_now()
    assert (kept.id, kept.due) == (first.id, NOON)
    assert (waiting(schedule), queued(idle_server)) == ([(first.id, NOON)], 0)

    third = jobs.record("third", key="k").run_now()
    assert (schedule.count(), queued(idle_server)) == (0, 1)
    assert third.id != first.id
    assert first.cancel() is Steered.UNKNOWN

    jobs.record("fourth", key="k", if_waiting="keep").run_now()
    assert (schedule.count(), queued(idle_server)) == (0, 2), "what is queued does not wait"


@pytest.mark.parametrize("leave", ["cancel", "run_now", "cancel_all", "reschedule"])
def test_a_key_is_free_again(jobs: Jobs, schedule: Schedule, leave: str) -> None:
    """After what waited was cancelled, moved to now or promoted, another one can wait."""
    first = jobs.record("first", key="k").run_at(NOON)
    leaving: dict[str, Callable[[], object]] = {
        "cancel": lambda: schedule.cancel(first.id),
        "run_now": lambda: schedule.run_now(first.id),
        "cancel_all": lambda: schedule.cancel_all(app_id="recorder"),
        "reschedule": lambda: schedule.reschedule(first.id, datetime(2000, 1, 1, tzinfo=UTC)),
    }
    leaving[leave]()

    second = jobs.record("second", key="k", if_waiting="keep").run_at(NOON + HOUR)

    assert waiting(schedule) == [(second.id, NOON + HOUR)]
    assert second.id != first.id


@pytest.mark.parametrize("if_waiting", ["replace", "keep"])
def test_a_moved_job_keeps_its_key(
    jobs: Jobs, schedule: Schedule, if_waiting: Literal["replace", "keep"]
) -> None:
    """What was moved to another time still waits under its key."""
    first = jobs.record("first", key="k").run_at(NOON)
    first.reschedule(NOON + HOUR)
    second = jobs.record("second", key="k", if_waiting=if_waiting).run_at(NOON)

    assert schedule.count() == 1
    assert (second.id == first.id) is (if_waiting == "keep")
    assert waiting(schedule) == [(second.id, second.due)]


@pytest.mark.parametrize("if_waiting", ["replace", "keep"])
def test_threads_that_race(
    jobs: Jobs, schedule: Schedule, if_waiting: Literal["replace", "keep"]
) -> None:
    """20 threads that send under one key at once leave exactly one."""
    together = Barrier(20)

    def send(number: int) -> tuple[str, datetime]:
        together.wait()
        moment = NOON + number * HOUR
        handle = jobs.record(number, key="k", if_waiting=if_waiting).run_at(moment)
        return handle.id, handle.due

    with ThreadPoolExecutor(20) as threads:
        handles = list(threads.map(send, range(20)))

    (job,) = waiting(schedule)
    assert job in handles
    assert len(set(handles)) == (1 if if_waiting == "keep" else 20)


def test_processes_that_race(idle_server: RedisProcess, schedule: Schedule) -> None:
    """Processes that send under one key over and over leave exactly one."""
    code = (
        "import sys\n"
        "from posthog_jobs.celery import PostHogJobs\n"
        f"config = {{'broker_url': {idle_server.url!r}, 'posthog_jobs_apps': {APPS!r}}}\n"
        "jobs = PostHogJobs(config_source=config).meta_for('recorder').jobs\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for number in range(50):\n"
        "    keep = ('replace', 'keep')[number % 2]\n"
        "    handle = jobs.record(number, key='k', if_waiting=keep).run_in(1, 'hour')\n"
        "    if number % 10 == 0:\n"
        "        handle.cancel()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.communicate("go\n", timeout=120)
    finally:
        for process in processes:
            process.kill()

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(waiting(schedule)) == schedule.count() == 1


def test_a_keyed_job_runs_once_with_its_last_payload(jobs_app: PostHogJobs) -> None:
    """Debounce: of many calls under a key, one job runs, with the last payload; then again."""
    jobs = jobs_app.meta_for("recorder").jobs
    for number in range(4):
        jobs.record(number, key="k").run_in(1, "hour")
    jobs.record(4, key="k").run_in(400, "milliseconds")

    assert [note["payload"] for note in wait_for(jobs_app, "record")] == [4]
    assert jobs_app.schedule.count() == 0
    jobs.record("next", key="k", if_waiting="keep").run_in(50, "milliseconds")
    assert [note["payload"] for note in wait_for(jobs_app, "record", 2)] == [4, "next"]


def test_a_retry_does_not_replace_a_newer_job(jobs_app: PostHogJobs) -> None:
    """A keyed job that raised RetryError waits without its key, beside what waits under that."""
    jobs = jobs_app.meta_for("recorder").jobs
    retried = jobs.fail_once({"delay": 3600}, key="k").run_in(50, "milliseconds")
    wait_for(jobs_app, "fail_once")
    newer = jobs.fail_once("y", key="k", if_waiting="keep").run_in(1, "hour")

    def both() -> dict[str, str | None] | None:
        found = {job.id: job.key for job in jobs_app.schedule.list().jobs}
        return found if len(found) == 2 else None

    assert poll("the retry", both) == {retried.id: None, newer.id: "k"}
    newest = jobs.fail_once("z", key="k").run_in(1, "hour")
    assert both() == {retried.id: None, newest.id: "k"}
    assert len(notes(jobs_app, "fail_once")) == 1


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_retry_by_celery(jobs_app: PostHogJobs, pool: str) -> None:
    """Celery's own retry of a keyed job leaves alone what waits; its lateness counts anew."""
    meta = jobs_app.meta_for("recorder")
    retried = meta.jobs.retry_by_celery(3, key="k").run_in(50, "milliseconds")
    wait_for(jobs_app, "retry_by_celery")
    newer = meta.jobs.retry_by_celery(0, key="k").run_in(1, "hour")
    meta.cache.set("let go", True)

    poll("the retry", lambda: jobs_app.schedule.get(retried.id))
    found = {job.id: job.key for job in jobs_app.schedule.list().jobs}
    _, again = wait_for(jobs_app, "retry_by_celery", 2)

    assert found == {retried.id: None, newer.id: "k"}
    assert (again["attempt"], again["key"]) == (2, "k")
    assert 0 <= again["late"] < 3
    assert jobs_app.schedule.get(newer.id) is not None


def test_no_keys_on_another_broker() -> None:
    """A key is refused on a broker that cannot keep it, and the job is not sent without it."""
    app = PostHogJobs(config_source={"broker_url": "memory://", "posthog_jobs_apps": APPS})

    with app.connection_for_read() as connection:
        size = connection.default_channel._size
        before = size("celery")  # of all apps of this process

        with pytest.raises(UnsupportedByBrokerError):
            app.meta_for("recorder").jobs.record(1, key="k").run_now()
        assert size("celery") == before
