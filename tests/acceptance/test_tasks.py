"""The shape of tasks and messages: names, contents, what monitors see, unknown apps and jobs."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import NotRegistered

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    AppDisabledError,
    BrokerUnavailableError,
    ConfigurationError,
    PayloadTooLargeError,
    UnknownAppError,
)
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from tests.servers.nodes import RedisProcess, WorkerProcess

SECRET = "hunter2"


def waiting_messages(redis: RedisProcess) -> list[dict[str, Any]]:
    """Return the messages in the queue, as Celery reads them."""
    client = redis.client
    assert client is not None
    return [json.loads(message) for message in client.lrange("celery", 0, -1)]


@pytest.fixture
def producer(default_redis_broker: RedisProcess) -> PostHogJobs:
    """An app whose broker has no worker."""
    config = {"broker_url": default_redis_broker.url, "posthog_jobs_apps": APPS}
    return PostHogJobs(config_source=config)


def test_the_message_carries_app_id_and_payload_alone(
    producer: PostHogJobs, default_redis_broker: RedisProcess
) -> None:
    """Task shape: the message has the app id, and the payload if there is one; no config."""
    producer.meta_for("recorder").jobs.record({"password": SECRET}).run_now()
    producer.meta_for("recorder").jobs.record_nothing().run_now()

    nothing, record = waiting_messages(default_redis_broker)

    assert record["headers"]["task"] == "posthog_jobs.recorder.record"
    assert json.loads(base64.b64decode(record["body"]))[:2] == [
        ["recorder", {"password": SECRET}],
        {},
    ]
    assert record["headers"]["argsrepr"] == "('recorder', <23 bytes>)"
    assert json.loads(base64.b64decode(nothing["body"]))[:2] == [["recorder"], {}]
    assert nothing["headers"]["argsrepr"] == "('recorder',)"
    assert SECRET not in json.dumps(record["headers"])
    assert "hello" not in json.dumps([record, nothing]), "the config is not sent"
    assert record["content-type"] == "application/json"


def test_task_routes_route_a_job(default_redis_broker: RedisProcess) -> None:
    """Task shape: a job can be routed by task_routes."""
    app = PostHogJobs(
        config_source={
            "broker_url": default_redis_broker.url,
            "posthog_jobs_apps": APPS,
            "task_routes": {"posthog_jobs.recorder.*": {"queue": "recorders"}},
        }
    )
    app.meta_for("recorder").jobs.record(1).run_now()

    client = default_redis_broker.client
    assert client is not None
    assert client.llen("recorders") == 1


@pytest.mark.parametrize("pool", ["prefork"])
def test_inspect_shows_jobs_and_no_payload(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Task shape: `inspect` lists the jobs, and shows size and app id of what runs."""
    inspect = jobs_app.control.inspect(timeout=1)
    (registered,) = poll("an answer", inspect.registered).values()
    assert "posthog_jobs.recorder.recordAsync" in registered
    assert "posthog_jobs.capture" in registered

    jobs_app.meta_for("recorder").jobs.slow({"seconds": 99, "password": SECRET}).run_now()
    (active,) = poll("a running job", lambda: [a for a in (inspect.active() or {}).values() if a])

    assert active[0]["args"] == "('recorder', <38 bytes>)"
    assert active[0]["name"] == "posthog_jobs.recorder.slow"
    assert SECRET not in json.dumps(active)
    assert SECRET not in celery_setup.worker.logs()


def test_a_message_of_an_unknown_app_waits_for_it(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, settings: dict[str, Any]
) -> None:
    """App gone: a job whose app id this worker does not know waits, and the worker lives on."""
    richer = {"posthog_jobs_apps": {**APPS, "new": "tests.samples.recorder"}}
    producer = PostHogJobs(config_source={"broker_url": celery_setup.app.conf.broker_url, **richer})
    producer.meta_for("new").jobs.record(1).run_now()
    celery_setup.worker.assert_log_exists("no app is installed under the id 'new'")

    settings.update(richer)
    worker: WorkerProcess = celery_setup.worker.container
    worker.stop()
    config = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (worker.folder / "celeryconfig.py").write_text(config)
    worker.start()
    worker.ready()

    assert wait_for(producer, "record", app_id="new")[0]["payload"] == 1


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("posthog_jobs.recorder.gone", "exports no job 'gone' any more"),
        ("posthog_jobs.other.record", "is now an install of 'recorder', not of 'other'"),
    ],
)
def test_a_job_that_the_code_no_longer_has_waits(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str, task: str, reason: str
) -> None:
    """App gone: a job gone from the code is not dropped but runs again later; others run."""
    jobs_app.send_task(task, ("recorder", {"password": SECRET}))
    celery_setup.worker.assert_log_exists(reason)

    jobs_app.meta_for("recorder").jobs.record("alive").run_now()

    assert wait_for(jobs_app, "record")[0]["payload"] == "alive"
    log = celery_setup.worker.logs()
    assert "runs again in 5 s" in log
    assert "Received unregistered task" not in log
    assert SECRET not in log


class TestBrokenApps:
    """One app's broken code never stops another app's jobs."""

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {
            "posthog_jobs_apps": {
                **APPS,
                "missing": "tests.samples.no_such_module",
                "raising": "tests.samples.raises",
                "no_function": "tests.samples.no_function",
            }
        }

    def test_the_worker_says_what_is_wrong_and_runs_the_others(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
    ) -> None:
        """Bad input: each broken app is one error in the log that names it; the others run."""
        log = celery_setup.worker.logs()
        assert "app id 'missing': there is no module 'tests.samples.no_such_module'" in log
        assert "app id 'raising': importing 'tests.samples.raises' raised ZeroDivisionError" in log
        assert "app id 'no_function': app 'no_function'" in log
        assert "job 'later' is of type str, not a function" in log

        jobs_app.meta_for("recorder").jobs.record(1).run_now()

        assert len(wait_for(jobs_app, "record")) == 1


def test_an_app_that_appears_after_the_fork_runs(jobs_app: PostHogJobs) -> None:
    """Task shape: a pool child resolves the task of a job that it has never met."""
    # the registry of this process has met no job either
    registry = PostHogJobs(config_source=dict(jobs_app.conf)).tasks
    assert "posthog_jobs.recorder.record" not in list(registry)
    task = registry["posthog_jobs.recorder.record"]

    assert (task.app_name, task.job_name) == ("recorder", "record")
    assert "posthog_jobs.recorder.record" in registry
    assert registry["posthog_jobs.recorder.record"] is task


def test_unknown_names_do_not_fill_the_registry(producer: PostHogJobs) -> None:
    """Task shape: names that no app exports get a task that is not kept; others get none."""
    before = len(producer.tasks)

    assert producer.tasks["posthog_jobs.recorder.nothing_of_it"].job_name == "nothing_of_it"
    for name in ("posthog_jobs.recorder", "posthog_jobs.os.system.x", "os.system", "", None, 7):
        with pytest.raises(NotRegistered):
            producer.tasks[name]

    assert len(producer.tasks) == before


def test_a_broker_that_is_down_is_one_clear_error() -> None:
    """Bad input: run_now without a broker raises an error that names it, password masked."""
    url = f"redis://user:{SECRET}@127.0.0.1:{closed_port()}/0"
    app = PostHogJobs(config_source={"broker_url": url, "posthog_jobs_apps": APPS})

    with pytest.raises(BrokerUnavailableError, match="see that it runs") as raised:
        app.meta_for("recorder").jobs.record(1).run_now()

    assert SECRET not in str(raised.value)
    assert "127.0.0.1" in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"broker_url": "no_such_broker://x"}, "'no_such_broker', which is not a broker's"),
        ({"broker_url": ""}, "broker_url is empty"),
        ({"posthog_jobs_app": {}}, "did you mean 'posthog_jobs_apps'?"),
        ({"posthog_jobs_apps": ["teapot"]}, "maps app ids to modules"),
        ({"accept_content": ["json", "pickle"]}, "takes JSON alone"),
        ({"posthog_jobs_max_payload_bytes": 0}, "a whole number above 0"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(settings: dict[str, Any], fragment: str) -> None:
    """Bad input: a setting that cannot work is refused; a wrong broker is never replaced."""
    app = PostHogJobs(config_source={"broker_url": "redis://127.0.0.1:1", **settings})

    with pytest.raises(ConfigurationError, match=fragment.replace("?", r"\?")):
        app.capture({"event": "x"})


def test_a_payload_over_the_limit_is_refused(
    producer: PostHogJobs, default_redis_broker: RedisProcess
) -> None:
    """Payload: one over the limit raises with both sizes, and nothing is enqueued."""
    producer.conf.posthog_jobs_max_payload_bytes = 100

    with pytest.raises(PayloadTooLargeError, match="102 bytes as JSON, over the limit of 100"):
        producer.meta_for("recorder").jobs.record("x" * 100)
    producer.meta_for("recorder").jobs.record("x" * 98)

    assert waiting_messages(default_redis_broker) == []


def test_eager_is_refused(producer: PostHogJobs, default_redis_broker: RedisProcess) -> None:
    """Bad input: `task_always_eager` is refused where jobs are used, plain tasks may have it."""
    config = {**dict(producer.conf), "task_always_eager": True}
    eager = PostHogJobs(config_source=config)

    @eager.task(name="plain", shared=False)  # type: ignore[untyped-decorator]
    def plain() -> int:
        return 7

    with pytest.raises(ConfigurationError, match=r"task_always_eager is set.*posthog_jobs.testing"):
        eager.meta_for("recorder")
    assert plain.delay().get() == 7

    async def trigger() -> None:
        await jobs.record(1).run_now()

    jobs = producer.meta_for("recorder").jobs
    producer.conf.task_always_eager = True  # when apps are loaded already
    with pytest.raises(ConfigurationError, match="task_always_eager is set"):
        jobs.record(1).run_in(1, "hour")
    with pytest.raises(ConfigurationError, match="task_always_eager is set"):
        asyncio.run(trigger())
    assert waiting_messages(default_redis_broker) == []


def test_unknown_and_disabled_apps_have_no_meta(producer: PostHogJobs) -> None:
    """Bad input: meta_for an app that is not there, or disabled, says so and names the others."""
    with pytest.raises(UnknownAppError, match=r"'recoder'; did you mean 'recorder'\?"):
        producer.meta_for("recoder")
    producer.conf.posthog_jobs_apps = {
        "off": {"module": "tests.samples.recorder", "enabled": False}
    }
    again = PostHogJobs(config_source=dict(producer.conf))
    with pytest.raises(AppDisabledError, match="'off' is disabled"):
        again.meta_for("off")


def test_another_celery_app_is_left_alone() -> None:
    """Task shape: our tasks are in no other app, which keeps its settings and its consumer."""
    other = Celery("other", broker="memory://", set_as_current=False)

    assert [name for name in other.tasks if name.startswith("posthog_jobs")] == []
    assert other.conf.worker_consumer == "celery.worker.consumer:Consumer"
    with pytest.raises(NotRegistered):
        other.tasks["posthog_jobs.recorder.record"]
    other.close()


def test_an_unawaited_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Return: a job that could not be enqueued, and that nobody awaits, is an error in the log."""
    import gc  # noqa: PLC0415

    url = f"redis://127.0.0.1:{closed_port()}/0"
    app = PostHogJobs(config_source={"broker_url": url, "posthog_jobs_apps": APPS})

    async def trigger() -> None:
        app.meta_for("recorder").jobs.record(1).run_now()

    with caplog.at_level(logging.ERROR, "posthog_jobs"):
        asyncio.run(trigger())
        gc.collect()
        poll("the log line", lambda: "nobody awaited it" in caplog.text)

    assert "enqueueing 'record' of app 'recorder'" in caplog.text


def test_nothing_is_noted_by_an_idle_app(producer: PostHogJobs) -> None:
    """Hooks: setup_plugin does not run in a process that only triggers jobs from outside."""
    producer.meta_for("recorder").jobs.record(1).run_now()

    assert notes(producer, "setup_plugin") == []
