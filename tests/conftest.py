"""Fixtures: pytest-celery's setup over processes, with `posthog_jobs` as the Celery app."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from pytest_celery import CeleryTestSetup

from posthog_jobs.celery import PostHogJobs
from tests.servers import rabbitmq_node
from tests.servers.nodes import RedisProcess, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.rabbitmq_node import RabbitMQProcess

#: On a busy machine Python is slow, and no example is at fault.
_TOLERATED = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=_TOLERATED)
hypothesis.settings.load_profile("busy")

ROOT = Path(__file__).resolve().parent.parent

#: The apps that the workers of the tests have installed.
APPS: dict[str, Any] = {
    "recorder": {"module": "tests.samples.recorder", "config": {"greeting": "hello"}},
    "second": {"module": "tests.samples.recorder", "config": {"greeting": "again"}, "team_id": 2},
}


@pytest.fixture(autouse=True)
def _no_celery_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is configured around the tests reaches them; the environment would win."""
    for name in [name for name in os.environ if name.startswith(("CELERY_", "POSTHOG_JOBS_"))]:
        monkeypatch.delenv(name)


class Setup(CeleryTestSetup):
    """pytest-celery's setup, whose app is ours."""

    @classmethod
    def create_setup_app(
        cls, celery_setup_config: dict[str, Any], celery_setup_app_name: str
    ) -> PostHogJobs:
        return PostHogJobs(celery_setup_app_name, config_source=celery_setup_config)


@pytest.fixture
def celery_setup_cls() -> type[Setup]:
    return Setup


@pytest.fixture
def settings() -> dict[str, Any]:
    """What worker and test process are configured with, besides the broker; for overriding."""
    return {"posthog_jobs_apps": APPS}


@pytest.fixture
def celery_setup_config(
    celery_worker_cluster_config: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    return {**Setup.config(celery_worker_cluster_config), **settings}


@pytest.fixture
def default_redis_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    yield from RedisProcess.launch(tmp_path_factory.mktemp("redis")).serve()


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQProcess]:
    if reason := rabbitmq_node.why_not():
        pytest.skip(reason)
    yield from rabbitmq_node.serve(tmp_path_factory.mktemp("rabbitmq"))


@pytest.fixture
def default_rabbitmq_broker(rabbitmq: RabbitMQProcess) -> RabbitMQProcess:
    return rabbitmq


@pytest.fixture(scope="session")
def _idle_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    yield from RedisProcess.launch(tmp_path_factory.mktemp("idle")).serve()


@pytest.fixture
def idle_server(_idle_process: RedisProcess) -> RedisProcess:
    """A broker that no worker ever consumes from, with nothing that another test left there."""
    assert _idle_process.client is not None
    _idle_process.client.flushall()
    return _idle_process


@pytest.fixture
def idle_app(idle_server: RedisProcess) -> PostHogJobs:
    """An app whose jobs wait, or stay in their queue, since there is no worker."""
    return PostHogJobs(config_source={"broker_url": idle_server.url, "posthog_jobs_apps": APPS})


@pytest.fixture(params=["celery_redis_broker"])  # a list: pytest-celery's own set has no order
def celery_broker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def celery_backend_cluster() -> None:
    """No result backend: a job has no result."""


@pytest.fixture
def pool() -> str:
    """The worker's pool; for parametrizing."""
    return "solo"


@pytest.fixture
def default_worker_container_cls() -> type[WorkerProcess]:
    return WorkerProcess


@pytest.fixture
def default_worker_command(pool: str) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", "posthog_jobs", "worker"]
    return [
        *celery,
        "--pool",
        pool,
        "--concurrency=2",
        "-l",
        "INFO",
        "--without-mingle",
        "-n",
        "w@%h",
    ]


@pytest.fixture
def default_worker_env(celery_setup_config: dict[str, Any]) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "CELERY_BROKER_URL": celery_setup_config["broker_url"]}


@pytest.fixture
def start_worker(
    tmp_path_factory: pytest.TempPathFactory,
    default_worker_command: list[str],
    default_worker_env: dict[str, str],
    settings: dict[str, Any],
) -> Iterator[Any]:
    """Return a function that starts one more worker of the setup, with its own folder."""
    started: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        folder = tmp_path_factory.mktemp("worker")
        config = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        (folder / "celeryconfig.py").write_text(config)
        started.append(WorkerProcess(folder, default_worker_command, default_worker_env))
        started[-1].ready()
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def default_worker_container(start_worker: Any) -> WorkerProcess:
    worker: WorkerProcess = start_worker()
    return worker


@pytest.fixture
def jobs_app(celery_setup: CeleryTestSetup) -> PostHogJobs:
    """The app in this process, with a worker on the other side of the broker."""
    app: PostHogJobs = celery_setup.app
    return app
