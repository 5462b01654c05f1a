"""What the broker holds: sampled while a chaos run goes on, and read in full at its end."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import redis

from posthog_jobs.broker.envelope import body_of, take
from posthog_jobs.broker.failures import Failures
from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.schedule import Schedule
from tests.servers.nodes import fixed_server

if TYPE_CHECKING:
    from collections.abc import Iterable

QUEUE = "celery"
_KEYS = Keys()
_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How much the broker held at a moment.

    Attributes:
        at: seconds since the epoch.
        waiting: jobs in the schedule.
        queued: jobs in the queue.
        in_flight: jobs that workers hold.
    """

    at: float
    waiting: int
    queued: int
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What the broker holds at the end of a run, by the numbers of the jobs.

    Attributes:
        waiting: number → how often it waits.
        queued: number → how often it is queued or in flight.
        failed: number → for what reason it is kept as failed.
    """

    waiting: Counter[int] = field(default_factory=Counter)
    queued: Counter[int] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)


def sample(client: Any) -> Sample | None:
    """Look at how much the broker holds; None while it is away."""
    try:
        leases = client.keys(_KEYS.inflight("*"))
        pipe = client.pipeline()
        pipe.hlen(_KEYS.waiting)
        pipe.llen(QUEUE)
        for lease in leases:
            pipe.hlen(lease)
        waiting, queued, *held = pipe.execute()
    except (redis.RedisError, OSError):
        return None
    return Sample(at=time.time(), waiting=waiting, queued=queued, in_flight=sum(held))


def unfinished(client: Any) -> int:
    """Return how many jobs are due by tomorrow, queued or in flight."""
    soon = Schedule(fixed_server(client)).count(before=datetime.now(UTC) + timedelta(days=1))
    while (now := sample(client)) is None:
        time.sleep(0.1)
    return soon + now.queued + now.in_flight


def doubled_keys(client: Any) -> list[str]:
    """Return the keys under which more than one job waits; none while the broker is away."""
    try:
        page = Schedule(fixed_server(client)).list(job="keyed", limit=_PAGE)
    except Exception:  # noqa: BLE001  # it is killed now and then
        return []
    counts = Counter(job.key for job in page.jobs if job.key is not None)
    return [key for key, count in counts.items() if count > 1]


def remains(client: Any) -> Remains:
    """Read all that the broker holds; nobody may be at it any more."""
    found = Remains()
    schedule, failures = Schedule(fixed_server(client)), Failures(fixed_server(client))
    cursor: str | None = None
    while True:
        page = schedule.list(limit=_PAGE, cursor=cursor)
        found.waiting.update(_number(job.message) for job in page.jobs)
        if (cursor := page.cursor) is None:
            break
    found.queued.update(_numbers(client.lrange(QUEUE, 0, -1)))
    for lease in client.keys(_KEYS.inflight("*")):
        found.queued.update(_numbers(take(held)[1] for held in client.hvals(lease)))
    while True:
        failed = failures.list(limit=_PAGE, cursor=cursor)
        for job in failed.jobs:
            kept = failures.get(job.id)
            assert kept is not None
            assert kept.envelope is not None
            found.failed[_number(kept.envelope)] = kept.reason.value
        if (cursor := failed.cursor) is None:
            return found


def _numbers(messages: Iterable[bytes]) -> list[int]:
    return [_number(json.loads(message)) for message in messages]


def _number(message: dict[str, Any]) -> int:
    """Return the number of the job that a message is for."""
    (_, payload), _, _ = json.loads(body_of(message))
    number: int = payload["n"]
    return number
