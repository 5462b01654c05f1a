"""Jobs and hooks in real workers, in every pool."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

import posthog_jobs
from tests.notes import notes, wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs

POOLS = ["prefork", "solo", "threads"]
every_pool = pytest.mark.parametrize("pool", POOLS)


@pytest.mark.parametrize("pool", [*POOLS, "gevent", "eventlet"])
def test_hook_triggers_job_now_in_and_at(jobs_app: PostHogJobs, pool: str) -> None:
    """Run now, in, at: a hook in a worker triggers a job, and each runs when it is due."""
    start = datetime.now(UTC)
    moment = start + timedelta(seconds=1.5)
    for payload, how in (
        ("now", ["run_now"]),
        ("in", ["run_in", 1, "second"]),
        ("at", ["run_at", moment]),
    ):
        properties = {"trigger": "record", "payload": payload, "how": how}
        jobs_app.capture({"event": "go", "properties": properties})

    ran = {note["payload"]: note for note in wait_for(jobs_app, "record", 3)}

    assert ran["now"]["due"] is None, "it was when it was sent"
    assert start + timedelta(seconds=1) <= ran["in"]["due"]
    assert moment <= ran["at"]["due"] <= moment + timedelta(milliseconds=1)
    assert all(ran[how]["due"].timestamp() <= ran[how]["at"] for how in ("in", "at"))
    assert all(note["ready"] for note in ran.values()), "setup_plugin ran before the job"
    assert all(note["config"] == {"greeting": "hello"} for note in ran.values())


@every_pool
def test_async_jobs_share_one_loop(jobs_app: PostHogJobs, pool: str) -> None:
    """Functions: async jobs of one worker process run on one loop, that lives on."""
    for number in range(6):
        jobs_app.meta_for("recorder").jobs.recordAsync(number).run_now()

    ran = wait_for(jobs_app, "recordAsync", 6)

    assert sorted(note["payload"] for note in ran) == list(range(6))
    for pid in {note["pid"] for note in ran}:
        assert len({note["loop"] for note in ran if note["pid"] == pid}) == 1


@every_pool
def test_async_job_triggers_itself(jobs_app: PostHogJobs, pool: str) -> None:
    """Return: a job that a coroutine triggered is sent although nobody awaited that."""
    jobs_app.meta_for("recorder").jobs.chain(5).run_now()

    assert [note["payload"] for note in wait_for(jobs_app, "chain", 6)] == [5, 4, 3, 2, 1, 0]


def test_payloads_arrive_equal(jobs_app: PostHogJobs) -> None:
    """Payload, Arguments: what was sent arrives; None, 0, "" and [] are payloads."""
    payloads: list[object] = [
        None,
        0,
        "",
        False,
        [],
        {"when": datetime.now(UTC), "id": UUID(int=7), "raw": b"\xff\x00", "deep": [{"a": [1.5]}]},
    ]
    for payload in payloads:
        jobs_app.meta_for("recorder").jobs.record(payload).run_now()
    jobs_app.meta_for("recorder").jobs.record_nothing().run_now()

    arrived = [note["payload"] for note in wait_for(jobs_app, "record", len(payloads))]

    assert len(wait_for(jobs_app, "record_nothing")) == 1
    assert [(type(payload), payload) for payload in arrived] == [
        (type(payload), payload) for payload in payloads
    ]


def test_one_app_installed_twice(jobs_app: PostHogJobs) -> None:
    """Task shape: one task, two installations; each run has the meta of its own app id."""
    jobs_app.meta_for("recorder").jobs.record("first").run_now()
    jobs_app.meta_for("second").jobs.record("second").run_now()

    (first,) = wait_for(jobs_app, "record")
    (second,) = wait_for(jobs_app, "record", app_id="second")

    assert (first["payload"], first["config"]) == ("first", {"greeting": "hello"})
    assert (second["payload"], second["config"]) == ("second", {"greeting": "again"})


def test_capture_runs_the_hooks_of_the_team(jobs_app: PostHogJobs) -> None:
    """Hooks: an event passes process_event, then on_event, of its team's apps alone."""
    jobs_app.capture({"event": "hello", "team_id": 2})
    jobs_app.capture({"event": "drop", "team_id": 2})
    jobs_app.capture({"event": "last", "team_id": 2})

    seen = wait_for(jobs_app, "on_event", 2, app_id="second")

    assert [note["event"]["event"] for note in seen] == ["hello", "last"]
    assert seen[0]["event"]["properties"] == {"seen_by": "second"}
    assert notes(jobs_app, "on_event") == []


def test_on_event_is_retried(jobs_app: PostHogJobs) -> None:
    """Hooks: on_event that raised RetryError runs again after 5 s, with the event as it was."""
    jobs_app.capture({"event": "retry me"})

    (retry,) = poll("the retry", lambda: jobs_app.schedule.list().jobs)
    seen = time.time()
    first, second = wait_for(jobs_app, "on_event", 2)

    assert first["event"] == second["event"]
    assert first["at"] + 5 <= retry.due.timestamp() <= seen + 5.001
    assert retry.due.timestamp() <= second["at"]


def test_retry_error_runs_the_job_again(jobs_app: PostHogJobs) -> None:
    """Failure: a job that raised RetryError runs again after 5 s."""
    jobs_app.meta_for("recorder").jobs.fail_once("x").run_now()

    first, second = wait_for(jobs_app, "fail_once", 2)

    assert 5 <= second["due"].timestamp() - first["at"] < 10, "which is the one after that"
    assert second["due"].timestamp() <= second["at"]


def test_a_failed_job_is_logged_with_its_traceback(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
) -> None:
    """Failure: any other exception ends the job; the log has app id, job, error and traceback.

    Of ours, that shows the task and the call of the job's function.
    """
    jobs_app.meta_for("recorder").jobs.fail({"secret": "hunter2"}).run_now()
    wait_for(jobs_app, "fail")
    celery_setup.worker.assert_log_exists("ValueError: this job fails")

    log = celery_setup.worker.logs()

    assert "Task posthog_jobs.recorder.fail[" in log
    assert 'raise ValueError("this job fails")' in log
    assert log.count(f'File "{Path(posthog_jobs.__file__).parent}/') == 2
    assert "hunter2" not in log


def test_an_unknown_job_inside_of_a_job_fails_it(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
) -> None:
    """Access: a job that triggers one that does not exist fails; it does not wait for its app."""
    jobs_app.meta_for("recorder").jobs.wrong_job().run_now()
    celery_setup.worker.assert_log_exists("exports no job 'no_such_job'")

    assert len(notes(jobs_app, "wrong_job")) == 1
    assert "runs again" not in celery_setup.worker.logs()
