"""The doctor's checks that need no server: what they make of what they are given."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Queue

from posthog_jobs.broker.schedule import Forecast
from posthog_jobs.operate.doctor.clocks import clocks
from posthog_jobs.operate.doctor.failed import failed_jobs
from posthog_jobs.operate.doctor.findings import Verdict
from posthog_jobs.operate.doctor.guards import eviction, persistence, version
from posthog_jobs.operate.doctor.lag import lag
from posthog_jobs.operate.doctor.queues import Load, queues
from posthog_jobs.operate.doctor.rabbitmq import consumer_timeout, longest_delay
from posthog_jobs.operate.doctor.report import WorkerReport
from posthog_jobs.operate.doctor.server import JobSize, memory
from posthog_jobs.operate.doctor.workers import Crew, answering, apps, leases, versions

if TYPE_CHECKING:
    from posthog_jobs.operate.doctor.findings import Finding

GIB = 2**30


def worker(name: str = "a@h", **fields: Any) -> WorkerReport:
    """Return the report of a worker in good health, but for what is said."""
    healthy: dict[str, Any] = {
        "versions": {"posthog_jobs": "1", "celery": "5.7.0"},
        "skew": 0.0,
        "pool": "prefork",
        "concurrency": 2,
        "installed": {"teapot": 1},
        "broken": {},
        "lease": "owner",
        "lease_seconds": 60.0,
        "queues": ("celery",),
    }
    return WorkerReport(name=name, **{**healthy, **fields})


def crew(*reports: WorkerReport, others: tuple[str, ...] = (), silent: int = 0) -> Crew:
    return Crew(reports=reports, others=others, silent=silent)


def forecast(total: int = 0, late: float = 0) -> Forecast:
    periods = {"minute": total, "hour": 0, "day": 0, "week": 0, "month": 0, "later": 0}
    return Forecast(late=timedelta(seconds=late), **periods)


def check_shape(finding: Finding) -> None:
    """What is not ok has a fix, what is ok has none; neither ends with a full stop."""
    assert bool(finding.fix) is (finding.verdict is not Verdict.OK)
    assert not finding.detail.endswith(".")
    assert not finding.fix.endswith(".")


@pytest.mark.parametrize(
    ("skews", "verdict", "part"),
    [
        ({"here": 0.004, "a@h": -0.002}, "ok", "within 4 ms"),
        ({"here": 0.0, "a@h": 1.5}, "warn", "a@h is 1.5 s ahead: jobs that it sends run as much"),
        ({"here": -90.0, "a@h": 2.0}, "fail", "here is 90.0 s behind, a@h is 2.0 s ahead"),
    ],
)
def test_clocks(skews: dict[str, float], verdict: str, part: str) -> None:
    """Clocks: a second is worth a word, a minute is a failure; all that are off are named."""
    found = clocks(skews)

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


@pytest.mark.parametrize(
    ("of", "verdict", "part"),
    [
        (crew(), "ok", "30 s"),
        (crew(worker()), "ok", "60 s"),
        (crew(worker(lease_seconds=5.0)), "warn", "5 s: a worker that pauses"),
        (crew(worker(lease_seconds=7200.0)), "warn", "7200 s: so long"),
        (crew(worker(), worker("b@h", lease_seconds=20.0)), "warn", "60.0 s on a@h, 20.0 s on b@h"),
    ],
)
def test_leases(of: Crew, verdict: str, part: str) -> None:
    """Lease: under 15 s, over an hour, or not the same everywhere is worth a word."""
    found = leases(of, 30)

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


@pytest.mark.parametrize(
    ("of", "verdict", "part"),
    [
        (crew(), "fail", "none answered within 2 s"),
        (crew(worker()), "ok", "1 answered: a@h (prefork, 2)"),
        (crew(others=("stock@h",)), "ok", "stock@h (of another app or version)"),
        (crew(worker(), silent=2), "warn", "2 more run jobs and did not answer"),
        (crew(silent=1), "warn", "none answered; 1 more runs jobs"),
    ],
)
def test_who_answers(of: Crew, verdict: str, part: str) -> None:
    """Workers: none is a failure; one that runs a job and does not answer is named as that."""
    found = answering(of, 2)

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


def test_broken_apps_are_told_with_where() -> None:
    """Apps: each reason once, with the places that have it."""
    of = crew(worker(broken={"x": "app id 'x': no module"}), worker("b@h"))

    found = apps(of, {"x": "app id 'x': no module", "y": "app id 'y': no such file"}, 3)

    assert found.verdict is Verdict.FAIL
    assert found.detail == "app id 'x': no module (here, a@h); app id 'y': no such file (here)"
    check_shape(found)
    check_shape(apps(crew(worker()), {}, 3))


@pytest.mark.parametrize(
    ("reports", "verdict", "part"),
    [
        ([worker()], "ok", "posthog_jobs 1, celery 5.7.0"),
        ([], "ok", "nothing to compare"),
        (
            [worker(), worker("b@h", versions={"posthog_jobs": "2", "celery": "5.7.0"})],
            "warn",
            "differ between workers: posthog_jobs: 1 on a@h, 2 on b@h",
        ),
        (
            [worker(), worker("b@h", installed={})],
            "warn",
            "app id 'teapot': version 1 on here and a@h, not installed on b@h",
        ),
    ],
)
def test_versions(reports: list[WorkerReport], verdict: str, part: str) -> None:
    """Versions: packages and installations that are not the same everywhere are named."""
    found = versions(crew(*reports), {"teapot": 1})

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


@pytest.mark.parametrize(
    ("info", "coming", "verdict", "part"),
    [
        ({"used_memory": GIB, "maxmemory": 4 * GIB}, 0, "ok", "1.0 GiB used of 4.0 GiB, maxmemory"),
        ({"used_memory": GIB, "maxmemory": 4 * GIB}, 0, "ok", "about 4,600,000 more jobs of 700"),
        ({"used_memory": 85 * GIB, "maxmemory": 100 * GIB}, 0, "warn", "85.0 GiB used"),
        ({"used_memory": 99 * GIB, "maxmemory": 100 * GIB}, 0, "fail", "99.0 GiB used"),
        ({"used_memory": GIB, "maxmemory": 2 * GIB}, 10**7, "fail", "take 2.8 GiB more when queue"),
        ({"used_memory": GIB, "maxmemory": 0, "total_system_memory": 9 * GIB}, 0, "ok", "machine"),
        ({"used_memory": GIB, "maxmemory": 0}, 0, "warn", "does not tell of how much"),
    ],
)
def test_memory(info: dict[str, int], coming: int, verdict: str, part: str) -> None:
    """Memory: what is left, against maxmemory or the machine's, and what comes due counts."""
    found = memory(info, JobSize(waiting=700, growth=300), coming)

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


@pytest.mark.parametrize(
    ("load", "of", "verdict", "part"),
    [
        ({"celery": Load(messages=3)}, crew(worker()), "ok", "all consumed: celery (3 in it)"),
        ({}, crew(worker()), "ok", "no app exports a job"),
        ({"tea": Load()}, crew(worker()), "warn", "tea (0 in it, 0 waiting for it)"),
        ({"tea": Load(messages=1)}, crew(worker()), "fail", "tea (1 in it"),
        ({"tea": Load(waiting=2)}, crew(worker()), "fail", "2 waiting for it"),
        ({"tea": Load(messages=1)}, crew(worker(), silent=1), "warn", "no worker that answered"),
        ({"tea": Load(messages=1, consumers=1)}, crew(), "ok", "tea"),
    ],
)
def test_queues(load: dict[str, Load], of: Crew, verdict: str, part: str) -> None:
    """Queues: one that nobody consumes is a failure when something is on its way through it."""
    found = queues(load, {queue for each in of.reports for queue in each.queues}, of)

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


@pytest.mark.parametrize(
    ("late", "workers", "verdict", "part"),
    [
        (0, True, "ok", "5 wait, and none is late"),
        (1, False, "ok", "none is late"),
        (2, True, "warn", "2.0 s late, though workers run"),
        (61, False, "fail", "61.0 s late, for no worker runs"),
    ],
)
def test_lag(late: float, workers: bool, verdict: str, part: str) -> None:
    """Schedule: over a second late is worth a word, over a minute is a failure, and it says why."""
    found = lag(forecast(5, late), workers=workers)

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


@pytest.mark.parametrize(
    ("version", "arguments", "verdict", "part"),
    [
        ("3.8.14", None, "ok", "none by default"),
        ("3.8.16", None, "warn", "15 minutes unless"),
        ("3.10.8", None, "warn", "30 minutes unless"),
        ("4.1.0", {"x-consumer-timeout": 7_200_000}, "ok", "7,200 s in celery"),
    ],
)
def test_consumer_timeout(version: str, arguments: Any, verdict: str, part: str) -> None:
    """RabbitMQ: the version tells the default; only a queue's own argument is known for sure."""
    found = consumer_timeout({"version": version}, [Queue("celery", queue_arguments=arguments)])

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


def test_longest_delay() -> None:
    """RabbitMQ: 2^28 - 1 s, unless delays wait elsewhere."""
    assert "268,435,455 s" in longest_delay(native=True).detail
    assert longest_delay(native=False).verdict is Verdict.WARN


def test_failed_jobs() -> None:
    """Failed jobs: some in the last hour are worth a word."""
    assert failed_jobs(0).verdict is Verdict.OK
    assert failed_jobs(1200).detail == "1,200 in the last hour"


def test_guards() -> None:
    """Server: too old, unable to write, or evicting under a limit is a failure."""
    client: Any = None  # not asked

    assert version({"redis_version": "6.0.16"}).verdict is Verdict.FAIL
    assert version({"redis_version": "7.2.4", "valkey_version": "8.1.0"}).detail.startswith(
        "Valkey 8.1.0"
    )
    assert persistence(client, {"aof_enabled": 1, "aof_last_write_status": "err"}).verdict is (
        Verdict.FAIL
    )
    evicts = {"maxmemory_policy": "allkeys-lru"}
    assert eviction({**evicts, "maxmemory": GIB}).verdict is Verdict.FAIL
    assert eviction({**evicts, "maxmemory": 0}).verdict is Verdict.WARN


def test_an_answer_of_another_version_is_told_apart() -> None:
    """Workers: an answer that is not ours, or lacks something, is no report."""
    assert WorkerReport.parse("a@h", {"error": "no such command"}) is None
    assert WorkerReport.parse("a@h", None) is None
