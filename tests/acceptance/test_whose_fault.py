"""A job is kept as failed by its own fault alone; whatever else goes wrong, its message stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pytest_docker_tools.exceptions import ContainerFailed

from posthog_jobs.broker.failure import Reason
from tests.notes import notes, wait_for
from tests.samples.control import RAISED
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess, WorkerProcess

every_pool = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])


@pytest.fixture
def settings() -> dict[str, Any]:
    return {
        "posthog_jobs_apps": {"control": "tests.samples.control"},
        # a result backend that is away
        "result_backend": f"redis://127.0.0.1:{closed_port()}/0",
        "task_store_errors_even_if_ignored": True,
        "worker_deduplicate_successful_tasks": True,
        "worker_soft_shutdown_timeout": 0.1,
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
    jobs.shallow().run_now()
    for number in range(5):
        jobs.fine(number).run_now()

    poll("all are kept", lambda: jobs_app.failures.count() >= len(sent))

    kept = jobs_app.failures.list(limit=100).jobs
    assert {job.id for job in kept} == sent
    assert {job.reason for job in kept} == {Reason.EXCEPTION}
    assert {job.exception for job in kept} == {"AppRaisedError"}
    assert "raised Ignore" in str([job.message for job in kept])
    ran = wait_for(jobs_app, "fine", 5, app_id="control")
    assert {note["payload"] for note in ran} == set(range(5))
    assert len(wait_for(jobs_app, "retry", 2, app_id="control")) == 2
    poll("nothing is in flight", lambda: not in_flight(jobs_app))
    worker = celery_setup.worker.container
    assert worker.status == "running"
    assert "CRITICAL" not in worker.logs()


@pytest.mark.parametrize(
    ("pool", "signals"),
    [
        ("prefork", ["SIGQUIT"]),
        ("threads", ["SIGQUIT"]),
        ("solo", ["SIGQUIT"]),
        ("solo", ["SIGINT", "SIGINT"]),
    ],
)
def test_what_runs_when_a_worker_is_to_end_at_once(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    start_worker: Callable[[], WorkerProcess],
    signals: list[str],
) -> None:
    """Delivery: SIGQUIT, or Ctrl-C twice, after a soft shutdown: the job runs again elsewhere."""
    jobs_app.meta_for("control").jobs.hold(None).run_now()
    wait_for(jobs_app, "hold started", app_id="control")
    worker = celery_setup.worker.container
    for number, signal in enumerate(signals):
        worker.kill(signal)
        poll("it has heard", lambda n=number: worker.logs().count("Hitting Ctrl+C again") > n)

    poll("the end", lambda: worker.status == "exited", 20)
    assert "CRITICAL" not in worker.logs()
    assert "Traceback" not in worker.logs()
    start_worker()

    wait_for(jobs_app, "hold started", 2, app_id="control", timeout=20)
    jobs_app.meta_for("control").cache.set("let go", 1)
    wait_for(jobs_app, "hold ended", app_id="control")
    poll("nothing is in flight", lambda: not in_flight(jobs_app))
    assert jobs_app.failures.count() == 0


@pytest.mark.parametrize("pool", ["threads"])
def test_threads_run_out(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str) -> None:
    """Delivery: a worker whose pool fails ends with that, and all its jobs run in the next one."""
    jobs = jobs_app.meta_for("control").jobs
    jobs.hold("no thread can be started").run_now()
    wait_for(jobs_app, "hold started", app_id="control")
    for number in range(5):
        jobs.fine(number).run_now()
    worker = celery_setup.worker.container

    poll("it gives up", lambda: "can't start new thread" in worker.logs())
    jobs_app.meta_for("control").cache.set("let go", 1)
    poll("the end", lambda: worker.status == "exited")
    worker.start()

    ran = wait_for(jobs_app, "fine", 5, app_id="control")
    assert {note["payload"] for note in ran} == set(range(5))
    poll("nothing is in flight", lambda: not in_flight(jobs_app))
    assert len(notes(jobs_app, "hold started", "control")) == 1
    assert jobs_app.failures.count() == 0


@pytest.mark.parametrize("pool", ["solo"])
def test_no_thread_is_left_for_the_loop(jobs_app: PostHogJobs, pool: str) -> None:
    """Failure: an async job whose process cannot run it is run again later, and is not failed."""
    meta = jobs_app.meta_for("control")
    meta.jobs.stacks(1 << 46).run_now()
    sent = meta.jobs.fine_in_loop().run_now()
    poll("it waits", lambda: [job.id for job in jobs_app.schedule.list().jobs] == [sent.id])
    assert jobs_app.failures.count() == 0

    meta.jobs.stacks(0).run_now()
    jobs_app.schedule.run_now(sent.id)

    poll("it runs", lambda: meta.cache.get("ran in loop"))


@pytest.mark.parametrize("pool", ["threads"])
def test_a_job_that_is_terminated_before_it_begins(jobs_app: PostHogJobs, pool: str) -> None:
    """Revoke: in a pool that cannot end a job, one that waits in it does not run, and is gone."""
    jobs = jobs_app.meta_for("control").jobs
    for _ in range(2):  # as many as there are threads
        jobs.hold(None).run_now()
    wait_for(jobs_app, "hold started", 2, app_id="control")
    revoked = jobs.fine("revoked").run_now()
    inspect = jobs_app.control.inspect(timeout=1)
    poll("the pool has it", lambda: revoked.id in str(inspect.reserved()))

    jobs_app.control.revoke(revoked.id, terminate=True)
    poll("the worker has heard", lambda: revoked.id in str(inspect.revoked()))
    jobs_app.meta_for("control").cache.set("let go", 1)

    poll("nothing is in flight", lambda: not in_flight(jobs_app), 20)
    assert notes(jobs_app, "fine", "control") == []
    assert jobs_app.failures.count() == 0


class TestAutoscale:
    """A pool that cannot be scaled."""

    @pytest.fixture
    def default_worker_command(self, default_worker_command: list[str]) -> list[str]:
        return [*default_worker_command, "--autoscale=4,1"]

    def test_it_is_refused(
        self, default_redis_broker: RedisProcess, start_worker: Callable[[], WorkerProcess]
    ) -> None:
        """Bad input: a worker that would fail at its first job says so when it starts."""
        with pytest.raises(ContainerFailed, match=r"--autoscale .* use -P prefork"):
            start_worker()
