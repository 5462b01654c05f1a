"""Messages wait on the broker until they are due, whoever sent them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from posthog_jobs.broker.schedule import Schedule
from posthog_jobs.broker.transport.sending import Outcome
from posthog_jobs.jobs.message import Steered
from tests.pace import Pace
from tests.servers.nodes import fixed_server
from tests.servers.processes import until

if TYPE_CHECKING:
    from tests.servers.processes import Site

POOLS = ["solo", "threads", "prefork"]


@pytest.mark.parametrize("pool", POOLS)
def test_runs_what_is_due_now_and_later(site: Site, pool: str) -> None:
    """In each pool a message that is due runs at once, and a later one when it is due."""
    app = site.app()
    site.worker(pool)
    with Pace() as pace:
        sent = time.time()
        app.send_task("run", args=["now"])
        due = sent + 1.5
        app.send_task("clock", args=[due], eta=datetime.fromtimestamp(due, UTC))
        until(lambda: site.noted() == ["now"])
        assert time.time() - sent < pace.allow(1)
        (late,) = until(lambda: site.noted("late"))
        assert 0 <= late < pace.allow(0.25)


@pytest.mark.parametrize("pool", POOLS)
def test_retry_waits_on_the_broker(site: Site, pool: str) -> None:
    """`self.retry` goes through the schedule and counts as Celery counts."""
    site.worker(pool)
    site.app().send_task("again", args=[2])
    until(lambda: site.noted() == [0, 1, 2])


def test_a_long_delay_outlives_the_lease(site: Site) -> None:
    """A job due in 3 s, two workers and a visibility timeout of 1 s: it runs once."""
    for _ in range(2):
        site.start("solo", visibility_timeout=1)
    for worker in site.workers:
        worker.ready()
    with Pace() as pace:
        due = time.time() + 3
        site.app().send_task("clock", args=[due], eta=datetime.fromtimestamp(due, UTC))
        until(lambda: site.noted("late"))
        until(lambda: time.time() > due + 1.1)
        (late,) = site.noted("late")
        assert 0 <= late < pace.allow(0.25)


def test_a_long_job_outlives_the_lease(site: Site) -> None:
    """A job that runs for 2 leases runs once in each pool, though others look for dead ones."""
    for pool in POOLS:
        for _ in range(2):
            site.start(pool, "-Q", pool, visibility_timeout=3)
    for worker in site.workers:
        worker.ready()
    for pool in POOLS:
        site.producer.send_task("slow", args=[pool, 6.5], queue=pool)
    until(lambda: len(site.noted()) >= 3)
    until(lambda: not site.redis.keys("posthog_jobs:inflight:*"))
    assert sorted(site.noted("started")) == sorted(POOLS)


def test_years_ahead_has_no_ttl(site: Site) -> None:
    """Nothing that waits has a time to live, however far ahead it is due."""
    site.app().send_task("run", eta=datetime(2200, 1, 1, tzinfo=UTC), task_id="far")
    job = Schedule(fixed_server(site.redis)).get("far")
    assert job is not None
    assert job.due == datetime(2200, 1, 1, tzinfo=UTC)
    ttls = {
        key: site.redis.ttl(key) for key in site.redis.keys("posthog_jobs:*") if b"wake" not in key
    }
    assert set(ttls.values()) == {-1}


def test_a_sooner_job_wakes_a_sleeping_worker(site: Site) -> None:
    """A worker that sleeps until a later job is called for one that is due sooner."""
    app = site.app()
    site.worker("solo")
    app.send_task("run", args=["later"], countdown=60)
    with Pace() as pace:
        for count in range(3):
            due = time.time() + 0.3
            app.send_task("clock", args=[due], eta=datetime.fromtimestamp(due, UTC))
            until(partial(site.more, "late", count))
        assert all(0 <= late < pace.allow(0.1) for late in site.noted("late"))


def test_stock_eta_messages_in_the_queue_are_deferred(site: Site) -> None:
    """A message that a stock producer queued before its time waits on the broker, not in memory."""
    stock = site.app(stock=True)
    site.worker("solo")
    with Pace() as pace:
        due = time.time() + 4
        eta = datetime.fromtimestamp(due, UTC)
        stock.send_task("clock", args=[due], eta=eta, task_id="early")
        stock.send_task("run", args=["past"], eta=eta - timedelta(hours=1))
        waiting = until(lambda: Schedule(fixed_server(site.redis)).get("early"))
        assert waiting.due == eta.replace(microsecond=eta.microsecond // 1000 * 1000) + timedelta(
            milliseconds=1 if eta.microsecond % 1000 else 0
        )
        until(lambda: site.noted() == ["past"])
        (late,) = until(lambda: site.noted("late"))
        assert 0 <= late < pace.allow(0.25)


def test_thousands_due_at_one_instant(site: Site) -> None:
    """Jobs due at one instant drain at the ordinary rate, and no call of Redis is slow."""

    def send(**options: Any) -> None:
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(2000):
                app.send_task("noop", producer=producer, **options)

    def drain() -> float:
        """Wait until nothing waits or is queued; how long that took."""
        begun = time.monotonic()
        until(
            lambda: (
                Schedule(fixed_server(site.redis)).count() == 0 and not site.redis.exists("celery")
            )
        )
        return time.monotonic() - begun

    app = site.app()
    send()
    site.worker("solo")
    ordinary = drain()
    send(countdown=3600)
    (partition,) = site.redis.zrange("posthog_jobs:heads", 0, 0)
    due = (time.time() + 1) * 1000  # which sending them all might take as well
    site.watch_calls()
    with Pace() as pace:
        moved = dict.fromkeys(site.redis.hkeys("posthog_jobs:waiting"), due)
        assert len(moved) == 2000
        site.redis.zadd(b"posthog_jobs:due:" + partition, moved)
        site.redis.zadd("posthog_jobs:heads", {partition: due})
        until(lambda: time.time() * 1000 >= due)
        assert drain() < 3 * ordinary + pace.allow(10), "a stock worker takes a hundred seconds"
        assert site.longest_call() < pace.allow(0.02)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_worker_that_starts_late_catches_up(site: Site) -> None:
    """50,000 overdue jobs drain at the rate of queued ones, and no call of Redis takes 20 ms."""
    app = site.app()
    count = 50_000
    due = datetime.now(UTC) + timedelta(seconds=60)
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            app.send_task("noop", eta=due, producer=producer)
    assert Schedule(fixed_server(site.redis)).count() == count
    until(lambda: datetime.now(UTC) >= due, seconds=70)
    site.watch_calls()

    def left() -> int:
        return Schedule(fixed_server(site.redis)).count() + int(site.redis.llen("celery"))

    def seconds(share: float) -> float:
        until(lambda: left() <= count * share, seconds=120)
        return time.monotonic()

    with Pace() as pace:
        site.worker("solo")
        begun, middle, ended = seconds(0.9), seconds(0.5), seconds(0.1)
        most = pace.allow(2 * (middle - begun))
        assert ended - middle < most, "it does not become slower on the way"
        assert site.longest_call() < pace.allow(0.02)
    print(f"{0.8 * count / (ended - begun):,.0f} jobs/s")  # noqa: T201  # the figure is wanted


def test_waiting_jobs_cost_a_worker_nothing(site: Site) -> None:
    """A worker's memory does not grow with 20,000 jobs that wait."""
    app = site.app()
    worker = site.worker("solo")
    process = psutil.Process(worker.process.pid)
    app.send_task("run", args=[0], countdown=3600, task_id="template")
    app.send_task("run", args=["warm"])
    until(site.noted)
    before = process.memory_info().rss
    record = site.redis.hget("posthog_jobs:waiting", "template")
    partition = site.redis.zrange("posthog_jobs:heads", 0, 0)[0]
    due = time.time() * 1000 + 3_600_000
    for first in range(0, 20_000, 1000):
        ids = [f"{n:036}" for n in range(first, first + 1000)]
        site.redis.hset("posthog_jobs:waiting", mapping=dict.fromkeys(ids, record))
        site.redis.zadd(b"posthog_jobs:due:" + partition, dict.fromkeys(ids, due))
    app.send_task("run", args=["after"])
    until(lambda: "after" in site.noted())
    assert process.memory_info().rss - before < 2_000_000


def test_steering(site: Site) -> None:
    """What waits can be cancelled, moved, and run now; what does not is said to be unknown."""
    schedule = Schedule(fixed_server(site.redis))
    for name in "abc":
        site.send(name, countdown=3600)
    assert schedule.cancel("a") is Steered.CANCELLED
    assert schedule.cancel("a") is Steered.UNKNOWN
    moved = datetime(2101, 1, 1, tzinfo=UTC)
    assert schedule.reschedule("b", moved) is Steered.RESCHEDULED
    job = schedule.get("b")
    assert job
    assert job.due == moved
    assert schedule.run_now("c") is Steered.QUEUED
    assert schedule.run_now("c") is schedule.cancel("c") is Steered.PROMOTED
    site.worker("solo")
    until(lambda: site.noted() == ["c"])
    assert schedule.reschedule("b", datetime(2020, 1, 1, tzinfo=UTC)) is Steered.QUEUED
    until(lambda: site.noted() == ["c", "b"])


def test_keys_debounce(site: Site) -> None:
    """Under a key at most one job of an app waits: the last one, at its own time."""
    schedule = Schedule(fixed_server(site.redis))
    site.send("a", key="k", countdown=60)
    site.send("other app", app_id="2", key="k", countdown=60)
    assert site.send("b", key="k", countdown=120) == Outcome(status="replaced", id="b")
    assert {job.id for job in schedule.list().jobs} == {"b", "other app"}
    assert site.send("c", key="k") == Outcome(status="replaced", id="c")
    site.worker("solo")
    until(lambda: site.noted() == ["c"])
    assert site.send("d", key="k", countdown=60) == Outcome(status="scheduled", id="d")
