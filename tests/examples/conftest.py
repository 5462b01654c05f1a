"""What the tests of the example apps share: a waiting job that need not wait any longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.broker.schedule import WaitingJob
    from posthog_jobs.celery import PostHogJobs


@pytest.fixture
def run_now(jobs_app: PostHogJobs) -> Callable[[str, str], WaitingJob]:
    """Return a function that finds an app's job in the schedule and runs it now, as an operator."""

    def run(app_id: str, job: str) -> WaitingJob:
        def waiting() -> WaitingJob | None:
            found = jobs_app.schedule.list(app_id=app_id).jobs
            return next((each for each in found if each.job == job), None)

        job_found: WaitingJob = poll(f"{job} of {app_id} waits", waiting)
        assert jobs_app.schedule.run_now(job_found.id).waited
        return job_found

    return run
