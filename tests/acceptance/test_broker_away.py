"""Jobs are sent, and workers work, although the broker is away for a while."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import BrokerUnavailableError, ConfigurationError
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.servers.nodes import RedisProcess, closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from posthog_jobs.jobs.trigger import Jobs
    from tests.servers.nodes import WorkerProcess


def app_for(url: str, timeout: float = 60) -> PostHogJobs:
    return PostHogJobs(
        config_source={
            "broker_url": url,
            "posthog_jobs_apps": APPS,
            "posthog_jobs_enqueue_timeout": timeout,
        }
    )


class LossyProxy:
    """Stands before a server; cuts the connection instead of handing on one of its replies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose_after: bytes | None = None
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                cut = threading.Event()
                for source, target in ((client, server), (server, client)):
                    arguments = (source, target, source is client, cut)
                    threading.Thread(target=self._copy, args=arguments, daemon=True).start()

    def _copy(
        self, source: socket.socket, target: socket.socket, to_server: bool, cut: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if to_server and self.lose_after is not None and self.lose_after in data:
                    self.lose_after = None
                    cut.set()
                elif not to_server and cut.is_set():
                    self.lost += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def lossy(default_redis_broker: RedisProcess) -> Iterator[LossyProxy]:
    proxy = LossyProxy(default_redis_broker.port)
    yield proxy
    proxy.close()


def test_a_broker_that_is_not_there() -> None:
    """A job is sent again for as long as the setting says; then it is certain that none waits."""
    jobs = app_for(f"redis://127.0.0.1:{closed_port()}/0", timeout=1).meta_for("recorder").jobs
    began = time.monotonic()

    with pytest.raises(BrokerUnavailableError, match=r"within 1 s: .*; nothing was enqueued") as e:
        jobs.record(1).run_now()

    assert not e.value.uncertain
    assert time.monotonic() - began >= 0.9


def test_a_process_that_is_slow_itself(
    default_redis_broker: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is sent once, at least, although the time is over before there is a connection."""
    app = app_for(default_redis_broker.url)
    hours = count(step=3600)
    monkeypatch.setattr("posthog_jobs.broker.transport.sending.monotonic", lambda: next(hours))

    handle = app.meta_for("recorder").jobs.record(1).run_in(1, "hour")

    assert next(hours) >= 3600  # the clock was asked; at a second look the time had been over
    assert app.schedule.get(handle.id) is not None


def test_a_reply_may_take_longer_than_a_job_may_take_to_be_sent(
    default_redis_broker: RedisProcess,
) -> None:
    """What waits is read although `enqueue_timeout` is over before the server answers."""
    app = app_for(default_redis_broker.url, timeout=1e-6)
    app.schedule.count()  # is connected from here on
    client = default_redis_broker.client
    assert client is not None
    client.client_pause(200)

    assert app.schedule.count() == 0


def test_a_broker_that_is_not_there_says_why() -> None:
    """The error tells what the last attempt met."""
    jobs = app_for(f"redis://127.0.0.1:{closed_port()}/0", timeout=0.5).meta_for("recorder").jobs
    with pytest.raises(BrokerUnavailableError, match="Connection refused"):
        jobs.record(1).run_now()


@pytest.mark.parametrize(
    ("login", "database", "why"),
    [
        (":wrong-horse@", 0, "invalid username-password"),
        ("bob:wrong-horse@", 0, "invalid username-password"),
        ("", 0, "Authentication required"),
        (":correct-horse@", 99, "DB index is out of range"),
    ],
    ids=["password", "user", "no login", "database"],
)
def test_a_broker_that_refuses(
    default_redis_broker: RedisProcess, login: str, database: int, why: str
) -> None:
    """What no further attempt would mend is told at the first one, without the password."""
    redis = default_redis_broker.client
    assert redis is not None
    redis.config_set("requirepass", "correct-horse")
    url = f"redis://{login}127.0.0.1:{default_redis_broker.port}/{database}"
    jobs = app_for(url, timeout=600).meta_for("recorder").jobs

    with pytest.raises(BrokerUnavailableError, match=f"refuses .*{why}.*nothing was enq") as error:
        jobs.record(1).run_now()

    assert not error.value.uncertain
    assert "-horse" not in str(error.value)


def test_a_login_that_is_asked_for_later(default_redis_broker: RedisProcess) -> None:
    """A producer whose login is refused once its connection is lost is told so."""
    jobs = app_for(default_redis_broker.url, timeout=600).meta_for("recorder").jobs
    jobs.record(1).run_in(1, "hour")
    redis = default_redis_broker.client
    assert redis is not None
    redis.config_set("requirepass", "correct-horse")
    redis.client_kill_filter(_type="normal", skipme=True)

    with pytest.raises(BrokerUnavailableError, match="Authentication required"):
        jobs.record(2).run_in(1, "hour")


def test_a_broker_that_comes_back(default_redis_broker: RedisProcess) -> None:
    """A job that is sent while the broker restarts is enqueued."""
    jobs = app_for(default_redis_broker.url).meta_for("recorder").jobs
    jobs.record("before").run_in(1, "hour")
    default_redis_broker.kill()

    with ThreadPoolExecutor() as pool:
        sent = pool.submit(lambda: jobs.record("after").run_in(1, "hour"))
        with pytest.raises(TimeoutError):
            sent.result(1)
        default_redis_broker.start()
        handle = sent.result()

    assert app_for(default_redis_broker.url).schedule.get(handle.id) is not None


@pytest.mark.parametrize(
    "send",
    [
        lambda jobs: jobs.record("x").run_now(),
        lambda jobs: jobs.record("x").run_in(1, "hour"),
        lambda jobs: jobs.record("x", key="k").run_in(1, "hour"),
        lambda jobs: jobs.record("x", key="k", if_waiting="keep").run_in(1, "hour"),
        lambda jobs: jobs.record("x", key="k").run_now(),
    ],
    ids=["now", "later", "keyed", "keyed and kept", "keyed now"],
)
def test_a_lost_reply(
    default_redis_broker: RedisProcess, lossy: LossyProxy, send: Callable[[Jobs], Any]
) -> None:
    """A job whose reply is lost is sent again, and taken once."""
    app = app_for(f"redis://127.0.0.1:{lossy.port}/0")
    jobs = app.meta_for("recorder").jobs
    jobs.record("warms up").run_now()
    redis = default_redis_broker.client
    assert redis is not None
    redis.delete("celery")
    lossy.lose_after = b"EVALSHA"

    handle = send(jobs)

    assert lossy.lost == 1
    assert redis.llen("celery") + app.schedule.count() == 1
    message = redis.lindex("celery", 0)
    assert handle.id in str(message) if message else app.schedule.get(handle.id)


def test_a_lost_reply_of_a_job_that_has_run(
    default_redis_broker: RedisProcess, lossy: LossyProxy
) -> None:
    """A job whose reply is lost, and that a worker takes before it is sent again, runs once."""
    app = app_for(f"redis://127.0.0.1:{lossy.port}/0")
    jobs = app.meta_for("recorder").jobs
    jobs.record("warms up").run_now()
    redis = default_redis_broker.client
    assert redis is not None
    redis.delete("celery")
    lossy.lose_after = b"EVALSHA"
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            if redis.rpop("celery"):
                taken.append(True)

    taken: list[bool] = []
    taker = threading.Thread(target=take)
    taker.start()
    jobs.record("x").run_now()
    jobs.record("y").run_now()
    poll("both are taken", lambda: len(taken) >= 2)
    stop.set()
    taker.join()

    assert len(taken) == 2
    assert lossy.lost == 1


def test_a_frozen_broker(default_redis_broker: RedisProcess) -> None:
    """A broker that takes a job and never answers: the error says that the job may be there."""
    app = app_for(default_redis_broker.url, timeout=2)
    jobs = app.meta_for("recorder").jobs
    jobs.record("warms up").run_now()
    default_redis_broker.kill("SIGSTOP")
    try:
        with pytest.raises(BrokerUnavailableError, match="is not known") as error:
            jobs.record("x").run_in(1, "hour")
    finally:
        default_redis_broker.kill("SIGCONT")

    assert error.value.uncertain
    assert app.schedule.count() <= 1


def test_a_worker_waits_for_its_broker(
    jobs_app: PostHogJobs,
    celery_worker: Any,
    default_worker_container: WorkerProcess,
    default_redis_broker: RedisProcess,
) -> None:
    """A worker whose broker is away says so once, and works on when it is back."""
    worker = default_worker_container
    default_redis_broker.kill("SIGTERM")
    poll("the worker notices", lambda: "Cannot connect" in worker.logs())
    away_for = time.monotonic() + 3
    poll("some attempts later", lambda: time.monotonic() > away_for)
    default_redis_broker.start()
    default_redis_broker.ready()

    jobs_app.meta_for("recorder").jobs.record("back").run_now()
    wait_for(jobs_app, "record")

    log = worker.logs()
    assert log.count("Cannot connect") == 1
    assert log.count("Connected to ") >= 1
    assert "Traceback" not in log


class TestRetries:
    """A job, or a hook, raises `RetryError` while the broker is away."""

    @pytest.fixture
    def default_redis_broker(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        options = ("--appendonly", "yes", "--appendfsync", "always")
        yield from RedisProcess.launch(tmp_path_factory.mktemp("redis"), *options).serve()

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Path:
        return tmp_path / "gate"

    @pytest.fixture
    def settings(self, gate: Path) -> dict[str, Any]:
        gated = {"module": "tests.samples.gated", "config": {"gate": str(gate)}}
        return {
            "posthog_jobs_apps": {**APPS, "gated": gated},
            "posthog_jobs_enqueue_timeout": 1,
        }

    def test_an_event_is_delivered_again(
        self,
        jobs_app: PostHogJobs,
        default_worker_container: WorkerProcess,
        default_redis_broker: RedisProcess,
        gate: Path,
    ) -> None:
        """An event whose hook could not be scheduled again is not acknowledged; nothing failed."""
        jobs_app.capture({"event": "sign up"})
        wait_for(jobs_app, "on_event", app_id="gated")
        default_redis_broker.kill()
        gate.touch()
        poll(
            "its retry is given up",
            lambda: "reject requeue=True: the broker is away" in default_worker_container.logs(),
        )
        default_redis_broker.start()
        default_redis_broker.ready()

        first, *again = wait_for(jobs_app, "on_event", 2, app_id="gated")

        assert [first["first"], *(note["first"] for note in again)] == [True, False]
        assert jobs_app.failures.count() == 0

    @pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
    def test_it_is_delivered_again(
        self,
        jobs_app: PostHogJobs,
        default_worker_container: WorkerProcess,
        default_redis_broker: RedisProcess,
        gate: Path,
        pool: str,
    ) -> None:
        """It is not acknowledged, and so runs again when the broker is back; nothing failed."""
        handle = jobs_app.meta_for("recorder").jobs.fail_at_gate(str(gate)).run_now()
        wait_for(jobs_app, "fail_at_gate")
        default_redis_broker.kill()
        gate.touch()
        poll(
            "its retry is given up",
            lambda: "reject requeue=True: the broker is away" in default_worker_container.logs(),
        )
        default_redis_broker.start()
        default_redis_broker.ready()

        waiting = poll("it waits for its retry", lambda: jobs_app.schedule.get(handle.id))

        assert (waiting.attempt, waiting.last_error) == (2, "RetryError: not now")
        assert [note["attempt"] for note in notes(jobs_app, "fail_at_gate")] == [1, 1]
        assert jobs_app.failures.count() == 0
        assert "In Celery 5.1" not in default_worker_container.logs()
        poll("nothing is in flight", lambda: not in_flight(default_redis_broker))


def in_flight(server: RedisProcess) -> list[bytes]:
    assert server.client is not None
    found: list[bytes] = server.client.keys("posthog_jobs:inflight:*")
    return found


@pytest.mark.parametrize("timeout", [0, -1, True, "5", 1e9, float("nan")])
def test_bad_timeouts(timeout: Any) -> None:
    """A timeout that is none is refused by name."""
    with pytest.raises(ConfigurationError, match="posthog_jobs_enqueue_timeout"):
        _ = app_for("redis://127.0.0.1:1/0", timeout).settings
