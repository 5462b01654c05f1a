"""A job is kept as failed by its own fault alone; whatever else goes wrong, its message stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker.failure import Reason
from tests.nodes import closed_port, poll
from tests.notes import wait_for
from tests.samples.control import RAISED

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs

every_pool = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])


@pytest.fixture
def settings() -> dict[str, Any]:
    return {
        "posthog_jobs_apps": {"control": "tests.samples.control"},
        # a result backend that is away
        "result_backend": f"redis://127.0.0.1:{closed_port()}/0",
        "task_store_errors_even_if_ignored": True,
        "worker_deduplicate_successful_tasks": True,
    }


def in_flight(app: PostHogJobs) -> list[bytes]:
    with app.connection_for_read() as connection:
        keys: list[bytes] = connection.default_channel.client.keys("posthog_jobs:inflight:*")
    return keys


@every_pool
def test_what_an_app_raises_is_the_apps(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Failure: Celery's own exceptions are errors like any other; no backend is asked."""
    jobs = jobs_app.meta_for("control").jobs
    sent = {jobs["raise"](what).run_now().id for what in RAISED}
    sent |= {jobs.raise_in_loop(what).run_now().id for what in RAISED}
    jobs.retry().run_now()
    for number in range(5):
        jobs.fine(number).run_now()

    poll("all are kept", lambda: jobs_app.failures.count() >= len(sent))

    kept = jobs_app.failures.list(limit=100).jobs
    assert {job.id for job in kept} == sent
    assert {job.reason for job in kept} == {Reason.EXCEPTION}
    assert {job.exception for job in kept} == {"AppControlError", "AppExitError"}
    assert "raised Ignore" in str([job.message for job in kept])
    ran = wait_for(jobs_app, "fine", 5, app_id="control")
    assert {note["payload"] for note in ran} == set(range(5))
    assert len(wait_for(jobs_app, "retry", 2, app_id="control")) == 2
    poll("nothing is in flight", lambda: not in_flight(jobs_app))
    worker = celery_setup.worker.container
    assert worker.status == "running"
    assert "CRITICAL" not in worker.logs()
