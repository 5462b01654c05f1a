"""Jobs, hooks and delays with RabbitMQ as the broker, on a real server."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from amqp.exceptions import NotFound
from celery import Celery, signals

from posthog_jobs.broker.rabbitmq import DEFAULTS, LONGEST_DELAY
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DelayTooLongError,
    DueError,
)
from posthog_jobs.operate.doctor import Verdict
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.pace import Pace
from tests.servers import rabbitmq_node
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.operate.doctor import Finding
    from tests.servers.nodes import RedisProcess, WorkerProcess
    from tests.servers.rabbitmq_node import RabbitMQProcess

#: How much later than it is due a job may run where nothing else is to be done, in seconds:
#: RabbitMQ waits for the next whole second, and its disk may be busy.
LATE = 1 + 4

two_pools = pytest.mark.parametrize("pool", ["prefork", "solo"])


@pytest.fixture
def celery_broker(celery_rabbitmq_broker: Any) -> Any:
    return celery_rabbitmq_broker


@pytest.fixture
def settings(
    rabbitmq: RabbitMQProcess, settings: dict[str, Any], default_redis_broker: RedisProcess
) -> dict[str, Any]:
    """The tests share the server, so each has queues of its own; notes need a Redis."""
    name = uuid.uuid4().hex
    return {
        **settings,
        "posthog_jobs_redis_url": default_redis_broker.url,
        "task_default_queue": name,
        "task_routes": {"posthog_jobs.recorder.record_nothing": {"queue": f"{name}-routed"}},
    }


@pytest.fixture
def default_worker_command(default_worker_command: list[str], settings: Any) -> list[str]:
    queue = settings["task_default_queue"]
    return [*default_worker_command, "-Q", f"{queue},{queue}-routed"]


@pytest.fixture
def producer(rabbitmq: RabbitMQProcess, settings: dict[str, Any]) -> PostHogJobs:
    """An app for whose queues no worker has ever run."""
    return PostHogJobs(config_source={"broker_url": rabbitmq.url, **settings})


def taken(app: PostHogJobs, queue: str) -> Callable[[], Any]:
    """Return a function that takes a message out of a queue, or gives None."""

    def take() -> Any:
        with app.connection_for_read() as connection:
            return connection.default_channel.basic_get(queue, no_ack=True)

    return take


@two_pools
def test_jobs_run_when_they_are_due(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Delivery: now, in, at and again; each once, never early, at most a second and a bit late."""
    due = {}
    jobs = jobs_app.meta_for("recorder").jobs
    with Pace() as pace:
        jobs.fail_once("x").run_now()
        for seconds in (0.3, 1.5, 2):
            due[f"in {seconds}"] = time.time() + seconds
            jobs.record(f"in {seconds}").run_in(seconds, "seconds")
        moment = datetime.now(UTC) + timedelta(seconds=1.2)
        due["at"] = moment.timestamp()
        jobs.record("at").run_at(moment)
        due["now"] = time.time()
        jobs.record("now").run_now()
        due["routed"] = time.time() + 1
        jobs.record_nothing().run_in(1, "second")
        due["hook"] = time.time() + 1
        properties = {"trigger": "record", "payload": "hook", "how": ["run_in", 1, "second"]}
        jobs_app.capture({"event": "go", "properties": properties})

        first, second = wait_for(jobs_app, "fail_once", 2)
        ran = {note["payload"]: note["at"] for note in wait_for(jobs_app, "record", len(due) - 1)}
        ran["routed"] = wait_for(jobs_app, "record_nothing")[0]["at"]
        most = pace.allow(LATE)

    assert ran.keys() == due.keys()
    assert {name: at for name, at in ran.items() if not 0 <= at - due[name] < most} == {}
    assert 5 <= second["at"] - first["at"] < 5 + most
    assert len(notes(jobs_app, "record")) == len(due) - 1, "each once"
    assert len(notes(jobs_app, "record_nothing")) == 1
    (seen,) = wait_for(jobs_app, "on_event")
    assert seen["event"]["properties"]["seen_by"] == "recorder"
    log = celery_setup.worker.logs()
    assert "ERROR" not in log
    assert "direct exchange" not in log


@two_pools
def test_killed_in_the_middle_of_a_job_it_runs_in_another_worker(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    start_worker: Callable[[], WorkerProcess],
    pool: str,
) -> None:
    """Delivery: a job whose worker is killed with SIGKILL runs again in another worker."""
    jobs_app.meta_for("recorder").jobs.hold(1).run_in(0.1, "seconds")
    wait_for(jobs_app, "hold started")
    celery_setup.worker.kill()
    assert notes(jobs_app, "hold ended") == []

    jobs_app.meta_for("recorder").cache.set("let go", 1)
    start_worker()

    wait_for(jobs_app, "hold ended")
    assert len(notes(jobs_app, "hold started")) == 2


def test_a_delay_comes_before_any_worker(producer: PostHogJobs) -> None:
    """Delivery: a delayed job is not lost where no worker has declared what it passes."""
    jobs = producer.meta_for("recorder").jobs
    start = time.monotonic()
    jobs.record(1).run_in(0.2, "seconds")
    jobs.record_nothing().run_in(0.2, "seconds")

    queue = producer.conf.task_default_queue
    message = poll("the job", taken(producer, queue))
    routed = poll("the routed job", taken(producer, f"{queue}-routed"))

    assert time.monotonic() - start >= 0.2
    assert message.headers["task"] == "posthog_jobs.recorder.record"
    assert routed.headers["task"] == "posthog_jobs.recorder.record_nothing"


def test_a_delayed_retry_returns_to_its_queue(producer: PostHogJobs) -> None:
    """Task shape: a job that was sent to a queue by name is retried there.

    Celery gives a retry the exchange and the key of the delivery, which these are.
    """
    queue = producer.amqp.queues[f"{producer.conf.task_default_queue}-chosen"]
    bits = ".".join(f"{5:028b}")
    for exchange, key in (
        (queue.exchange.name, queue.routing_key),
        ("celery_delayed_delivery", f"{bits}.{queue.routing_key}"),
    ):
        producer.send_task(
            "posthog_jobs.recorder.record",
            ("recorder", 1),
            countdown=1,
            exchange=exchange,
            routing_key=key,
        )
        message = poll("the retry", taken(producer, queue.name))
        assert message.headers["task"] == "posthog_jobs.recorder.record"


def test_eta_and_countdown_of_celery_are_rounded_up(producer: PostHogJobs) -> None:
    """Delivery: any way that Celery names a delay waits whole seconds, at least as long as it."""
    task = producer.tasks["posthog_jobs.recorder.record"]
    now = datetime.now(UTC)
    published = []

    def note(sender: str, routing_key: str, headers: dict[str, Any], **_: Any) -> None:
        bits = routing_key.split(".")[:-1]
        published.append((int("".join(bits) or "0", 2), headers["eta"], datetime.now(UTC)))

    signals.before_task_publish.connect(note)
    try:
        for options in (
            {"countdown": 0.001},
            {"countdown": 1.5},
            {"countdown": 3},
            {"eta": now + timedelta(seconds=100)},
            {"eta": (now + timedelta(seconds=100)).isoformat()},
            {"countdown": LONGEST_DELAY},
            {"countdown": 0},
            {"eta": now - timedelta(seconds=9)},
        ):
            task.s("recorder", 1).apply_async(**options)
    finally:
        signals.before_task_publish.disconnect(note)

    waits = [seconds for seconds, _, _ in published]
    assert waits[:3] + waits[5:] == [1, 2, 3, LONGEST_DELAY, 0, 0]
    for seconds, _, sent in published[3:5]:  # from a moment that comes nearer
        left = now + timedelta(seconds=100) - sent
        assert left <= timedelta(seconds=seconds) <= timedelta(seconds=100)
    assert [eta is None for _, eta, _ in published] == [False] * 6 + [True] * 2

    before = datetime.now(UTC)
    handle = producer.meta_for("recorder").jobs.record(1).run_in(1.5, "seconds")
    assert before + timedelta(seconds=2) <= handle.due <= datetime.now(UTC) + timedelta(seconds=2)


def test_a_delay_that_is_too_long_is_refused(producer: PostHogJobs) -> None:
    """Bad input: over 2^28 - 1 seconds nothing is enqueued, and the error says what to do."""
    jobs = producer.meta_for("recorder").jobs

    with pytest.raises(DelayTooLongError, match=r"2839968\d\d s is more than .* use Redis"):
        jobs.record(1).run_at(datetime.now(UTC) + timedelta(seconds=283996899.4))
    with pytest.raises(DueError, match="more than RabbitMQ can hold"):
        jobs.record(1).run_in(LONGEST_DELAY + 1, "seconds")
    with pytest.raises(DelayTooLongError):
        producer.send_task("posthog_jobs.recorder.record", ("recorder",), countdown=2.0**28 - 0.5)

    queue = producer.conf.task_default_queue
    with pytest.raises(NotFound):  # not even the queue was declared
        taken(producer, queue)()


def test_names_that_would_make_a_job_run_twice_are_refused(producer: PostHogJobs) -> None:
    """Delivery: the queue `x.y` would give what is delayed to the queue `y` as well."""
    queue = producer.conf.task_default_queue

    with pytest.raises(ConfigurationError, match=f"would also run from queue '{queue}'"):
        producer.send_task(
            "posthog_jobs.recorder.record", ("recorder", 1), countdown=1, queue=f"x.{queue}"
        )


@pytest.mark.parametrize("delay", [0, 1])
def test_a_queue_of_another_kind_is_one_clear_error(producer: PostHogJobs, delay: int) -> None:
    """Bad input: a queue that a stock Celery app left there is named, with what to do."""
    name = producer.conf.task_default_queue
    stock = Celery(broker=producer.conf.broker_url, set_as_current=False)
    stock.conf.task_default_queue = name
    stock.send_task("x")
    stock.close()

    with pytest.raises(ConfigurationError, match=f"'{name}'.*set task_default_queue"):
        producer.meta_for("recorder").jobs.record(1).run_in(delay, "seconds")


def test_what_somebody_deleted_is_declared_again(producer: PostHogJobs) -> None:
    """Delivery: a delayed job is not lost where the exchange for it is gone meanwhile."""
    jobs = producer.meta_for("recorder").jobs
    jobs.record(1).run_in(0.2, "seconds")
    with producer.connection_for_write() as connection:
        connection.default_channel.exchange_delete("celery_delayed_27")

    jobs.record(2).run_in(0.2, "seconds")

    queue = producer.conf.task_default_queue
    bodies = [poll("a job", taken(producer, queue)).body for _ in range(2)]
    assert len(set(bodies)) == 2


def test_the_stores_say_that_they_need_redis(
    rabbitmq: RabbitMQProcess, settings: dict[str, Any]
) -> None:
    """Bad input: meta.cache without a Redis raises an error that names the setting."""
    without = {**settings, "broker_url": rabbitmq.url, "posthog_jobs_redis_url": None}

    with pytest.raises(ConfigurationError, match="set posthog_jobs_redis_url"):
        PostHogJobs(config_source=without).meta_for("recorder").cache.get("x", None)


def test_the_stores_take_nothing_from_the_connection_to_rabbitmq(
    default_redis_broker: RedisProcess,
) -> None:
    """RabbitMQ: TLS, user and port that are configured for it are not used for Redis."""
    source = {
        "broker_url": "amqps://rabbitmq.invalid//",
        "broker_transport": "pyamqp",
        "broker_use_ssl": True,
        "broker_user": "somebody",
        "posthog_jobs_apps": APPS,
        "posthog_jobs_redis_url": default_redis_broker.url,
    }
    cache = PostHogJobs(config_source=source).meta_for("recorder").cache

    cache.set("key", [1])

    assert cache.get("key", None) == [1]


def test_nothing_listens_beyond_the_loopback(rabbitmq: RabbitMQProcess) -> None:
    """The server of these tests can be reached from this machine alone."""
    assert rabbitmq_node.listening(rabbitmq) == {"127.0.0.1"}
    assert rabbitmq_node.listening(rabbitmq.mapper) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("name", ["broker_url", "broker_write_url", "broker_read_url"])
@pytest.mark.parametrize("scheme", ["amqp", "amqps", "pyamqp"])
def test_the_defaults_apply_wherever_the_broker_is_named(name: str, scheme: str) -> None:
    """RabbitMQ: quorum queues and topic exchanges, and broker_url, which a worker needs."""
    conf = PostHogJobs(config_source={name: f"{scheme}://one//;amqp://two//"}).conf

    assert {key: conf[key] for key in DEFAULTS} == DEFAULTS
    assert conf.broker_url == f"{scheme}://one//;amqp://two//"


def test_the_defaults_apply_to_a_broker_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ: $CELERY_BROKER_URL wins over the configuration, here too."""
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://one//")

    assert PostHogJobs(config_source={"broker_url": "redis://x"}).conf.task_default_queue_type == (
        "quorum"
    )


def test_a_configuration_may_change_the_defaults() -> None:
    """RabbitMQ: what the user configures wins; confirmation of publishes is the default."""
    app = PostHogJobs(
        config_source={
            "broker_url": ["amqp://one//", "amqp://two//"],
            "task_default_queue_type": "classic",
            "broker_transport_options": {"x": 1},
        }
    )

    assert app.conf.task_default_queue_type == "classic"
    assert app.conf.task_default_exchange_type == "topic"
    options = app.connection_for_write().transport_options
    assert {"confirm_publish": True, "x": 1}.items() <= options.items()
    app.conf.broker_transport_options = {"confirm_publish": False}
    assert app.connection_for_write().transport_options["confirm_publish"] is False


@pytest.mark.parametrize("broker", [{"broker_url": "redis://127.0.0.1:1"}, {}])
def test_on_redis_nothing_of_it_applies(broker: dict[str, Any]) -> None:
    """RabbitMQ: with Redis, or no broker, Celery's defaults stay."""
    app = PostHogJobs(config_source=broker)
    stock = {"task_default_queue_type": "classic", "task_default_exchange_type": "direct"}

    assert {key: app.conf[key] for key in stock} == stock
    assert app.broker.delays is None


def test_the_doctor_with_a_worker(jobs_app: PostHogJobs) -> None:
    """Doctor: the limits of RabbitMQ, its worker and queues; and the Redis of meta.storage."""

    def answered() -> dict[str, Finding] | None:
        seen = {finding.check: finding for finding in jobs_app.doctor(timeout=1)}
        return seen if seen["workers"].verdict is Verdict.OK else None

    found = poll("an answer", answered)

    assert "30 minutes unless" in found["consumer timeout"].detail
    assert "268,435,455 s" in found["longest delay"].detail
    queue = jobs_app.conf.task_default_queue
    assert found["queues"].detail == (f"all consumed: {queue} (0 in it), {queue}-routed (0 in it)")
    worst = {check: finding.verdict.value for check, finding in found.items()}
    assert worst == {
        **dict.fromkeys(
            ("broker", "version", "longest delay", "workers", "apps", "versions", "queues"), "ok"
        ),
        "failed jobs": "ok",
        "consumer timeout": "warn",
        **dict.fromkeys(("store version", "store eviction", "store memory"), "ok"),
        "store persistence": "fail",
    }


def test_the_doctor_without_a_worker(producer: PostHogJobs) -> None:
    """Doctor: a queue that nobody consumes, or that is not there yet, with its messages."""
    producer.meta_for("recorder").jobs.record(1).run_now()

    found = {finding.check: finding for finding in producer.doctor(timeout=0.2)}

    queue = producer.conf.task_default_queue
    assert found["workers"].verdict.value == "fail"
    assert found["queues"].verdict.value == "fail"
    assert f"{queue} (1 in it" in found["queues"].detail
    assert f"{queue}-routed (0 in it" in found["queues"].detail


def test_the_doctor_finds_the_broker_away() -> None:
    """Doctor: one failure, without the password."""
    url = f"amqp://guest:hunter2@127.0.0.1:{closed_port()}//"

    (found,) = PostHogJobs(config_source={"broker_url": url}).doctor()

    assert (found.check, found.verdict.value) == ("broker", "fail")
    assert "refused" in found.detail
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_broker_that_is_down_is_one_clear_error(delay: int) -> None:
    """Bad input: triggering a job without its broker raises an error that names it."""
    url = f"amqp://guest:hunter2@127.0.0.1:{closed_port()}//"
    app = PostHogJobs(config_source={"broker_url": url, "posthog_jobs_apps": APPS})

    with pytest.raises(BrokerUnavailableError, match="see that it runs") as raised:
        app.meta_for("recorder").jobs.record(1).run_in(delay, "seconds")

    assert "hunter2" not in str(raised.value)
