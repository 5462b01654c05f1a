"""A worker's metrics, as Prometheus scrapes them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import APPS, ROOT
from tests.notes import wait_for
from tests.servers.nodes import ENVIRONMENT, HOST, free_port, poll

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess, WorkerProcess

SECRET = "hunter2"

every_pool = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])


class Scrape:
    """What a worker serves at one moment."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60) as answer:
            self.text = answer.read().decode()
        self.samples = [
            sample
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum over the samples with this name and these labels."""
        name = f"posthog_jobs_{name}"
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def has(self, name: str) -> bool:
        return any(sample.name == f"posthog_jobs_{name}" for sample in self.samples)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def apps() -> dict[str, Any]:
    """What is installed; for parametrizing."""
    return APPS


@pytest.fixture
def settings(port: int, apps: dict[str, Any]) -> dict[str, Any]:
    return {"posthog_jobs_apps": apps, "posthog_jobs_metrics_port": port}


def serves(port: int) -> bool:
    """Tell whether the worker serves yet; it says that it is ready just before."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@every_pool
@pytest.mark.parametrize("apps", [{**APPS, "ticking": "tests.samples.ticking"}], ids=["ticking"])
def test_every_end_is_counted(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str, port: int, apps: dict[str, Any]
) -> None:
    """Metrics: what ran, failed and was retried, for how long and how late, in every pool."""
    poll("the port", lambda: serves(port))
    jobs, began = jobs_app.meta_for("recorder").jobs, time.monotonic()
    for _ in range(3):
        jobs.record({"password": SECRET}).run_in(2, "seconds")
    wait_for(jobs_app, "record", 3)
    jobs_app.meta_for("second").jobs.record(SECRET).run_now()
    jobs.fail(SECRET).run_now()
    jobs.fail_once(SECRET).run_now()
    jobs.record(SECRET).run_in(1, "hour")
    jobs_app.send_task("posthog_jobs.recorder.gone", ("recorder", SECRET))
    jobs_app.send_task("posthog_jobs.strange.name", ("strange", SECRET))

    def all_ran() -> Scrape | None:
        scrape = Scrape(port)
        return (
            scrape
            if scrape.value("ran_total", app="recorder") >= 6
            and scrape.value("ran_total", app="unknown") >= 2
            and scrape.value("broker_up") == 1
            and scrape.value("failed_kept")  # is counted before it is on the broker
            and scrape.value("waiting", app="ticking") == 3  # none is just on its way
            else None
        )

    scrape = poll("eight ends", all_ran)
    passed = time.monotonic() - began

    record = {"app": "recorder", "job": "record"}
    assert scrape.value("ran_total", **record, result="succeeded") == 4
    assert scrape.value("ran_total", app="recorder", job="fail", result="failed") == 1
    assert scrape.value("failed_total", app="recorder", job="fail", reason="exception") == 1
    assert scrape.value("retried_total", app="recorder", job="fail_once") == 1
    assert scrape.value("retried_total", app="unknown", job="unknown") == 2
    assert scrape.value("duration_seconds_count", **record) == 4
    assert 0 < scrape.value("duration_seconds_sum", **record) < passed
    assert scrape.value("duration_seconds_bucket", **record, le="1800.0") == 4
    assert scrape.value("lateness_seconds_count", **record) == 4
    assert 0 < scrape.value("lateness_seconds_sum", **record) < 4 * (passed - 1.9)
    assert scrape.value("lateness_seconds_bucket", **record, le="1800.0") == 4
    assert scrape.value("promoted_total") >= 3
    assert scrape.value("waiting", **record) == 1
    assert scrape.value("waiting", app="recorder", job="fail_once") == 1
    assert scrape.value("waiting", app="unknown", job="unknown") == 2
    assert scrape.value("waiting", app="ticking", job="posthog_jobs.run_every_minute") == 1
    assert scrape.value("lag_seconds") < passed
    assert scrape.value("failed_kept") == 1
    assert not {"gone", "strange", "name", SECRET} & set(re.findall(r"\w+", scrape.text))


def test_what_cannot_be_read_is_counted(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, port: int
) -> None:
    """Metrics: each message that no job can be made of is counted, whoever found it out."""
    poll("the port", lambda: serves(port))
    with jobs_app.connection_for_write() as connection:
        no_json, no_task = "{", '{"body": "", "headers": {}, "properties": {}}'
        connection.default_channel.client.lpush("celery", no_json, no_task)

    poll("two are kept", lambda: jobs_app.failures.count() == 2)

    reason = {"app": "unknown", "job": "unknown", "reason": "undecodable message"}
    poll("both are counted", lambda: Scrape(port).value("failed_total", **reason) == 2)


def test_what_runs_and_what_is_queued(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, port: int
) -> None:
    """Metrics: what a worker has is in flight; the rest is queued, or waits until it is due."""
    jobs = jobs_app.meta_for("recorder").jobs
    jobs.slow({"seconds": 60}).run_now()
    wait_for(jobs_app, "slow started")
    for _ in range(30):
        jobs.record(1).run_now()

    scrape = poll(
        "a full queue", lambda: (s := Scrape(port)).value("queued", queue="celery") > 0 and s
    )

    assert scrape.value("in_flight", app="recorder", job="slow") == 1
    assert scrape.value("fetched") + scrape.value("queued", queue="celery") == 31


def test_a_broker_that_hangs(
    jobs_app: PostHogJobs,
    celery_setup: CeleryTestSetup,
    default_redis_broker: RedisProcess,
    port: int,
) -> None:
    """Metrics: while the broker is away or hangs, a scrape has what the worker knows itself."""
    poll("the port", lambda: serves(port))
    jobs_app.meta_for("recorder").jobs.record(1).run_now()
    poll("one end", lambda: (s := Scrape(port)).value("ran_total") and s.value("broker_up") == 1)

    os.kill(default_redis_broker.pid, signal.SIGSTOP)
    hanging = Scrape(port)
    os.kill(default_redis_broker.pid, signal.SIGCONT)

    assert hanging.has("broker_up")
    assert hanging.value("broker_up") == 0
    assert hanging.value("ran_total", job="record") == 1
    assert not hanging.has("waiting")
    poll("the broker", lambda: Scrape(port).value("broker_up") == 1)


def test_two_workers_on_one_port(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, start_worker: Any, port: int
) -> None:
    """Metrics: a port that is taken is one error with the fix; the worker runs jobs."""
    poll("the port", lambda: serves(port))
    second: WorkerProcess = start_worker()

    poll("the error", lambda: "Metrics are not served" in second.logs())

    log = second.logs()
    assert log.count("Metrics are not served") == 1
    assert f"port {port} of {HOST} cannot be had" in log
    assert "Traceback" not in log
    celery_setup.worker.container.stop()
    jobs_app.meta_for("recorder").jobs.record(1).run_now()
    assert wait_for(jobs_app, "record")


class TestAnyPort:
    """With port 0."""

    @pytest.fixture
    def port(self) -> int:
        return 0

    @pytest.mark.parametrize("pool", ["prefork"])
    def test_it_is_in_the_log_and_free_again_afterwards(
        self, jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
    ) -> None:
        """Metrics: the worker logs which port it took, on loopback alone, and gives it back."""
        line = r"http://127\.0\.0\.1:(\d+)/metrics"
        served = poll("the line", lambda: re.search(line, celery_setup.worker.logs()))
        port = int(served[1])
        poll("the broker", lambda: Scrape(port).value("broker_up") == 1)

        celery_setup.worker.container.stop()

        with pytest.raises(OSError, match="refused"):
            Scrape(port)


def test_without_the_extra(tmp_path: Path) -> None:
    """Metrics: where Prometheus' client is missing, the worker ends with one line that names it."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    (tmp_path / "celeryconfig.py").write_text("posthog_jobs_metrics_port = 0")

    worker = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "posthog_jobs", "worker", "--pool", "solo"],
        cwd=tmp_path,
        env={
            **ENVIRONMENT,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            "CELERY_BROKER_URL": "redis://127.0.0.1:1/",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert worker.returncode == 1
    assert "pip install 'posthog-jobs[metrics]'" in worker.stderr
    assert "Traceback" not in worker.stderr
