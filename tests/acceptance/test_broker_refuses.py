"""A Redis that answers, and refuses for a while, is waited for as one that is away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis._parsers import BaseParser
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from posthog_jobs.broker.transport.connection import refusal_of
from posthog_jobs.errors import BrokerUnavailableError, StoreUnavailableError
from tests.acceptance.test_broker_away import app_for, in_flight
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.servers.nodes import closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess, WorkerProcess


@contextmanager
def refusing(server: RedisProcess, kind: str) -> Iterator[None]:
    """Let a server refuse writes, in one of the ways in which Redis does."""
    client: Any = redis.Redis(port=server.port)
    match kind:
        case "READONLY" | "MASTERDOWN":
            stale = "yes" if kind == "READONLY" else "no"
            client.config_set("replica-serve-stale-data", stale)
            client.replicaof("127.0.0.1", closed_port())
            yield
            client.replicaof("NO", "ONE")
        case "NOREPLICAS":
            client.config_set("min-replicas-to-write", 1)
            yield
            client.config_set("min-replicas-to-write", 0)
        case "MISCONF":  # it cannot write a snapshot, since there is a folder of its name
            client.config_set("save", "3600 1000000")
            (server.folder / "dump.rdb").mkdir(exist_ok=True)
            client.bgsave()
            poll("it failed", lambda: client.info()["rdb_last_bgsave_status"] == "err")
            yield
            client.config_set("save", "")
        case "BUSY":
            client.config_set("lua-time-limit", 1)
            script = threading.Thread(target=_loop, args=(server.port,), daemon=True)
            script.start()
            yield
            client.script_kill()
            script.join()
        case "OOM":
            client.config_set("maxmemory", "1mb")
            yield
            client.config_set("maxmemory", 0)


def _loop(port: int) -> None:
    with suppress(ResponseError):
        # once, however long it takes: a client that is tired of waiting would send it again
        redis.Redis(port=port, socket_timeout=None, retry=Retry(NoBackoff(), 0)).eval(
            "while true do end", 0
        )


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def enqueue_timeout() -> float:
    return 60


@pytest.fixture
def settings(gate: Path, enqueue_timeout: float) -> dict[str, Any]:
    gated = {"module": "tests.samples.gated", "config": {"gate": str(gate)}}
    return {
        "posthog_jobs_apps": {**APPS, "gated": gated},
        "posthog_jobs_enqueue_timeout": enqueue_timeout,
    }


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_waits(
    jobs_app: PostHogJobs,
    default_worker_container: WorkerProcess,
    default_redis_broker: RedisProcess,
    pool: str,
) -> None:
    """A worker that is refused says so once, and goes on afterwards; so does one that starts."""
    worker, server = default_worker_container, default_redis_broker
    jobs = jobs_app.meta_for("recorder").jobs

    def says(what: str) -> int:
        return worker.logs().count(what)

    def is_told(times: int, kind: str) -> None:
        poll(f"it says so: {kind}", lambda: says("Cannot connect") == times)
        some = time.monotonic() + 1
        poll("some attempts later", lambda: time.monotonic() > some)
        assert says("Cannot connect") == times
        assert says(f"it refuses for now: {kind} ")

    def is_back(times: int) -> None:
        poll("it is connected", lambda: says("again after") == times)
        jobs.record(times).run_now()
        wait_for(jobs_app, "record", times)

    for times, kind in enumerate(["READONLY", "MASTERDOWN", "NOREPLICAS", "MISCONF"], start=1):
        with refusing(server, kind):
            is_told(times, kind)
        is_back(times)
    worker.stop()
    with refusing(server, "BUSY"):
        worker.start()
        is_told(5, "BUSY")
    worker.ready()
    is_back(5)
    worker.stop()
    with refusing(server, "OOM"):
        worker.start()
        worker.ready()  # it frees memory, and so must not wait for some
    assert says("Cannot connect") == 5
    assert "Traceback" not in worker.logs()


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_what_ends_meanwhile(
    jobs_app: PostHogJobs,
    default_worker_container: WorkerProcess,
    default_redis_broker: RedisProcess,
    gate: Path,
    pool: str,
) -> None:
    """A retry, an event and a job that writes wait for the server as well; none has failed."""
    worker, server = default_worker_container, default_redis_broker
    jobs = jobs_app.meta_for("recorder").jobs
    for kind in ("OOM", "READONLY"):
        opens = gate.with_name(kind)
        retried = jobs.fail_at_gate(str(opens)).run_now()
        poll("it runs", lambda: [n for n in notes(jobs_app, "fail_at_gate") if n["gate"] == kind])  # noqa: B023
        with refusing(server, kind):
            opens.touch()
            poll("it ends", lambda: f"{retried.id}] runs again in 5 s" in worker.logs())  # noqa: B023
            some = time.monotonic() + 1
            poll("some attempts later", lambda: time.monotonic() > some)  # noqa: B023
        waiting = poll("it waits for its retry", lambda: jobs_app.schedule.get(retried.id))  # noqa: B023
        assert (waiting.attempt, waiting.last_error) == (2, "RetryError: not now")

    later = jobs.record("later").run_in(1, "second")
    with refusing(server, "OOM"):
        poll("it cannot write", lambda: f"{later.id}] runs again in 5 s" in worker.logs())
    poll("it waits", lambda: jobs_app.schedule.get(later.id))
    jobs_app.schedule.run_now(later.id)
    wait_for(jobs_app, "record")

    jobs_app.capture({"event": "sign up"})
    wait_for(jobs_app, "on_event", app_id="gated")
    with refusing(server, "OOM"):
        gate.touch()
        poll("it ends", lambda: "on_event of app id 'gated' runs again" in worker.logs())
        some = time.monotonic() + 1
        poll("some attempts later", lambda: time.monotonic() > some)
    again = wait_for(jobs_app, "on_event", 2, app_id="gated")

    assert [note["first"] for note in again] == [True, False]
    ends = [note for note in notes(jobs_app, "fail_at_gate") if note["attempt"] == 1]
    assert len(ends) == 2  # while their later attempts go on
    assert jobs_app.failures.count() == 0
    poll("nothing is in flight", lambda: not in_flight(server))


@pytest.mark.parametrize("pool", ["solo", "prefork"])
@pytest.mark.parametrize("enqueue_timeout", [0.5])
def test_a_retry_that_cannot_be_sent(
    jobs_app: PostHogJobs,
    default_worker_container: WorkerProcess,
    default_redis_broker: RedisProcess,
    gate: Path,
) -> None:
    """Celery's own retry: a job that cannot be sent again in time comes again by itself."""
    jobs_app.meta_for("recorder").jobs.retry_at_gate(str(gate)).run_now()
    wait_for(jobs_app, "retry_at_gate")
    with refusing(default_redis_broker, "READONLY"):
        gate.touch()
        poll("it is let go", lambda: "the broker is away" in default_worker_container.logs())

    ran = wait_for(jobs_app, "retry_at_gate", 3)
    assert [note["attempt"] for note in ran] == [1, 1, 2]
    assert jobs_app.failures.count() == 0


@pytest.mark.parametrize("kind", ["READONLY", "NOREPLICAS", "OOM"])
def test_a_producer_tries_again(default_redis_broker: RedisProcess, kind: str) -> None:
    """What a process sends, first and later, is tried again within the time that it has."""
    hasty, patient = (
        app_for(default_redis_broker.url, timeout).meta_for("recorder").jobs
        for timeout in (0.5, 60)
    )
    for _ in range(2):
        with ThreadPoolExecutor() as pool, refusing(default_redis_broker, kind):
            sent = pool.submit(lambda: patient.record(1).run_in(1, "hour"))
            with pytest.raises(
                BrokerUnavailableError, match=f"0.5 s.*{kind}.*nothing was"
            ) as error:
                hasty.record(2).run_in(1, "hour")
            assert not error.value.uncertain
            assert not sent.done(), sent.result()
        hasty.record(3).run_in(1, "hour")  # so that it has sent something when it is refused again
        sent.result()
    assert app_for(default_redis_broker.url).schedule.count() == 4


@pytest.mark.parametrize("kind", ["READONLY", "NOREPLICAS", "OOM"])
def test_an_app_is_installed_meanwhile(default_redis_broker: RedisProcess, kind: str) -> None:
    """The refusal is raised, and nothing is stored."""
    apps = app_for(default_redis_broker.url).apps
    with (
        refusing(default_redis_broker, kind),
        pytest.raises(StoreUnavailableError, match=kind),
    ):
        apps.install("tests.samples.recorder", id="another")
    apps.install("tests.samples.recorder", id="another")


def test_which_errors() -> None:
    """What Redis refuses for now is told from what it will not take later either."""
    parse: Any = BaseParser.parse_error
    for text, refusal in {
        "READONLY You can't write.": "READONLY You can't write",
        "OOM not allowed. script: 0a1b, on @user_script:12.": "OOM not allowed",
        "EXECABORT Discarded because of: NOREPLICAS Not enough.":
        "EXECABORT Discarded because of: NOREPLICAS Not enough",
        "ERR Error running script (call to f_0a): @user_script:1: @user_script: 1: -OOM full":
        "ERR Error running script (call to f_0a): @user_script:1: @user_script: 1: -OOM full",
        "LOADING Redis is loading": "LOADING Redis is loading",
        "WRONGTYPE Operation against a key holding the wrong kind of value": None,
        "NOPERM User bob has no permissions to run the 'get' command": None,
        "BUSYKEY Target key name already exists.": None,
        "ERR unknown command 'x', with args beginning with: 'OOM ' ": None,
    }.items():  # fmt: skip
        assert refusal_of(parse(text)) == refusal
