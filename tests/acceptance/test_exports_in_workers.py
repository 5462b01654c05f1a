"""Exports by real workers: in batches, apart from each other, and lost by nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.notes import notes, wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.broker.schedule import WaitingJob
    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import WorkerProcess

BY_BYTES = {"exportEventsBufferSeconds": "600", "exportEventsBufferBytes": "1000"}


def install(**config: Any) -> dict[str, Any]:
    return {"module": "tests.samples.exporter", "config": config}


@pytest.fixture
def lease() -> float:
    """Length of the lease, in seconds; for parametrizing."""
    return 60


@pytest.fixture
def settings(settings: dict[str, Any], lease: float) -> dict[str, Any]:
    apps = {
        "raises": install(exportEventsBufferSeconds="1", fails="raise", times=1),
        "exits": install(exportEventsBufferSeconds="1", fails="exit", times=1),
        "retries": install(exportEventsBufferSeconds=1, fails="retry", times=1),
        "by_seconds": install(exportEventsBufferSeconds="1"),
        "by_bytes": install(**BY_BYTES),
        "unready": install(exportEventsBufferSeconds="600", fails="retry", stops_at=300),
        "blocks": install(exportEventsBufferSeconds="600", fails="block"),
    }
    return {
        **settings,
        "posthog_jobs_apps": apps,
        "broker_transport_options": {"visibility_timeout": lease},
    }


def capture(app: PostHogJobs, *numbers: int) -> None:
    for number in numbers:
        app.capture({"event": "sign up", "properties": {"number": number}})


def exported(app: PostHogJobs, app_id: str) -> list[int]:
    return sorted(number for note in notes(app, "export", app_id) for number in note["numbers"])


def wait_for_all(app: PostHogJobs, app_id: str, count: int) -> None:
    def everything() -> bool:
        return set(exported(app, app_id)) == set(range(count))

    poll(f"all are exported by {app_id}", everything)


def wait_for_second_attempt(app: PostHogJobs, app_id: str) -> None:
    """Wait until the batch whose first export failed is exported as it was."""
    failed = next(note for note in notes(app, "export", app_id) if note["attempt"] == 1)

    def again() -> bool:
        batches = [note["numbers"] for note in notes(app, "export", app_id)]
        return batches.count(failed["numbers"]) == 2

    poll(f"the same batch of {app_id}", again)


def wait_for_failure(app: PostHogJobs, app_id: str) -> str:
    (failed,) = poll("the failed batch", lambda: app.failures.list(app_id=app_id).jobs)
    assert failed.job == "posthog_jobs.export_events"
    task_id: str = failed.id
    return task_id


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_exported(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str) -> None:
    """Exports: batches by seconds and by bytes, retried; one app's fault is no other's; SIGTERM."""
    jobs_app.apps.install("tests.samples.exporter", id="changes", config=BY_BYTES)
    capture(jobs_app, *range(10, 30))

    # the batch that raised RetryError waits for six seconds as a job does, whole
    def waiting() -> list[WaitingJob]:
        found = jobs_app.schedule.list(app_id="retries").jobs
        return [job for job in found if job.job == "posthog_jobs.export_events"]

    (retry,) = poll("the retry waits", waiting)
    jobs_app.schedule.run_now(retry.id)
    wait_for_second_attempt(jobs_app, "retries")

    poll("all of it", lambda: exported(jobs_app, "by_seconds") == list(range(10, 30)))
    batches = wait_for(jobs_app, "export", app_id="by_bytes")
    assert all(len(note["numbers"]) > 5 for note in batches)

    # those that raised something else are kept as failed, with their events
    for app_id in ("raises", "exits"):
        jobs_app.failures.replay(wait_for_failure(jobs_app, app_id))
        wait_for_second_attempt(jobs_app, app_id)

    # an app that is changed exports first what it has
    wait_for(jobs_app, "export", app_id="changes")
    assert len(exported(jobs_app, "changes")) < 20
    jobs_app.apps.configure("changes", {"exportEventsBufferSeconds": "500"})
    poll("the rest", lambda: exported(jobs_app, "changes") == list(range(10, 30)))

    assert len(exported(jobs_app, "by_bytes")) < 20
    assert notes(jobs_app, "export", "unready") == []
    celery_setup.worker.kill("SIGTERM")
    poll("the end", lambda: celery_setup.worker.container.status == "exited")
    assert exported(jobs_app, "by_bytes") == list(range(10, 30))
    assert exported(jobs_app, "unready") == list(range(10, 30))
    assert jobs_app.meta_for("blocks").cache.get("blocks")
    # what was not exported is sent, or stays in its buffer with its flush
    waiting_jobs = {job.job for job in jobs_app.schedule.list(app_id="unready").jobs}
    assert "posthog_jobs.export_events" in waiting_jobs
    waiting_jobs = {job.job for job in jobs_app.schedule.list(app_id="blocks").jobs}
    assert waiting_jobs == {"posthog_jobs.flush_export"}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
@pytest.mark.parametrize("lease", [3])
def test_killed(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    start_worker: Callable[[], WorkerProcess],
    pool: str,
) -> None:
    """Exports: a worker killed with SIGKILL amid 500 captured events loses none of them."""
    capture(jobs_app, *range(500))
    redis, keys = jobs_app._broker.connected()
    poll("some are buffered", lambda: redis.llen(keys.export("unready")[0]) > 100)
    celery_setup.worker.kill()
    assert redis.llen(keys.export("unready")[0]) < 500, "it stopped at one of them"

    jobs_app.meta_for("unready").cache.set("go on", 1)
    start_worker()

    for app_id in ("by_seconds", "retries"):
        wait_for_all(jobs_app, app_id, 500)
