"""Where a chaos run takes place: a server that keeps all it acknowledged, and three workers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.nodes import ENVIRONMENT, RedisProcess, WorkerProcess

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence

APP_ID: Final = "chaos"
ROOT: Final = Path(__file__).resolve().parents[2]

#: Length of the lease, in seconds.
LEASE: Final = 5.0

#: Pool → its options: one worker of each.
POOLS: Final[dict[str, Sequence[str]]] = {
    "solo": (),
    "threads": ("--concurrency=16",),
    "prefork": ("--concurrency=4",),
}


def settings(folder: Path) -> dict[str, Any]:
    """Return what producer and workers are configured with, besides the broker."""
    config = {"notes": str(folder / "notes")}
    return {
        "posthog_jobs_apps": {APP_ID: {"module": "tests.chaos.jobs", "config": config}},
        "broker_transport_options": {"visibility_timeout": LEASE},
    }


class Site:
    """The processes of a chaos run, all of which `close` ends.

    Attributes:
        server: the broker.
        workers: pool → its worker of today.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("notes", "sent", "server"):
            (folder / name).mkdir()
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        self.server = RedisProcess.launch(folder / "server", *durable)
        self.workers: dict[str, WorkerProcess] = {}
        self._generation = 0
        self._producer: subprocess.Popen[bytes] | None = None
        self.redis: Any = redis.Redis(
            port=self.server.port,
            socket_timeout=2,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0),  # the storm must not wait for a server that is away
        )
        #: For when the storm is over, and a server that does not answer is a slow one.
        self.patient_redis: Any = redis.Redis(port=self.server.port, socket_timeout=60)

    def start_worker(self, pool: str, starved_until: float = 0) -> WorkerProcess:
        """Start the worker of a pool, in a folder of its own; it is not ready yet.

        Args:
            pool: its name.
            starved_until: it can start no thread if it is started before, in s since the epoch.
        """
        self._generation += 1
        folder = self.folder / f"worker-{self._generation}-{pool}"
        folder.mkdir()
        config = "".join(f"{name} = {value!r}\n" for name, value in settings(self.folder).items())
        (folder / "celeryconfig.py").write_text(config)
        celery = [sys.executable, "-m", "celery", "-A", "posthog_jobs", "worker", "-l", "INFO"]
        command = [*celery, "--pool", pool, *POOLS[pool], "--without-mingle", "-n", f"{pool}@%h"]
        env = {"PYTHONPATH": str(ROOT), "CELERY_BROKER_URL": self.server.url}
        env["CHAOS_STARVED_UNTIL"] = str(starved_until)
        self.workers[pool] = WorkerProcess(folder, command, env)
        return self.workers[pool]

    def start_workers(self) -> None:
        """Start one worker of each pool, and wait until all are ready."""
        for pool in POOLS:
            self.start_worker(pool)
        for worker in self.workers.values():
            worker.ready()

    def start_producer(self, *arguments: object) -> None:
        """Start the producer."""
        where = ["--folder", str(self.folder), "--url", self.server.url]
        with (self.folder / "producer.txt").open("ab") as log:
            self._producer = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.producer", *where, *map(str, arguments)],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_producing(self) -> bool:
        """Whether the producer has not sent all jobs yet.

        Raises:
            RuntimeError: it broke.
        """
        assert self._producer is not None
        if self._producer.poll():
            log = (self.folder / "producer.txt").read_text(errors="replace")
            raise RuntimeError(f"the producer ended with {self._producer.returncode}:\n{log}")
        return self._producer.returncode is None

    def is_up(self) -> bool:
        """Whether the server answers, and has read its file."""
        try:
            return bool(self.redis.ping())
        except (redis.RedisError, OSError):
            return False

    def stop_producer(self) -> None:
        """End the producer, also in the middle of its work."""
        if self._producer is not None and self._producer.poll() is None:
            self._producer.kill()
            self._producer.wait()

    def stop_workers(self) -> None:
        """End all workers at once."""
        for worker in self.workers.values():
            worker.kill()

    def close(self) -> None:
        """End everything that was started."""
        self.stop_producer()
        self.stop_workers()
        self.server.kill()


def signal_group(worker: WorkerProcess, number: signal.Signals) -> None:
    """Send a signal to a worker and the children of its pool."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, number)
