"""Jobs survive what kills the process that runs them; hooks see the end of one that stops."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.notes import notes, wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import WorkerProcess

LEASE = 3  # seconds


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "broker_transport_options": {"visibility_timeout": LEASE}}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_killed_in_the_middle_of_a_job_it_runs_in_another_worker(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    start_worker: Callable[[], WorkerProcess],
    pool: str,
) -> None:
    """Delivery: a job whose worker is killed with SIGKILL runs again in another worker."""
    jobs_app.meta_for("recorder").jobs.hold(1).run_now()
    wait_for(jobs_app, "hold started")
    celery_setup.worker.kill()
    assert notes(jobs_app, "hold ended") == []

    jobs_app.meta_for("recorder").cache.set("let go", 1)
    start_worker()

    wait_for(jobs_app, "hold ended")
    assert len(notes(jobs_app, "hold started")) == 2


@pytest.mark.parametrize("pool", ["prefork"])
def test_a_killed_pool_process_does_not_lose_its_job(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Delivery: a job whose pool process is killed runs again in the same worker."""
    jobs_app.meta_for("recorder").jobs.hold(1).run_now()
    (started,) = wait_for(jobs_app, "hold started")
    assert started["pid"] != celery_setup.worker.container.pid
    os.kill(started["pid"], signal.SIGKILL)

    jobs_app.meta_for("recorder").cache.set("let go", 1)
    wait_for(jobs_app, "hold ended")

    assert len(notes(jobs_app, "hold started")) == 2


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_worker_that_stops_ends_its_job_and_tears_down(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Hooks: setup_plugin once per process, teardown_plugin when it stops; jobs end before."""
    jobs_app.meta_for("recorder").jobs.hold(1).run_now()
    (started,) = wait_for(jobs_app, "hold started")

    celery_setup.worker.kill("SIGTERM")
    celery_setup.worker.assert_log_exists("Warm shutdown")
    jobs_app.meta_for("recorder").cache.set("let go", 1)

    poll("the end", lambda: celery_setup.worker.container.status == "exited")
    assert len(notes(jobs_app, "hold ended")) == 1
    (set_up,) = [note for note in notes(jobs_app, "setup_plugin") if note["pid"] == started["pid"]]
    (torn_down,) = notes(jobs_app, "teardown_plugin")
    assert torn_down["pid"] == set_up["pid"]
    assert torn_down["at"] > notes(jobs_app, "hold ended")[0]["at"]


class TestMetAfterTheFork:
    """Jobs that a worker meets after its pool was made."""

    @pytest.fixture
    def default_worker_command(self, default_worker_command: list[str]) -> list[str]:
        return [word.replace("posthog_jobs", "tests.late") for word in default_worker_command]

    @pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
    def test_they_run(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
    ) -> None:
        """Task shape: resolved on first sight, in the parent and in the pool's processes."""
        assert "posthog_jobs.recorder.record" not in celery_setup.worker.logs()

        jobs_app.meta_for("recorder").jobs.record(1).run_now()

        assert wait_for(jobs_app, "record")[0]["payload"] == 1
        assert "unregistered" not in celery_setup.worker.logs()
