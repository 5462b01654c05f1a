"""One side of a benchmark: a fresh server, producers and workers of ours or of stock Celery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil

from tests.servers.processes import REPO, Server, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PAYLOAD = {"url": "http://x"}


class Bench:
    """A server and whatever runs against it.

    Args:
        server: empty, and nobody else's.
        ours: our transport, or stock's.
    """

    def __init__(self, server: Server, *, ours: bool) -> None:
        self.ours, self.server = ours, server
        self.redis: Any = server.client()
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("CELERY_")},
            "PYTHONPATH": str(REPO),
            "BENCH_OURS": "1" if ours else "0",
            "BENCH_BROKER": server.url,
        }
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, *args: str) -> psutil.Process:
        """Start a worker."""
        number = len(self.workers)
        process = subprocess.Popen(
            [
                sys.executable, "-m", "celery", "-A", "tests.benchmarks.tasks", "worker",
                "-l", "error", "-n", f"w{number}@bench", *args,
            ],
            cwd=REPO, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.workers.append(process)
        return psutil.Process(process.pid)

    def warm_up(self) -> None:
        """Wait until the workers run jobs."""
        for _ in range(8 * max(1, len(self.workers))):
            self.run("send('noop', PAYLOAD)")
        until(lambda: not self.redis.exists("celery"))
        self.redis.config_resetstat()

    def run(self, code: str) -> Any:
        """Run `code` in a producer process; what it assigns to `result` comes back."""
        script = (
            "import json, time\n"
            "from datetime import datetime, timedelta, UTC\n"
            "from tests.benchmarks.tasks import ours, send, stock\n"
            f"PAYLOAD = {PAYLOAD!r}\nresult = None\n{code}\nprint(json.dumps(result))"
        )
        out = subprocess.run(
            [sys.executable, "-c", script],
            env=self.env, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return json.loads(out.stdout)

    def fill(self, count: int) -> None:
        """Put `count` jobs that are due into the queue, quickly."""
        self.run("send('noop', PAYLOAD)")
        message = json.loads(self.redis.rpop("celery") or b"")
        headers, properties = message["headers"], message["properties"]
        pipe = self.redis.pipeline(transaction=False)
        for _ in range(count):
            name = str(uuid.uuid4())
            headers["id"] = headers["root_id"] = properties["correlation_id"] = name
            properties["delivery_tag"] = str(uuid.uuid4())
            pipe.lpush("celery", json.dumps(message))
        pipe.execute()

    def close(self) -> None:
        for process in self.workers:
            process.terminate()
        for process in self.workers:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


@contextmanager
def bench(*, ours: bool) -> Iterator[Bench]:
    """A fresh server, and an end to all that was started."""
    with TemporaryDirectory(prefix="pj") as folder:
        server = Server(Path(folder))
        found = Bench(server, ours=ours)
        try:
            yield found
        finally:
            found.close()
            server.kill()


def rate(found: Bench, count: int) -> float:
    """Jobs per second between a tenth and nineteen twentieths of `count` jobs in the queue."""

    def left() -> int:
        return int(found.redis.llen("celery"))

    until(lambda: left() <= count * 0.9, seconds=60)
    begun, first = time.monotonic(), left()
    until(lambda: left() <= count * 0.05, seconds=300)
    return (first - left()) / (time.monotonic() - begun)
