"""Runs the teapot app for real: `python -m examples.demo`.

Starts a private Redis, a Celery worker and a small HTTP server that answers 503 a few times and
then 418, sends one event through `process_event`, and shows what happens until the teapot is
found. All of it is stopped and removed at the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

SEARCHES_IN_VAIN: Final = 3
SECONDS_BETWEEN: Final = 2
TIME_LIMIT: Final = 90.0
ROOT: Final = Path(__file__).resolve().parent.parent

_started: Final = time.monotonic()
_printing: Final = threading.Lock()


def say(who: str, what: str) -> None:
    """Print a line of the timeline."""
    with _printing:
        print(f"{time.monotonic() - _started:6.2f} s  {who:<8} {what}", flush=True)


class TeapotServer(ThreadingHTTPServer):
    """Answers 503 a few times, then 418, on a free port of this machine alone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked = 0
        self.found = threading.Event()

    @property
    def url(self) -> str:
        """Where to look for the teapot."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Answer(BaseHTTPRequestHandler):
    server: TeapotServer

    def do_GET(self) -> None:  # the name that http.server calls
        self.server.asked += 1
        teapot = self.server.asked > SEARCHES_IN_VAIN
        status = HTTPStatus.IM_A_TEAPOT if teapot else HTTPStatus.SERVICE_UNAVAILABLE
        self.send_response(status)
        self.end_headers()
        say("server", f"look {self.server.asked}: answered {status.value} {status.phrase}")
        if teapot:
            self.server.found.set()

    def log_message(self, *_: object) -> None:
        """Say nothing beside the timeline."""


class Worker:
    """`celery -A posthog_jobs worker`, whose log lines join the timeline."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.ready: Final = threading.Event()
        self.log: Final[list[str]] = []
        celery = [sys.executable, "-m", "celery", "-A", "posthog_jobs"]
        self._process: Final = subprocess.Popen(  # noqa: S603  # this Python, no shell
            [*celery, "worker", "--concurrency=1", "--loglevel=INFO", "--without-mingle"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process, which then stops the worker
        )
        self._reader: Final = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether the worker has stopped by itself."""
        return self._process.poll() is not None

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.log.append(line)
            if " job=continueSearchingForTheTeapot " in line:
                words = line.partition(" job=")[2].split()
                end = dict(word.split("=", 1) for word in words[1:])
                late = f"{float(end['lateness']) * 1000:.0f} ms"
                say("worker", f"job {end['id'][:8]} has {end['result']}; it started {late} late")
            elif "no teapot yet" in line:
                say(
                    "worker",
                    f"no teapot yet: the next job waits for {SECONDS_BETWEEN} s",
                )
            elif "started the embedded Redis" in line:
                say("redis", "a private Redis has been started")
            elif line.rstrip().endswith(" ready."):
                say("worker", "ready")
                self.ready.set()

    def stop(self) -> None:
        """Stop the worker, and wait for its end."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(5)


def search(home: str) -> bool:
    """Run the app with all its data in `home`; tell whether the teapot was found in time."""
    server = TeapotServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for variable in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[variable]  # a broker that is configured elsewhere is not the demo's
    os.environ |= {
        "NO_PROXY": "127.0.0.1",
        "POSTHOG_JOBS_HOME": home,
        "TEAPOT_URL": server.url,
        "TEAPOT_EVERY": str(SECONDS_BETWEEN),
    }
    os.chdir(ROOT)  # for celeryconfig.py
    worker = None
    try:
        say("demo", f"looking for a teapot at {server.url}")
        worker = Worker(dict(os.environ))
        while not worker.ready.wait(0.1):
            if worker.ended or time.monotonic() - _started > TIME_LIMIT:
                print("the worker did not start; its log:\n", *worker.log[-30:], sep="")
                return False
        send_event()
        while not server.found.wait(0.1):
            if worker.ended or time.monotonic() - _started > TIME_LIMIT:
                print("the teapot was not found in time; the worker's log:\n", *worker.log, sep="")
                return False
        return True
    finally:
        if worker is not None:
            worker.stop()
        server.shutdown()
        stop_redis()


def send_event() -> None:
    """Send one event through `process_event`, as an app that ingests events would."""
    # imported now, since the configuration is read from the environment set above
    import posthog_jobs  # noqa: PLC0415
    from posthog_jobs.celery import app  # noqa: PLC0415

    say("demo", "process_event: an event comes in, and the app looks at once")
    posthog_jobs.process_event({"event": "kettle is on", "distinct_id": "you"})
    say("demo", "process_event has returned; what waits on the broker now:")
    for job in app.schedule.list().jobs:
        seconds = (job.due - datetime.now(UTC)).total_seconds()
        say("demo", f"job {job.id[:8]}, due in {seconds:.2f} s")


def stop_redis() -> None:
    """Stop the private Redis, as `celery -A posthog_jobs jobs stop-embedded` does."""
    from posthog_jobs.broker.embedded import EmbeddedServer  # noqa: PLC0415

    EmbeddedServer.of_user().stop()


def main() -> int:
    """Run the demo; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up then, too
    with tempfile.TemporaryDirectory(prefix="posthog_jobs-") as home:
        try:
            found = search(home)
        except KeyboardInterrupt:
            print("stopped.")
            return 130
    if found:
        say("demo", "found the teapot!")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
