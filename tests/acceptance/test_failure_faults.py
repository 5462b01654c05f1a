"""Failed jobs are kept exactly once, whatever dies in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import APPS
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import WorkerProcess

COUNT = 600


@pytest.fixture
def settings() -> dict[str, Any]:
    return {
        "posthog_jobs_apps": {
            **APPS,
            "poison": {"module": "tests.samples.poison", "config": {"stops_at": COUNT // 2}},
        },
        "broker_transport_options": {"visibility_timeout": 2},
    }


def all_kept(app: PostHogJobs, sent: set[str]) -> None:
    """Wait until all are kept, once each, and nothing is left anywhere else."""
    poll("all are kept", lambda: app.failures.count() == len(sent), 100)
    assert {job.id for job in app.failures.list(limit=2 * COUNT).jobs} == sent
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        poll(
            "nothing is queued or in flight",
            lambda: not client.llen("celery") and not client.keys("posthog_jobs:inflight:*"),
        )
        assert client.zcard("posthog_jobs:failed_at") == len(sent)
        assert client.hlen("posthog_jobs:failed_messages") == len(sent)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_killed_between_failure_and_acknowledgement(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    start_worker: Callable[[], WorkerProcess],
    pool: str,
) -> None:
    """Atomic: workers killed while their jobs fail neither lose one nor keep one twice."""
    fail = jobs_app.meta_for("poison").jobs.fail
    sent = {fail(number).run_now().id for number in range(COUNT)}
    poll("some are kept", lambda: jobs_app.failures.count() > COUNT // 6)
    celery_setup.worker.kill()
    assert jobs_app.failures.count() < COUNT, "it stopped at one of them"

    jobs_app.meta_for("poison").cache.set("go on", 1)
    start_worker()

    all_kept(jobs_app, sent)


def test_connections_cut(jobs_app: PostHogJobs) -> None:
    """Redis away: what fails meanwhile is kept when it is back, and is not acknowledged before."""
    jobs_app.meta_for("poison").cache.set("go on", 1)
    fail = jobs_app.meta_for("poison").jobs.fail
    sent = {fail(number).run_now().id for number in range(COUNT)}
    with jobs_app.connection_for_write() as connection:
        client = connection.default_channel.client
        for goal in range(COUNT // 6, COUNT, COUNT // 6):
            poll("more are kept", lambda goal=goal: jobs_app.failures.count() >= goal)
            client.client_kill_filter(_type="normal", skipme=True)

    all_kept(jobs_app, sent)
