"""Failed jobs of RabbitMQ: kept on the Redis beside it, and replayed from there."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker.failure import Reason
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    BrokerUnavailableError,
    PostHogJobsError,
    ReplayError,
    UnsupportedByBrokerError,
)
from tests.notes import notes, wait_for
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.broker.failure import FailedJob
    from tests.servers.nodes import RedisProcess

every_pool = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])

PAYLOAD = {"url": "https://x/?a=b", "name": "ä"}


@pytest.fixture
def celery_broker(celery_rabbitmq_broker: Any) -> Any:
    return celery_rabbitmq_broker


@pytest.fixture
def redis_url(default_redis_broker: RedisProcess) -> str | None:
    return default_redis_broker.url


@pytest.fixture
def settings(redis_url: str | None) -> dict[str, Any]:
    return {
        "posthog_jobs_apps": {"poison": "tests.samples.poison"},
        "posthog_jobs_redis_url": redis_url,
        "posthog_jobs_max_deliveries": 2,
        "task_default_queue": uuid.uuid4().hex,
        "worker_lost_wait": 0.1,
    }


def failed(app: PostHogJobs, count: int) -> dict[str, FailedJob]:
    """Return what failed, by id, as soon as there are so many."""

    def enough() -> tuple[FailedJob, ...] | None:
        jobs = app.failures.list().jobs
        return jobs if len(jobs) == count else None

    return {job.id: job for job in poll(f"{count} failed jobs", enough)}


@every_pool
def test_what_fails_is_kept_and_replayed(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Failed jobs: with payload and reason, due now or later; replayed byte for byte, once."""
    jobs, failures = jobs_app.meta_for("poison").jobs, jobs_app.failures
    now, later = jobs.fail(PAYLOAD).run_now(), jobs.fail(PAYLOAD).run_in(1, "second")

    kept = failed(jobs_app, 2)

    assert kept.keys() == {now.id, later.id}
    for task_id in kept:
        job = failures.get(task_id)
        assert job is not None
        assert (job.app_id, job.job) == ("poison", "posthog_jobs.poison.fail")
        assert (job.reason, job.exception, job.attempts) == (Reason.EXCEPTION, "ValueError", 1)
        assert job.queue == jobs_app.conf.task_default_queue
        assert "in fail" in job.traceback
        assert job.body is not None
        assert json.loads(job.body)[0] == ["poison", PAYLOAD]

    again = failures.replay(now.id)

    kept = failed(jobs_app, 2)
    assert kept.keys() == {again, later.id}
    assert kept[again].replay_of == now.id
    (history,) = failures.list(replayed=True).jobs
    assert (history.id, history.replayed_as) == (now.id, again)
    one, other = failures.get(now.id), failures.get(again)
    assert one is not None
    assert other is not None
    assert one.body == other.body
    with pytest.raises(ReplayError, match=f"was replayed already, as {again}"):
        failures.replay(now.id)
    assert failures.discard_all(app_id="poison") == 2
    assert len(notes(jobs_app, "fail", "poison")) == 3
    assert "kept in this log alone" not in celery_setup.worker.logs()


def test_what_cannot_be_run_is_kept(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup) -> None:
    """Poison: what is no JSON, of nobody's task, or of a wrong shape is kept as it was."""
    queue = jobs_app.amqp.queues[jobs_app.conf.task_default_queue]
    name = "posthog_jobs.poison.fine"
    sent = {
        "no-json": (name, b"{", {}),
        "nobodys": ("os.system", b"[[], {}, {}]", {}),
        "wrong": (name, b"[[], {}, {}]", {}),
        "inflated": (name, b"no gzip", {"compression": "application/x-gzip"}),
    }
    with jobs_app.producer_or_acquire() as producer:
        for task_id, (task, body, headers) in sent.items():
            producer.publish(
                body,
                exchange=queue.exchange,
                routing_key=queue.routing_key,
                declare=[queue],
                headers={"task": task, "id": task_id, "lang": "py", **headers},
                content_type="application/json",
                content_encoding="utf-8",
            )
    jobs_app.meta_for("poison").jobs.fine(1).run_now()

    wait_for(jobs_app, "fine", app_id="poison")
    kept = failed(jobs_app, len(sent))

    reasons = {task_id: job.reason for task_id, job in kept.items()}
    assert reasons == {**dict.fromkeys(sent, Reason.UNDECODABLE), "nobodys": Reason.UNKNOWN_JOB}
    for task_id, (_, body, headers) in sent.items():
        job = jobs_app.failures.get(task_id)
        assert job is not None
        assert job.envelope is not None
        assert headers.items() <= job.envelope["headers"].items()
        if not headers:
            assert job.body == body


@pytest.mark.parametrize("pool", ["prefork"])
def test_a_job_that_ends_its_process(jobs_app: PostHogJobs, pool: str) -> None:
    """Poison: delivered again as often as the setting says, then kept; the count goes with it."""
    jobs_app.meta_for("poison").jobs.die("kill").run_now()

    (job,) = failed(jobs_app, 1).values()

    assert job.reason is Reason.WORKER_LOST
    assert len(notes(jobs_app, "die", "poison")) == 3
    client, keys = jobs_app.server.connected()
    assert client.keys(f"{keys.prefix}deliveries:*") == []


def test_deliveries_are_forgotten_when_a_job_has_run(jobs_app: PostHogJobs) -> None:
    """Poison: what is delivered again and runs to its end leaves no count."""
    client, keys = jobs_app.server.connected()

    end = jobs_app.deliveries.start("task", "id")

    assert end is not None
    assert client.get(keys.deliveries("id")) == b"1"
    end()
    assert client.get(keys.deliveries("id")) is None


def test_two_that_replay_at_once(jobs_app: PostHogJobs) -> None:
    """Replay: however many ask for it, one of them sends the job again."""
    sent = jobs_app.meta_for("poison").jobs.fail(1).run_now()
    failed(jobs_app, 1)

    def replay(_: int) -> str | None:
        try:
            return jobs_app.failures.replay(sent.id)
        except ReplayError:
            return None

    with ThreadPoolExecutor(4) as pool:
        (again,) = filter(None, pool.map(replay, range(4)))

    assert failed(jobs_app, 1).keys() == {again}
    assert len(notes(jobs_app, "fail", "poison")) == 2


def test_a_replay_that_rabbitmq_does_not_take(
    jobs_app: PostHogJobs, settings: dict[str, Any]
) -> None:
    """Bad input: with RabbitMQ away a replay raises an error, and the job stays open."""
    sent = jobs_app.meta_for("poison").jobs.fail(1).run_now()
    failed(jobs_app, 1)
    away = {"broker_url": f"amqp://127.0.0.1:{closed_port()}//", "posthog_jobs_enqueue_timeout": 1}
    producer = PostHogJobs(config_source={**settings, **away})

    with pytest.raises(BrokerUnavailableError, match="refused"):
        producer.failures.replay(sent.id)

    assert failed(jobs_app, 1).keys() == {sent.id}
    assert jobs_app.failures.list(replayed=True).jobs == ()


def test_redis_away(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, default_redis_broker: RedisProcess
) -> None:
    """Failed jobs: while the Redis beside is away they are in the log alone, which says so."""
    jobs = jobs_app.meta_for("poison").jobs
    default_redis_broker.kill()

    jobs.interrupt().run_now()

    celery_setup.worker.assert_log_exists("(exception), and is kept in this log alone: ")
    with pytest.raises(PostHogJobsError):
        jobs_app.failures.count()


class TestWithoutRedis:
    """RabbitMQ alone."""

    @pytest.fixture
    def redis_url(self) -> None:
        return None

    def test_the_log_says_so(self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup) -> None:
        """Failed jobs: they are in the log alone, and what lists them says what is needed."""
        jobs_app.meta_for("poison").jobs.interrupt().run_now()

        celery_setup.worker.assert_log_exists("(exception), and is kept in this log alone: ")
        with pytest.raises(UnsupportedByBrokerError, match="set posthog_jobs_redis_url"):
            jobs_app.failures.count()
        assert "failed jobs" not in {finding.check for finding in jobs_app.doctor(timeout=1)}
