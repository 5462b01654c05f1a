"""`celery -A posthog_jobs jobs doctor`, against servers and workers that are really wrong."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from posthog_jobs.broker.redis import Keys
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.operate.doctor import Verdict
from tests.conftest import APPS
from tests.notes import wait_for
from tests.operate.test_cli_jobs import run, run_celery
from tests.overdue import bring_forward
from tests.servers.nodes import RedisProcess, closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from posthog_jobs.operate.doctor import Finding
    from tests.operate.test_cli_jobs import Done
    from tests.servers.nodes import WorkerProcess

#: Checks that a server without any worker passes, if it is set up well.
OF_SERVER = {"broker", "version", "persistence", "eviction", "memory", "clocks", "lease"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A server that is set up well."""
    folder = tmp_path_factory.mktemp("redis")
    yield from RedisProcess.launch(folder, "--appendonly", "yes").serve()


@pytest.fixture(autouse=True)
def redis(server: RedisProcess) -> Redis:
    """A client of it; nothing of another test is left there."""
    client = Redis(port=server.port)
    client.flushall()
    return client


@pytest.fixture
def app(server: RedisProcess, settings: dict[str, Any]) -> PostHogJobs:
    return PostHogJobs(config_source={"broker_url": server.url, **settings})


@pytest.fixture
def celery_setup_config(server: RedisProcess) -> dict[str, Any]:
    return {"broker_url": server.url}


@pytest.fixture
def crashing(settings: dict[str, Any]) -> None:
    """Leases so short that one can be waited for; and no restore of what is still running."""
    settings["broker_transport_options"] = {"visibility_timeout": 4}


def look(app: PostHogJobs, timeout: float = 0.2) -> dict[str, Finding]:
    """Return check → finding; each that is not ok must have a fix."""
    found = app.doctor(timeout=timeout)
    assert all(finding.fix for finding in found if finding.verdict is not Verdict.OK)
    checks = {finding.check: finding for finding in found}
    assert len(checks) == len(found), "each check stands in the table once"
    return checks


def answered(app: PostHogJobs, count: int, *how: str) -> Done:
    """Run the command until so many workers have answered in its time."""

    def look() -> Done | None:
        done = run(app, "doctor", "--timeout", "1", *how)
        return done if f" {count} answered: " in done.out else None

    done: Done = poll("the answers", look)
    return done


def verdicts(found: dict[str, Finding], verdict: Verdict) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict is verdict}


# -- the server -------------------------------------------------------------------------------


def test_a_server_that_is_set_up_well(app: PostHogJobs) -> None:
    """Server: all of it is ok; that no worker runs is one failure, and its own."""
    found = look(app)

    assert verdicts(found, Verdict.OK) >= OF_SERVER
    assert verdicts(found, Verdict.FAIL) == {"workers"}
    assert found["persistence"].detail == "append-only file"


@pytest.mark.parametrize(
    ("options", "failing"),
    [
        ([], {"persistence"}),
        (["--maxmemory-policy", "allkeys-lru", "--maxmemory", "1gb"], {"persistence", "eviction"}),
        (["--appendonly", "yes", "--maxmemory", "100kb"], {"memory"}),
    ],
    ids=["nothing on disk", "evicts", "full"],
)
def test_a_server_that_is_set_up_badly(
    tmp_path: Path, options: list[str], failing: set[str]
) -> None:
    """Server: what may lose jobs, or leaves no room for them, fails with the setting that mends."""
    for server in RedisProcess.launch(tmp_path, *options).serve():
        found = look(PostHogJobs(config_source={"broker_url": server.url}))

        assert verdicts(found, Verdict.FAIL) == failing | {"workers"}


def test_the_store_is_looked_at_too(tmp_path: Path, app: PostHogJobs) -> None:
    """Server: the Redis of meta.storage, where it is another one, must keep its values as well."""
    for store in RedisProcess.launch(tmp_path).serve():
        app.conf.posthog_jobs_redis_url = store.url
        found = look(app)

        assert found["persistence"].verdict is Verdict.OK
        assert found["store persistence"].verdict is Verdict.FAIL
        assert "loses all values of meta.storage" in found["store persistence"].detail
        assert found["store eviction"].verdict is Verdict.OK


def test_memory_is_measured_with_what_waits(app: PostHogJobs) -> None:
    """Memory: the size of a job is that of those that wait."""
    jobs = app.meta_for("recorder").jobs
    for _ in range(10):
        jobs.record("x" * 5000).run_in(1, "hour")

    detail = look(app)["memory"].detail

    size = int(detail.rpartition(" jobs of ")[2].split()[0])
    assert 5000 < size < 9000


def test_a_user_who_may_not_look(server: RedisProcess, redis: Redis) -> None:
    """Server: what an ACL forbids is a warning of its own, and the other checks go on."""
    redis.acl_setuser(
        "app",
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        channels=["*"],
        categories=["+@all"],
        commands=["-config", "-info", "-memory"],
    )
    url = server.url.replace("redis://", "redis://app:secret@")

    found = look(PostHogJobs(config_source={"broker_url": url}))

    refused = {"version", "persistence", "eviction", "memory"}
    assert verdicts(found, Verdict.WARN) == refused
    assert all("no permissions to run the 'info' command" in found[it].detail for it in refused)
    assert verdicts(found, Verdict.OK) >= OF_SERVER - refused
    assert "secret" not in str(found)


def test_a_broker_that_is_away(tmp_path: Path) -> None:
    """Command: a broker that does not answer is one line, its fix, and exit code 2."""
    url = f"redis://user:hunter2@127.0.0.1:{closed_port()}/0"

    done = run_celery(tmp_path, "doctor", CELERY_BROKER_URL=url)

    assert done.code == 2
    first, fix = done.out.splitlines()
    assert first.startswith("fail  broker  ")
    assert "Connection refused" in first
    assert "→" in fix
    assert "Traceback" not in done.out + done.err
    assert "hunter2" not in done.out + done.err


# -- the command ------------------------------------------------------------------------------


def test_the_broker_in_use(server: RedisProcess) -> None:
    """Of several brokers, the one that answers is spoken of."""
    away = [f"redis://127.0.0.1:{closed_port()}/0" for _ in range(2)]
    app = PostHogJobs(config_source={"broker_url": ";".join([*away, server.url])})
    broker = app.doctor(timeout=0.1)[0]
    assert broker.verdict is Verdict.OK
    assert f"127.0.0.1:{server.port}/0 answers" in broker.detail


def test_the_table(app: PostHogJobs) -> None:
    """Command: verdict, check and detail in columns, the fix below; exit code 2 after a failure."""
    done = run(app, "doctor", "--timeout", "0.1")

    lines = done.out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail  workers"))
    assert lines[at].index("none answered") == lines[at + 1].index("→")
    assert lines[0].startswith("ok    broker")
    assert (done.code, done.err) == (2, "")
    assert "\x1b" not in done.out


def test_the_table_as_json(app: PostHogJobs) -> None:
    """Command: --json prints the findings, with the same exit code."""
    done = run(app, "doctor", "--json", "--timeout", "0.1")

    found = {finding.pop("check"): finding for finding in json.loads(done.out)}
    assert found["eviction"] == {
        "verdict": "ok",
        "detail": "maxmemory-policy is 'noeviction'",
        "fix": "",
    }
    assert found["workers"]["verdict"] == "fail"
    assert done.code == 2


# -- what waits and what is in flight ---------------------------------------------------------


def test_a_head_that_is_late_and_no_worker(app: PostHogJobs, redis: Any) -> None:
    """Schedule: an overdue head is late, for no worker runs; by over a minute it is a failure."""
    app.meta_for("recorder").jobs.record(1).run_in(1, "hour")

    bring_forward(redis, "recorder", "record", 3600 + 2)
    assert look(app)["schedule"].verdict is Verdict.WARN
    bring_forward(redis, "recorder", "record", 90)
    found = look(app)["schedule"]

    assert found.verdict is Verdict.FAIL
    assert "late, for no worker runs" in found.detail
    assert "celery -A posthog_jobs worker" in found.fix


def test_a_queue_that_nobody_consumes(app: PostHogJobs) -> None:
    """Queues: those that the router and the schedule name, with what is on its way through them."""
    app.conf.task_routes = {"posthog_jobs.recorder.record": {"queue": "notes"}}
    jobs = app.meta_for("recorder").jobs
    empty = look(app)["queues"]
    jobs.record(1).run_now()
    jobs.record(1).run_in(1, "hour")
    app.send_task("somebody.elses", queue="elsewhere", countdown=3600, priority=3)
    full = look(app)["queues"]

    assert empty.verdict is Verdict.WARN
    assert "notes (0 in it, 0 waiting for it)" in empty.detail
    assert full.verdict is Verdict.FAIL
    assert "notes (1 in it, 1 waiting for it)" in full.detail
    assert "elsewhere (0 in it, 1 waiting for it)" in full.detail
    assert "-Q celery,elsewhere,notes" in full.fix


def test_a_queue_that_nothing_is_sent_to_any_more(app: PostHogJobs) -> None:
    """Queues: what is left in one that no setting names is told; it may be another app's."""
    app.send_task("posthog_jobs.recorder.record", ("recorder", 1), queue="left")
    app.send_task("posthog_jobs.recorder.record", ("recorder", 1), queue="empty", countdown=0)
    with app.connection_for_write() as connection:
        connection.default_channel.client.delete("empty")

    found = look(app)["queues"]

    assert found.verdict is Verdict.WARN
    assert "left (1 in it, 0 waiting for it)" in found.detail
    assert "empty" not in found.detail
    assert "-Q celery,left" in found.fix


def test_messages_that_nobody_holds(app: PostHogJobs, redis: Redis) -> None:
    """In flight: of an owner without a lease; of one that died; and of a stock worker that did."""
    keys = Keys()
    redis.hset(keys.inflight("gone"), "1", "6:celery{}")
    orphaned = look(app)["in flight"]
    redis.zadd(keys.leases, {"gone": 0})
    died = look(app)["in flight"]
    redis.delete(keys.inflight("gone"))
    redis.zadd(keys.unacked_index, {"tag": 0})
    stock = look(app)["in flight"]

    assert orphaned.verdict is Verdict.FAIL
    assert "has no lease, so that nobody puts them back: 1 (owner gone)" in orphaned.detail
    assert "ZADD posthog_jobs:leases 0 OWNER" in orphaned.fix
    assert (died.verdict, stock.verdict) == (Verdict.WARN, Verdict.WARN)
    assert died.detail == stock.detail == "messages of workers that died: 1"


# -- the workers ------------------------------------------------------------------------------


@pytest.mark.usefixtures("crashing")
def test_a_worker_well_then_busy_then_dead(
    app: PostHogJobs, start_worker: Callable[[], WorkerProcess]
) -> None:
    """Workers: all is ok with one; one whose solo pool runs a job is busy; a dead one is missed."""
    worker = start_worker()
    well = poll(
        "an answer", lambda: (found := look(app, 1))["workers"].verdict is Verdict.OK and found
    )
    codes = [answered(app, 1, *how).code for how in ((), ("--strict",))]
    app.meta_for("recorder").jobs.slow({"seconds": 60}).run_now()
    wait_for(app, "slow started")
    busy = look(app)
    worker.kill()
    dead = poll(
        "the end of the lease",
        lambda: (found := look(app))["in flight"].verdict is Verdict.WARN and found,
    )

    assert verdicts(well, Verdict.OK) == well.keys() - {"lease"}, well
    assert "4 s: a worker that pauses" in well["lease"].detail
    assert codes == [0, 1], "a warning does not stop `doctor && deploy`, unless it is strict"
    assert "(solo, 1)" in well["workers"].detail
    assert "1 more runs jobs and did not answer" in busy["workers"].detail
    assert verdicts(busy, Verdict.FAIL) == set()
    assert dead["workers"].verdict is Verdict.FAIL
    assert dead["in flight"].detail == "messages of workers that died: 1"


def test_workers_that_differ(
    app: PostHogJobs,
    settings: dict[str, Any],
    start_worker: Callable[[], WorkerProcess],
    default_worker_command: list[str],
    tmp_path: Path,
) -> None:
    """Workers: with a good one all is ok; an app that another one cannot load is exit code 2."""
    assert sys.executable in default_worker_command
    default_worker_command[default_worker_command.index("solo")] = "threads"
    good = start_worker()
    well = answered(app, 1, "--strict")
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('no kettle')\n")
    settings["posthog_jobs_apps"] = {
        **APPS,
        "second": {"module": str(broken), "config": {"password": "hunter2"}},
    }
    settings["broker_transport_options"] = {"visibility_timeout": 30}
    bad = start_worker()
    names = [f"w@{each.id[:12]}" for each in (good, bad)]

    found = poll(
        "both answers",
        lambda: (seen := look(app, 1))["workers"].detail.startswith("2 answered") and seen,
    )
    done = answered(app, 2)

    assert well.code == 0, well.out
    assert found["apps"].verdict is Verdict.FAIL
    assert "app id 'second': " in found["apps"].detail
    assert "no kettle" in found["apps"].detail
    assert f"({names[1]})" in found["apps"].detail
    assert f"app id 'second': version 1 on here and {names[0]}, not installed on {names[1]}" in (
        found["versions"].detail
    )
    assert f"60 s on {names[0]}" in found["lease"].detail
    assert f"30 s on {names[1]}" in found["lease"].detail
    assert set(names) <= set(found["clocks"].detail.split(": ")[1].split(", "))
    assert done.code == 2
    assert "hunter2" not in done.out + done.err
    assert "Traceback" not in done.out + done.err
