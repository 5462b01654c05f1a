"""Ten thousand messages that are wrong in some way: the worker stays up, and none is lost."""

from __future__ import annotations

import json
import re
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.mutations import mutated
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import WorkerProcess

#: What a worker's log says of a message that it is done with, a line each.
DONE = {
    "raised": r"Task \S+\[\S+\] (?:raised|INTERNAL ERROR)",
    "revoked": r"Discarding revoked task: ",
    "refused": r"A message that cannot be (?:run|read) is kept as failed, under the id \S+:",
    "ended": r"Task \S+ ran, and its end failed",
    "timed out": r"(?:Hard|Soft) time limit \(",
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {
        "posthog_jobs_apps": {"sink": "tests.samples.sink", "sink2": "tests.samples.sink"},
        "worker_prefetch_multiplier": 50,
    }


def places(app: PostHogJobs, worker: WorkerProcess) -> dict[str, int]:
    """Return what became of the messages → of how many, by the worker's log and the schedule."""
    log = worker.logs()
    found = {what: len(re.findall(f"(?m)^\\[.*{line}", log)) for what, line in DONE.items()}
    # a job with a `shadow` has Celery's line, too
    ends = re.findall(r"(?m)^\[.* id=(\S+) attempt=.* result=succeeded$", log)
    ids = {json.loads(word) if word.startswith('"') else word for word in ends}
    plain = re.findall(r"(?m)^\[.*Task \S+\[(\S+)\] succeeded in ", log)
    found["succeeded"] = len(ends) + sum(task_id not in ids for task_id in plain)
    return {**found, "waiting": app.schedule.count()}


def feed(app: PostHogJobs, worker: WorkerProcess, count: int, seed: int = 1) -> None:
    random = Random(seed)
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        for _ in range(count // 100):
            client.lpush("celery", *(mutated(random) for _ in range(100)))

        def is_done() -> bool:
            assert worker.status == "running", worker.logs()[-5000:]
            held = client.keys("posthog_jobs:inflight:*")
            return not client.llen("celery") and not any(client.hlen(key) for key in held)

        poll("all messages are dealt with", is_done, 240)
        elsewhere = [
            key for key in client.keys("*")
            if not key.startswith((b"posthog_jobs:", b"_kombu.binding", b"celery"))
        ]  # fmt: skip
        assert elsewhere == [], "a message made the worker publish elsewhere"
    # what waits for its app is between its queue and the schedule now and then
    poll("each is in one place", lambda: sum(places(app, worker).values()) == count)
    log, done = worker.logs(), places(app, worker)
    # it is the consumer that the worker began with, and no line of its log is forged
    assert log.count(" ready.") == 1
    assert "consumer: Connection to broker lost" not in log
    assert "Unrecoverable error" not in log
    assert "\nTask forged" not in log
    assert "\x1b[2J" not in log
    # what was wrong is kept, and can be listed
    assert app.failures.count() >= done["refused"]
    assert len(app.failures.list(limit=10_000).jobs) == app.failures.count()
    poll("a whole list", lambda: len(app.schedule.list(limit=10_000).jobs) == done["waiting"])
    taken = sum(app.meta_for(app_id).cache.get("taken", 0) for app_id in ("sink", "sink2"))
    assert count / 10 < taken <= done["succeeded"]


def test_a_worker_outlives_mutated_messages(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
) -> None:
    """Each of 10,000 mutated messages is run, waits, or is kept with a line in the log."""
    feed(jobs_app, celery_setup.worker.container, 10_000)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_pools_outlive_mutated_messages(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    pool: str,
) -> None:
    """The same of 1,000 in the pools that hand messages on."""
    feed(jobs_app, celery_setup.worker.container, 1_000, seed=2)


@pytest.mark.soak
@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
@pytest.mark.parametrize("seed", [Random().randrange(3, 2**32) for _ in range(5)])
def test_pools_outlive_other_mutations(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str, seed: int
) -> None:
    """The same with 10,000 others at each run; the test's name has the seed."""
    feed(jobs_app, celery_setup.worker.container, 10_000, seed)
