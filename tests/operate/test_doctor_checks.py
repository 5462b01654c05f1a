"""The doctor's checks that need no server: what they make of what they are given."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Queue

from posthog_jobs.broker.schedule import Forecast
from posthog_jobs.operate.doctor import Verdict, checks
from posthog_jobs.operate.doctor.asked import Crew, Load
from posthog_jobs.operate.doctor.server import JobSize
from posthog_jobs.worker.control import WorkerReport

if TYPE_CHECKING:
    from posthog_jobs.operate.doctor import Finding

GIB = 2**30


def asked(**known: Any) -> Any:
    """Return what a check is given, of which it looks at this alone."""
    return SimpleNamespace(**known)


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
    found = checks.clocks(asked(skews=skews))

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
    found = checks.lease(asked(crew=of, lease_seconds=30))

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
    found = checks.workers(asked(crew=of, timeout=2))

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


def test_broken_apps_are_told_with_where() -> None:
    """Apps: each reason once, with the places that have it."""
    of = crew(worker(broken={"x": "app id 'x': no module"}), worker("b@h"))

    here = {"x": "app id 'x': no module", "y": "app id 'y': no such file"}
    found = checks.apps(asked(crew=of, broken=here))

    assert found.verdict is Verdict.FAIL
    assert found.detail == "app id 'x': no module (here, a@h); app id 'y': no such file (here)"
    check_shape(found)
    check_shape(checks.apps(asked(crew=crew(worker()), broken={}, installed={"x": 1})))


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
    found = checks.versions(asked(crew=crew(*reports), installed={"teapot": 1}))

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
    size = JobSize(waiting=700, growth=300)
    found = checks.memory(asked(info=info, job_size=size, due_within_an_hour=coming))

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
    consumed = {queue for each in of.reports for queue in each.queues}
    found = checks.queues(asked(loads=load, consumed=consumed, crew=of))

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
    of = crew(worker()) if workers else crew()
    found = checks.schedule(asked(coming=forecast(5, late), crew=of))

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
    routed = {"celery": Queue("celery", queue_arguments=arguments)}
    found = checks.consumer_timeout(asked(properties={"version": version}, routed=routed))

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


def test_longest_delay() -> None:
    """RabbitMQ: 2^28 - 1 s, unless delays wait elsewhere."""
    assert "268,435,455 s" in checks.longest_delay(asked(delays_natively=True)).detail
    assert checks.longest_delay(asked(delays_natively=False)).verdict is Verdict.WARN


def test_failed_jobs() -> None:
    """Failed jobs: some in the last hour are worth a word."""
    assert checks.failed_jobs(asked(recently_failed=0)).verdict is Verdict.OK
    assert checks.failed_jobs(asked(recently_failed=1200)).detail == "1,200 in the last hour"


@pytest.mark.parametrize(
    ("check", "info", "verdict", "part"),
    [
        (checks.version, {"redis_version": "6.0.16"}, "fail", "Redis 6.0.16 is too old"),
        (
            checks.version,
            {"redis_version": "7.2.4", "valkey_version": "8.1.0"},
            "ok",
            "Valkey 8.1.0",
        ),
        (
            checks.persistence,
            {"aof_enabled": 1, "aof_last_write_status": "err"},
            "fail",
            "could not write to its disk (aof_last_write_status is 'err')",
        ),
        (
            checks.eviction,
            {"maxmemory_policy": "allkeys-lru", "maxmemory": GIB},
            "fail",
            "deletes jobs that wait",
        ),
        (
            checks.eviction,
            {"maxmemory_policy": "allkeys-lru", "maxmemory": 0},
            "warn",
            "deletes jobs that wait",
        ),
    ],
)
def test_how_a_server_keeps_what_waits(
    check: Any, info: dict[str, Any], verdict: str, part: str
) -> None:
    """Server: too old, unable to write, or evicting under a limit is a failure."""
    found = check(asked(info=info, holds="jobs that wait"))

    assert found.verdict.value == verdict
    assert part in found.detail
    check_shape(found)


def test_an_answer_of_another_version_is_told_apart() -> None:
    """Workers: an answer that is not ours, or lacks something, is no report."""
    assert WorkerReport.parse("a@h", {"error": "no such command"}) is None
    assert WorkerReport.parse("a@h", None) is None
