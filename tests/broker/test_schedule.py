"""Steering: list, count, cancel, move and forecast, keys, and how fast each is."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from posthog_jobs.broker.envelope import partition_of
from posthog_jobs.broker.schedule import Forecast, Schedule
from posthog_jobs.broker.transport.sending import Outcome
from posthog_jobs.errors import NaiveDatetimeError, PageError
from posthog_jobs.jobs.message import Steered
from tests.pace import Pace
from tests.servers.nodes import fixed_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.processes import Site


@pytest.fixture
def schedule(site: Site) -> Schedule:
    return Schedule(fixed_server(site.redis))


def test_get_shows_what_waits(site: Site, schedule: Schedule) -> None:
    """A waiting job can be read with its app, job, key, due time and message."""
    due = datetime(2100, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    site.send("a", app_id="web:1", key="user-42", eta=due)
    job = schedule.get("a")
    assert job
    assert (job.id, job.app_id, job.job, job.key, job.due) == ("a", "web:1", "run", "user-42", due)
    assert job.queue == "celery"
    assert job.message["headers"]["id"] == job.message["properties"]["correlation_id"] == "a"
    assert job.body.startswith(b'[["a"]')
    assert schedule.get("b") is None


def test_list_goes_page_by_page(site: Site, schedule: Schedule) -> None:
    """Pages follow the due time across apps and jobs, and no job is missed or shown twice."""
    at = datetime(2100, 1, 1, tzinfo=UTC)
    for number in range(30):
        site.send(f"{number:02}", app_id=str(number % 3), eta=at + timedelta(hours=number // 10))
    seen, cursor = [], None
    while True:
        page = schedule.list(limit=7, cursor=cursor)
        seen += [job.id for job in page.jobs]
        if (cursor := page.cursor) is None:
            break
    in_order = sorted(range(30), key=lambda number: (number // 10, number % 3, number))
    assert seen == [f"{number:02}" for number in in_order]
    of_one = [f"{number:02}" for number in range(0, 30, 3)]
    assert [job.id for job in schedule.list(app_id="0").jobs] == of_one
    before = at + timedelta(hours=1)
    assert [job.id for job in schedule.list(app_id="1", before=before).jobs] == ["01", "04", "07"]
    assert schedule.list(job="none").jobs == ()
    assert schedule.count() == 30
    assert schedule.count(app_id="0") == schedule.count(app_id="0", job="run") == 10
    assert schedule.count(before=before) == 10


def test_bad_arguments(schedule: Schedule) -> None:
    """A cursor of somebody else's and a time without a zone are refused."""
    with pytest.raises(PageError, match=r"Page\.cursor"):
        schedule.list(cursor="nonsense")
    with pytest.raises(NaiveDatetimeError, match=r"tzinfo=timezone\.utc"):
        schedule.reschedule("a", datetime(2030, 1, 1))  # noqa: DTZ001 - the point


def test_cancel_all(site: Site, schedule: Schedule) -> None:
    """All that waits of an app, or of one of its jobs, can be cancelled at once."""
    for number in range(1200):
        site.send(
            str(number),
            app_id=str(number % 2),
            task="run" if number % 4 else "noop",
            countdown=9,
        )
    assert schedule.cancel_all(app_id="0", job="noop") == 300
    assert schedule.cancel_all(app_id="0") == 300
    assert schedule.count() == schedule.count(app_id="1") == 600


def test_forecast(site: Site, schedule: Schedule) -> None:
    """The forecast counts what comes due per period, and says how late the head is."""
    begun = time.time()
    for number, days in enumerate([-1, 0.01, 0.5, 3, 20, 400]):
        site.send(str(number), countdown=3600)
        schedule._client.zadd(
            "posthog_jobs:due:1:13:run", {str(number): (time.time() + days * 86400) * 1000}
        )
    schedule._client.zadd("posthog_jobs:heads", {"1:13:run": (begun - 86400) * 1000})
    found = schedule.forecast()
    assert found == Forecast(minute=1, hour=1, day=1, week=1, month=1, later=1, late=found.late)
    least, most = timedelta(days=1), timedelta(days=1, seconds=time.time() - begun)
    assert least <= found.late <= most + timedelta(milliseconds=1)
    assert schedule.forecast(app_id="2") == Forecast(
        minute=0, hour=0, day=0, week=0, month=0, later=0, late=timedelta()
    )


def test_keys_keep(site: Site, schedule: Schedule) -> None:
    """With `keep`, what waits under a key stays and the publisher learns its id."""
    site.send("a", key="k", countdown=60)
    kept = site.send("b", key="k", if_waiting="keep", countdown=1)
    assert kept == Outcome(status="kept", id="a")
    assert [job.id for job in schedule.list().jobs] == ["a"]
    assert schedule.cancel("a") is Steered.CANCELLED
    scheduled = site.send("c", key="k", if_waiting="keep", countdown=60)
    assert scheduled == Outcome(status="scheduled", id="c")


def test_a_resent_message_waits_once(site: Site, schedule: Schedule) -> None:
    """Sending the same task id again, as after a lost reply, leaves one job."""
    eta = datetime(2100, 1, 1, tzinfo=UTC)
    for _ in range(2):
        site.send("a", eta=eta)
    assert schedule.count() == len(schedule.list().jobs) == 1


@pytest.mark.soak  # other tests beside it would slow the server, or this process
@pytest.mark.parametrize("count", [200_000, 1_000_000], ids=["200k", "1M"])
def test_fast_however_many_wait(site: Site, schedule: Schedule, count: int) -> None:
    """With a million jobs of 900 apps waiting each steering call takes below 50 ms."""
    site.send("template", countdown=3600)
    record = site.redis.hget("posthog_jobs:waiting", "template")
    assert record
    start = int(time.time() * 1000) + 60_000
    fill = site.redis.register_script("""
        for n = ARGV[1], ARGV[2] - 1 do
          local part = '3:' .. (100 + n % 900) .. '3:run'
          local id = string.format('%08d', n)
          redis.call('ZADD', 'posthog_jobs:due:' .. part, ARGV[3] + n, id)
          redis.call('ZADD', 'posthog_jobs:heads', 'LT', ARGV[3] + n, part)
          redis.call('HSET', 'posthog_jobs:waiting', id, '6:celery10:' .. part .. '0:' .. ARGV[4])
        end""")
    message = b'{"headers":{"id":"\x01","task":"run"},"properties":{}}'
    for first in range(0, count, 20_000):
        fill(args=[first, first + 20_000, start, message])
    assert schedule.count() == count + 1
    partition = partition_of("500", "run")
    assert site.redis.exists(f"posthog_jobs:due:{partition}")
    middle = base64.urlsafe_b64encode(json.dumps([start + count // 2, "", ""]).encode()).decode()
    soon = datetime.now(UTC) + timedelta(minutes=10)
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: schedule.get(f"{count // 2:08}"),
        "list": schedule.list,
        "list from the middle": lambda: schedule.list(cursor=middle),
        "list of an app": lambda: schedule.list(app_id="500"),
        "list before": lambda: schedule.list(app_id="500", job="run", before=soon),
        "count": schedule.count,
        "count of an app": lambda: schedule.count(app_id="500", before=soon),
        "count of all before": lambda: schedule.count(before=soon),
        "forecast": schedule.forecast,
        "reschedule": lambda: schedule.reschedule(f"{count // 2 + 1:08}", soon),
        "run_now": lambda: schedule.run_now(f"{count // 2 + 2:08}"),
        "cancel": lambda: schedule.cancel(f"{count // 2 + 3:08}"),
    }
    site.watch_calls()
    slowest = {}
    with Pace() as pace:
        for name, call in calls.items():
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                call()
                times.append(time.perf_counter() - begun)
            slowest[name] = min(times)
        begun = time.perf_counter()
        assert schedule.cancel_all(app_id="501") == pytest.approx(count / 900, abs=1)
        slowest["cancel_all"] = time.perf_counter() - begun
        most = pace.allow(0.05)
        assert {name: taken for name, taken in slowest.items() if taken >= most} == {}
        assert site.longest_call() < pace.allow(0.02)
