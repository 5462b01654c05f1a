"""How far it is: the modules of ours that a job goes through, by the interpreter's own profiling.

A walk is the calls of our functions, in their order, on all threads. Its *modules* are those that
these stand in. A *room change* is a call that enters another module than the call before it did;
what is called back out of Celery counts as well as what one of our functions calls, and a return
does not. Each walk is taken the second time, when all is imported and connected; a comprehension
is no function.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from celery.contrib.testing.worker import start_worker

from posthog_jobs.celery import PostHogJobs
from tests.measures.source import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from tests.servers.nodes import RedisProcess

APP: Final = "tests.measures.app"
_OURS: Final = f"{PACKAGE}/"
_NO_FUNCTIONS: Final = ("<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
#: redis-py's step that reads an answer, and kombu's that hands a message to its consumer.
_READS: Final = ("redis/connection.py", "read_response")
_DELIVERS: Final = ("kombu/transport/virtual/base.py", "_callback")


@dataclass
class Walk:
    """The calls of our functions, in order.

    Attributes:
        rooms: the module of each call.
        is_open: whether calls are noted now.
        awaits: whether no message was delivered yet: what is noted before Redis' last answer goes.
    """

    rooms: list[str] = field(default_factory=list)
    is_open: bool = True
    awaits: bool = False

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call; given to `sys.setprofile`."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_OURS):
            if self.is_open and code.co_name not in _NO_FUNCTIONS:
                self.rooms.append(code.co_filename.removeprefix(_OURS))
        elif self.awaits and event == "return" and _is(code, _READS):
            self.rooms.clear()
        elif self.awaits and event == "call" and _is(code, _DELIVERS):
            self.awaits = False

    @property
    def modules(self) -> int:
        return len(set(self.rooms))

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in zip(["", *self.rooms], self.rooms, strict=False))


def _is(code: CodeType, place: tuple[str, str]) -> bool:
    return code.co_name == place[1] and code.co_filename.endswith(place[0])


class End(logging.Handler):
    """Closes a walk when the worker logs the end of a job."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk
        self.ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("job="):
            self.walk.is_open = False
            self.ended.set()


class Site:
    """A server, an app that sends, and a worker of the pool `solo` in a thread of this process."""

    def __init__(self, server: RedisProcess) -> None:
        said = {"broker_url": server.url, "posthog_jobs_apps": {"one": {"module": APP}}}
        options = {"worker_hijack_root_logger": False, "worker_enable_remote_control": False}
        self.app = PostHogJobs(config_source={**said, **options})
        self.walk = Walk(is_open=False)
        self.end = End(self.walk)
        logger = logging.getLogger("posthog_jobs.jobs")
        logger.addHandler(self.end)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    @contextmanager
    def worker(self) -> Iterator[None]:
        threading.setprofile(self._profile)
        try:
            with start_worker(self.app, pool="solo", perform_ping_check=False):
                yield
        finally:
            threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        self.walk.profile(frame, event, argument)

    def here(self, call: Callable[[], object]) -> Walk:
        """Return the walk of a call in this thread, taken the second time."""
        call()
        walk = Walk()
        sys.setprofile(walk.profile)
        try:
            call()
        finally:
            sys.setprofile(None)
        return walk

    def there(self, send: Callable[[], object]) -> Walk:
        """Return the walk of what a worker does with a message, up to the line in its log."""
        self.end.ended.clear()
        self.walk = self.end.walk = Walk(awaits=True)
        send()
        if not self.end.ended.wait(60):
            raise AssertionError("the job has not ended within 60 s")
        return self.walk


def walks(server: RedisProcess) -> tuple[dict[str, Walk], int]:
    """Return the walks by their names, and our frames above the app's in a traceback."""
    logging.getLogger("celery").setLevel(logging.CRITICAL)
    site = Site(server)
    app, jobs = site.app, site.app.meta_for("one").jobs
    app.apps.install(APP, id="two")
    other = app.meta_for("two").jobs
    sent = site.here(lambda: jobs.run(1).run_in(1, "hour"))
    with site.worker():
        for _ in range(2):  # at the first time all is imported and connected
            ran = site.there(lambda: jobs.run(1).run_now())
            failed = site.there(lambda: jobs.fail(1).run_now())
            site.there(lambda: other.run(1).run_now())
        numbers = iter(range(2))
        changed = site.here(lambda: app.apps.configure("two", {"n": next(numbers)}))
        changed.rooms += site.there(lambda: other.run(1).run_now()).rooms
    kept = app.failures.list().jobs
    ids = iter([job.id for job in kept])
    replayed = site.here(lambda: app.failures.replay(next(ids)))
    return {
        "a job sent (`run_in` to Redis)": sent,
        "a job run (message to function to log)": ran,
        "a failure (message to log)": failed,
        "a replay": replayed,
        "an installation changed, until its next job ended": changed,
    }, kept[0].traceback.count(f'File "{_OURS}')


def loaded(module: str) -> tuple[int, float]:
    """Return how many modules of ours an import loads in a fresh process, and the seconds."""
    code = (
        "import sys, time; start = time.perf_counter(); import {0}; "
        "print(time.perf_counter() - start, "
        "sum(name.partition('.')[0] == 'posthog_jobs' for name in sys.modules))"
    )
    runs = []
    for _ in range(3):  # the fastest: the first one may compile
        command = [sys.executable, "-c", code.format(module)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, count = done.stdout.split()
        runs.append((float(seconds), int(count)))
    seconds_, count_ = min(runs)
    return count_, seconds_
