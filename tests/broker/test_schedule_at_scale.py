"""With a million jobs waiting, steering stays fast and a waiting job stays small."""

from __future__ import annotations

import random
import statistics
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from posthog_jobs.broker import scripts
from posthog_jobs.broker.envelope import partition_of, take
from posthog_jobs.broker.redis import Keys
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.jobs.message import Steered
from tests.conftest import APPS
from tests.pace import Pace
from tests.servers.nodes import RedisProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs.broker.schedule import Schedule

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

WAITING = 1_000_000
PIPELINE = 5_000
APP_IDS = 500  # each with two jobs, so the schedule has a thousand partitions
TASKS = ("posthog_jobs.recorder.record", "posthog_jobs.recorder.slow")
ALIKE = timedelta(days=1)  # when a third of them is due, all at one instant
CALLS = 15
LONGEST = 0.050  # seconds
LARGEST = 1_400  # bytes; coarse, since the server allocates in steps of 128

NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)


class Million:
    """A schedule in which a million jobs wait."""

    def __init__(self, server: RedisProcess) -> None:
        config = {"broker_url": server.url, "posthog_jobs_apps": APPS}
        self.app = PostHogJobs(config_source=config)
        self.client = Redis(port=server.port)
        self.chance = random.Random(7)
        self.ids: list[str] = []
        self.start = datetime.now(UTC)
        message = self._message()
        self.bytes_each = self._load(message)

    @property
    def schedule(self) -> Schedule:
        return self.app.schedule

    def app_id(self) -> str:
        """Return one of the app ids."""
        return f"app-{self.chance.randrange(APP_IDS)}"

    def job_id(self) -> str:
        """Return the id of a job that waits, each time another."""
        return self.ids.pop(self.chance.randrange(len(self.ids)))

    def _message(self) -> bytes:
        """Return the message of a real call, as the schedule stores it."""
        jobs = self.app.meta_for("recorder").jobs
        handle = jobs.record({"url": "http://x"}).run_in(1, "hour")
        rest: Any = self.client.hget(Keys().waiting, handle.id)
        for _ in ("queue", "partition", "key"):
            _, rest = take(rest)
        handle.cancel()
        return bytes(rest)

    def _load(self, message: bytes) -> float:
        """Store a million with the script that stores every job; return the bytes of each."""
        keys = [*Keys().fixed, "celery"]
        partitions = [partition_of(f"app-{n}", task) for n in range(APP_IDS) for task in TASKS]
        now = int(self.start.timestamp() * 1000)
        alike = now + ALIKE // timedelta(milliseconds=1)
        before = self._used()
        for first in range(0, WAITING, PIPELINE):
            pipe: Any = self.client.pipeline(transaction=False)
            for number in range(first, first + PIPELINE):
                self.ids.append(str(uuid.UUID(int=self.chance.getrandbits(128))))
                due = now + self.chance.randrange(3_600_000, 63_072_000_000)
                place = (alike if number % 3 == 0 else due, partitions[number % len(partitions)])
                arguments = (Keys().prefix, self.ids[-1], *place, "", "replace", message)
                pipe.execute_command("EVALSHA", scripts.SCHEDULE.sha, len(keys), *keys, *arguments)
            pipe.execute()
        return (self._used() - before) / WAITING

    def _used(self) -> int:
        return int(self.client.info("memory")["used_memory"])


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Million]:
    for server in RedisProcess.launch(tmp_path_factory.mktemp("million")).serve():
        assert isinstance(server, RedisProcess)
        yield Million(server)


def middle_of_one_instant(million: Million) -> str | None:
    """Return the cursor of a place among the hundreds of thousands that are due at one time."""
    return million.schedule.list(before=million.start + 2 * ALIKE, limit=10_000).cursor


CALLED: dict[str, Callable[[Million], object]] = {
    "get": lambda million: million.schedule.get(million.job_id()),
    "list": lambda million: million.schedule.list(),
    "list of an app": lambda million: million.schedule.list(app_id=million.app_id()),
    "list of a job": lambda million: million.schedule.list(job="slow"),
    "list before": lambda million: million.schedule.list(before=million.start + ALIKE * 2),
    "count": lambda million: million.schedule.count(),
    "count of an app": lambda million: million.schedule.count(app_id=million.app_id()),
    "count of a job": lambda million: million.schedule.count(job="slow"),
    "count before": lambda million: million.schedule.count(before=million.start + ALIKE * 100),
    "forecast": lambda million: million.schedule.forecast(),
    "forecast of an app": lambda million: million.schedule.forecast(app_id=million.app_id()),
    "cancel": lambda million: million.schedule.cancel(million.job_id()),
    "reschedule": lambda million: million.schedule.reschedule(million.job_id(), NOON),
    "run_now": lambda million: million.schedule.run_now(million.job_id()),
    "cancel_all of 2,000": lambda million: million.schedule.cancel_all(app_id=million.app_id()),
}


@pytest.mark.parametrize("name", CALLED)
def test_each_call_is_fast(million: Million, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Steering: the median of each call stays below 50 ms while a million jobs wait."""
    took = []
    with Pace() as pace:
        for _ in range(CALLS):
            start = time.perf_counter()
            CALLED[name](million)
            took.append(time.perf_counter() - start)

        median = statistics.median(took)
        with capsys.disabled():
            print(f"\n{name:<20} {median * 1000:7.2f} ms", end="")  # noqa: T201
        assert median < pace.allow(LONGEST)


def test_a_page_in_the_middle_of_one_instant_is_fast(
    million: Million, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steering: also a page among 333,000 of 1,000 partitions that are due at one time is quick."""
    cursor = middle_of_one_instant(million)
    took = []
    with Pace() as pace:
        for _ in range(CALLS):
            start = time.perf_counter()
            cursor = million.schedule.list(cursor=cursor).cursor
            took.append(time.perf_counter() - start)

        median = statistics.median(took)
        with capsys.disabled():
            print(f"\nlist in one instant  {median * 1000:7.2f} ms", end="")  # noqa: T201
        assert median < pace.allow(LONGEST)


def test_a_waiting_job_is_small(million: Million, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory: what a waiting job takes of the broker's memory, all its indexes included."""
    with capsys.disabled():
        print(f"\nbroker memory        {million.bytes_each:7,.0f} bytes a waiting job", end="")  # noqa: T201
    assert million.bytes_each <= LARGEST


def test_answers_are_right_at_that_size(million: Million) -> None:
    """Steering: what is answered of a million is still exact."""
    schedule = million.schedule
    task_id = million.job_id()
    total = schedule.count()

    assert schedule.forecast().total == total
    assert sum(schedule.count(app_id=f"app-{n}") for n in range(APP_IDS)) == total
    schedule.cancel_all(app_id="app-7")
    assert schedule.list(app_id="app-7").jobs == ()
    if schedule.get(task_id) is not None:
        assert schedule.cancel(task_id) is Steered.CANCELLED
    assert schedule.get(task_id) is None
