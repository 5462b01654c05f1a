"""Exports and ticks with RabbitMQ as the broker, and a Redis beside it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import BrokerUnavailableError
from posthog_jobs.hooks.ticks import PERIODS, Tick, boundary_after, boundary_before
from tests.acceptance.test_ticks import quiet_moment
from tests.notes import notes, wait_for
from tests.pace import Pace
from tests.servers.nodes import HOST, closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from tests.servers.nodes import RedisProcess

EXPORTER = "tests.samples.exporter"
TICKING = "tests.samples.ticking"


@pytest.fixture
def celery_broker(celery_rabbitmq_broker: Any) -> Any:
    return celery_rabbitmq_broker


@pytest.fixture
def apps() -> dict[str, Any]:
    return {
        "by_seconds": {"module": EXPORTER, "config": {"exportEventsBufferSeconds": "1"}},
        "retries": {
            "module": EXPORTER,
            "config": {"exportEventsBufferSeconds": "1", "fails": "retry", "times": 1},
        },
        "raises": {
            "module": EXPORTER,
            "config": {"exportEventsBufferSeconds": "1", "fails": "raise", "times": 1},
        },
        "late": {"module": EXPORTER, "config": {"exportEventsBufferSeconds": "600"}},
    }


@pytest.fixture
def redis_url(default_redis_broker: RedisProcess) -> str | None:
    return default_redis_broker.url


@pytest.fixture
def settings(apps: dict[str, Any], redis_url: str | None) -> dict[str, Any]:
    return {
        "posthog_jobs_apps": apps,
        "posthog_jobs_redis_url": redis_url,
        "task_default_queue": uuid.uuid4().hex,
    }


def exported(app: PostHogJobs, app_id: str) -> list[int]:
    return sorted(number for note in notes(app, "export", app_id) for number in note["numbers"])


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_exports(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str) -> None:
    """Exports: in batches, retried, flushed at the end; one app's fault is no other's."""
    for number in range(20):
        jobs_app.capture({"event": "sign up", "properties": {"number": number}})

    poll("all of it", lambda: exported(jobs_app, "by_seconds") == list(range(20)))
    assert len(notes(jobs_app, "export", "by_seconds")) < 20, "in batches"
    poll("the retry", lambda: set(exported(jobs_app, "retries")) == set(range(20)))
    worker = celery_setup.worker
    poll("the failed batch", lambda: jobs_app.failures.count(app_id="raises") == 1)
    assert exported(jobs_app, "late") == []

    worker.kill("SIGTERM")
    poll("the end", lambda: worker.container.status == "exited")
    assert exported(jobs_app, "late") == list(range(20))


class TestTicks:
    """run_every_minute, run_every_hour, run_every_day."""

    @pytest.fixture
    def apps(self) -> dict[str, Any]:
        return {"ticking": TICKING}

    @pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
    def test_two_workers(
        self,
        jobs_app: PostHogJobs,
        celery_setup: CeleryTestSetup,
        start_worker: Callable[[], Any],
        pool: str,
    ) -> None:
        """Of two workers one sends the next tick, and each tick runs once, however late."""
        start_worker()
        quiet_moment(jobs_app)
        redis, keys = jobs_app.server.connected()
        poll("the ticks are claimed", lambda: len(redis.keys(f"{keys.prefix}tick_claim:*")) >= 3)
        now = jobs_app.ticks.ledger.now()
        tomorrow = boundary_after("run_every_day", now)
        tick = Tick(app_id="ticking", hook="run_every_day", boundary=tomorrow)
        assert not jobs_app.ticks.ledger.claim(tick, now)
        for hook in PERIODS:
            for before in (2, 0, 0):  # the first one waited for a worker
                boundary = boundary_before(hook, now) - before * PERIODS[hook]
                tick = Tick(app_id="ticking", hook=hook, boundary=boundary)
                jobs_app.tasks[f"posthog_jobs.{hook}"].send(tick)
        jobs_app.meta_for("ticking").jobs.alive().run_now()

        for what in ("minute", "hour", "day"):
            wait_for(jobs_app, f"{what} ended", app_id="ticking")
        wait_for(jobs_app, "alive", app_id="ticking")

        queue = jobs_app.conf.task_default_queue
        poll("the queue is empty", lambda: messages(jobs_app, queue) == 0)
        for what in ("hour", "day"):
            assert len(notes(jobs_app, what, "ticking")) == 1
        # a real minute may have begun
        assert 1 <= len(notes(jobs_app, "minute", "ticking")) <= 2

    def test_a_tick_that_cannot_be_sent(self, redis_url: str, settings: dict[str, Any]) -> None:
        """A claim is given up where the broker does not take the tick, so that another can send."""
        url = f"amqp://{HOST}:{closed_port()}//"
        app = PostHogJobs(
            config_source={**settings, "broker_url": url, "posthog_jobs_enqueue_timeout": 0.2}
        )

        for _ in range(2):
            with pytest.raises(BrokerUnavailableError):
                app.ticks.see_to_all()
        redis, keys = app.server.connected()
        assert redis.keys(f"{keys.prefix}tick_claim:*") == []

    @pytest.mark.parametrize("apps", [{}])
    def test_uninstalled(self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup) -> None:
        """A tick that is under way when its app is uninstalled runs nothing."""
        jobs_app.apps.install(TICKING, id="new")
        redis, keys = jobs_app.server.connected()
        poll("the ticks", lambda: len(redis.keys(f"{keys.prefix}tick_claim:new:*")) >= 3)
        registered = jobs_app.control.inspect(timeout=1).registered
        poll("the app", lambda: "ticking" in str(registered()))
        jobs_app.apps.uninstall("new")
        poll("the app is gone", lambda: "ticking" not in str(registered() or "ticking"))

        boundary = boundary_before("run_every_hour", jobs_app.ticks.ledger.now())
        tick = Tick(app_id="new", hook="run_every_hour", boundary=boundary)
        jobs_app.tasks["posthog_jobs.run_every_hour"].send(tick)

        celery_setup.worker.assert_log_exists("run_every_hour of app id 'new' ends: ")
        assert jobs_app.ticks.ledger.last("new", "run_every_hour") is None

    @pytest.mark.soak
    @pytest.mark.timeout(300)
    def test_real_minutes(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, start_worker: Callable[[], Any]
    ) -> None:
        """On the minute in UTC, up to a second late, one run each, with two workers."""
        start_worker()

        with Pace() as pace:
            ran = wait_for(jobs_app, "minute", 2, app_id="ticking", timeout=140)
            assert all(note["at"] % 60 < pace.allow(3) for note in ran)

        first, second = (int(note["at"]) // 60 for note in ran)
        assert second == first + 1


class TestWithoutRedis:
    """RabbitMQ alone."""

    @pytest.fixture
    def redis_url(self) -> None:
        return None

    @pytest.fixture
    def apps(self) -> dict[str, Any]:
        return {"sink": "tests.samples.teller", "exports": EXPORTER, "ticking": TICKING}

    def test_the_worker_says_so(self, celery_setup: CeleryTestSetup) -> None:
        """At its start a worker names what does not work, and the setting that makes it work."""
        for text in (
            "No run_every_… runs: ",
            "Each event is exported by itself: ",
        ):
            celery_setup.worker.assert_log_exists(text)
        (ticks,) = (line for line in celery_setup.worker.logs().splitlines() if "No run_" in line)
        assert "set posthog_jobs_redis_url" in ticks

    @pytest.mark.parametrize("apps", [{"sink": "tests.samples.teller"}])
    def test_where_no_app_needs_it(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
    ) -> None:
        """A worker whose apps have no such hook says nothing of it."""
        celery_setup.worker.assert_log_exists("ready.")
        poll("it answers", lambda: jobs_app.control.ping(timeout=1))
        assert "posthog_jobs_redis_url" not in celery_setup.worker.logs()


def messages(app: PostHogJobs, queue: str) -> int:
    with app.connection_for_read() as connection:
        found: int = connection.default_channel.queue_declare(queue, passive=True).message_count
        return found
