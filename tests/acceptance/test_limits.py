"""What @job says of a job's retries and time limit, and meta.job, in real workers of every pool."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker.failure import Reason
from posthog_jobs.worker.pools import unlimited_jobs
from tests.notes import notes, wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs

every_pool = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
APP = "limited"


@pytest.fixture
def settings(pool: str) -> dict[str, Any]:
    module = {"module": "tests.samples.limited", "config": {"pool": pool}}
    return {"posthog_jobs_apps": {APP: module, "twin": module}}


@every_pool
def test_retries_and_limits(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """A job knows its attempts, is retried as it says, and ends at its limit where a pool can."""
    jobs = jobs_app.meta_for(APP).jobs
    sent = jobs.flaky("a fruit", key="user-42").run_in(200, "milliseconds")
    returned = datetime.now(UTC)
    now = jobs.too_slow_async().run_now()
    for app_id in (APP, "twin"):
        for number in range(3):
            jobs_app.meta_for(app_id).jobs.side_by_side(number).run_now()

    ran = wait_for(jobs_app, "flaky", 3, app_id=APP)
    assert [note["attempt"] for note in ran] == [1, 2, 3]
    assert {(note["id"], note["max_attempts"], note["key"]) for note in ran} == {
        (sent.id, 3, "user-42")
    }
    assert sent.due <= ran[0]["due"] <= returned + timedelta(milliseconds=201), "rounded up"
    due = [note["due"].timestamp() for note in ran]
    assert all(moment <= note["at"] for moment, note in zip(due, ran, strict=True))
    assert 0.2 <= due[1] - ran[0]["at"] < 5, "which is the usual one"
    assert 0.3 <= due[2] - ran[1]["at"] < 60, "its RetryError said so, and not 60"

    (async_one,) = wait_for(jobs_app, "cancelled", app_id=APP)
    assert (async_one["id"], async_one["due"], async_one["max_attempts"]) == (now.id, None, 6)
    celery_setup.worker.assert_log_exists("ran longer than its time limit of 0.5 s and was")
    for app_id in (APP, "twin"):
        side_by_side = wait_for(jobs_app, "side_by_side", 3, app_id=app_id)
        assert len({note["id"] for note in side_by_side}) == 3

    # last, since the pools that cannot end it go on with it
    jobs.too_slow().run_now()
    jobs_app.capture({"event": "x"})
    assert [note["job"] for note in wait_for(jobs_app, "on_event", app_id=APP)] == [None]
    warning = f"which the pool {pool} cannot keep"
    if pool == "prefork":
        celery_setup.worker.assert_log_exists("Hard time limit (2.5s) exceeded for posthog_jobs")
        jobs_app.meta_for(APP).jobs.side_by_side("after").run_now()
        wait_for(jobs_app, "side_by_side", 4, app_id=APP)
        assert warning not in celery_setup.worker.logs()
        assert "AppRaisedError" not in celery_setup.worker.logs(), "nobody but the pool ended it"
        count = jobs_app.failures.count
        poll("both are kept", lambda: count(app_id=APP, reason=Reason.TIME_LIMIT) == 2)
    else:
        wait_for(jobs_app, "too_slow went on", app_id=APP)
        assert celery_setup.worker.logs().count(warning) == 2, "for too_slow and flaky, each once"
    assert len(notes(jobs_app, "too_slow", APP)) == 1


@pytest.mark.parametrize("pool", ["solo"])
def test_a_retry_is_seen(jobs_app: PostHogJobs, pool: str) -> None:
    """A job that waits for its retry shows its attempt, its error and when it is due next."""
    before = datetime.now(UTC)
    handle = jobs_app.meta_for(APP).jobs.later("a fruit").run_now()

    waiting = poll("it waits for its retry", lambda: jobs_app.schedule.get(handle.id))
    assert waiting.attempt == 2
    assert before < waiting.due - timedelta(hours=1) < datetime.now(UTC) + timedelta(seconds=1)
    assert waiting.last_error == "RetryError: no luck with a fruit"
    assert waiting.key is None


@pytest.mark.parametrize("pool", ["solo"])
def test_jobs_that_a_pool_cannot_limit(idle_app: PostHogJobs, settings: dict[str, Any]) -> None:
    """Time limit: sync jobs are named, once for each app, with the pool and what to do."""
    idle_app.conf.posthog_jobs_apps = settings["posthog_jobs_apps"]
    installations = list(type(idle_app)(config_source=dict(idle_app.conf)).runtime.installations)

    assert unlimited_jobs(installations, "celery.concurrency.prefork") == {}
    warnings = unlimited_jobs(installations, "celery.concurrency.solo")
    assert list(warnings) == ["posthog_jobs.limited.flaky", "posthog_jobs.limited.too_slow"]
    assert warnings["posthog_jobs.limited.too_slow"] == (
        "job 'too_slow' of app 'limited' has time_limit=2.5, which the pool solo cannot keep for a "
        "sync function: it runs on. Make it async, or run the worker with --pool prefork"
    )
