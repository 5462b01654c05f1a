"""A worker that stops or is cut off either runs what its pool was handed, or puts it back."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.notes import notes, wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess


@pytest.mark.parametrize("pool", ["prefork"])
def test_a_job_that_a_child_was_handed_and_has_not_confirmed(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """It runs before the worker ends, which takes no 30 s, and is not put back as well."""
    worker = celery_setup.worker.container
    children = [child.pid for child in psutil.Process(worker.pid).children()]
    for child in children:
        os.kill(child, signal.SIGSTOP)
    jobs_app.meta_for("recorder").jobs.record("handed over").run_now()
    inspect = jobs_app.control.inspect(timeout=1)
    poll("the worker has it", lambda: any((inspect.reserved() or {}).values()))

    worker.kill("SIGTERM")
    poll("it shuts down", lambda: "Warm shutdown" in worker.logs())
    told = time.monotonic()
    poll("it asks for what is under way", lambda: time.monotonic() > told + 0.4)
    for child in children:
        os.kill(child, signal.SIGCONT)
    poll("it has ended", lambda: worker.status == "exited", 60)

    assert time.monotonic() - told < 30
    ran = [note["payload"] for note in notes(jobs_app, "record")]
    with jobs_app.connection_for_read() as connection:
        client = connection.default_channel.client
        # in its queue only if the worker was told to end before it had handed the job over
        assert len(ran) + client.llen("celery") == 1
        assert not client.keys("posthog_jobs:inflight:*")


@pytest.mark.parametrize("pool", ["threads"])
def test_what_no_thread_has_begun_when_the_connection_is_lost(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """It runs once, after the worker has connected again."""
    jobs = jobs_app.meta_for("recorder").jobs
    for _ in range(2):  # as many as there are threads
        jobs.hold(1).run_now()
    wait_for(jobs_app, "hold started", 2)
    for number in range(4):
        jobs.record(number).run_now()
    with jobs_app.connection_for_read() as connection:
        client = connection.default_channel.client
        poll("the worker has them", lambda: client.llen("celery") == 0)

    with jobs_app.connection_for_read() as connection:
        client = connection.default_channel.client
        client.client_kill_filter(_type="normal", skipme=True)
        connected = "Connected to redis"
        poll("it connects", lambda: celery_setup.worker.logs().count(connected) == 2)
        jobs_app.meta_for("recorder").cache.set("let go", 1)
        wait_for(jobs_app, "record", 4)
        poll("nothing is left", lambda: not client.keys("posthog_jobs:inflight:*"))
        assert not client.exists("celery")

    assert sorted(note["payload"] for note in notes(jobs_app, "record")) == [0, 1, 2, 3]
    assert len(notes(jobs_app, "hold started")) == 2


class TestCutOff:
    """Workers whose apps keep what they do on another server than the broker."""

    @pytest.fixture
    def settings(self, settings: dict[str, Any], idle_server: RedisProcess) -> dict[str, Any]:
        return {**settings, "posthog_jobs_redis_url": idle_server.url}

    @pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
    def test_again_and_again(
        self,
        jobs_app: PostHogJobs,
        celery_setup: CeleryTestSetup,
        default_redis_broker: RedisProcess,
        pool: str,
    ) -> None:
        """Whatever a worker does when it is cut off from its broker, each job runs once."""
        jobs, count, cuts = jobs_app.meta_for("recorder").jobs, 150, 4
        for _ in range(count):
            jobs.slow({"seconds": 0.005}).run_now()
        client = default_redis_broker.client
        assert client is not None
        for cut in range(cuts):
            wait_for(jobs_app, "slow ended", 10 + cut * count // cuts)
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

        wait_for(jobs_app, "slow ended", count)
        poll("nothing is left", lambda: not client.keys("posthog_jobs:inflight:*"))

        assert not client.exists("celery")
        assert len(notes(jobs_app, "slow ended")) == count
        assert len(notes(jobs_app, "slow started")) == count
