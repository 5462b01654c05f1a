"""What is on its way on the broker, in numbers that a monitoring system can ask for often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.broker.envelope import parse_partition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from posthog_jobs.broker.redis import Keys

#: How many partitions (app ids and jobs) are looked at one by one, those that are due first, and
#: how many leases: so much takes Redis some milliseconds.
_PARTITIONS: Final = 1000
_LEASES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits of one app's job.

    Attributes:
        app_id: the installation.
        task: the task's name.
        count: how many wait.
        due: how many of them should have gone to their queue by now.
        lag: seconds for which the first of them is due.
    """

    app_id: str
    task: str
    count: int
    due: int
    lag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is on its way.

    Attributes:
        waiting: what waits, by app id and task; of the 1,000 of these that are due first.
        waiting_in_all: how many wait.
        fetched: how many workers hold, or held when they died.
        queued: queue → how many are in it.
        failed: how many failed jobs are kept.
    """

    waiting: Sequence[Waiting]
    waiting_in_all: int
    fetched: int
    queued: Mapping[str, int]
    failed: int


def read_backlog(client: Any, keys: Keys, queues: Mapping[str, Sequence[str]]) -> Backlog:
    """Ask the broker, in two round trips.

    Args:
        client: of the broker.
        keys: its key names.
        queues: queue → the lists that it is.

    Raises:
        redis.exceptions.RedisError, OSError: it does not answer.
    """
    first = client.pipeline(transaction=False)
    first.time()
    first.zrange(keys.heads, 0, _PARTITIONS - 1, withscores=True)
    first.hlen(keys.waiting)
    first.zrange(keys.leases, 0, _LEASES - 1)
    first.zcard(keys.failed_at)
    for lists in queues.values():
        for name in lists:
            first.llen(name)
    (seconds, micros), heads, in_all, leases, failed, *lengths = first.execute()
    now = seconds * 1000 + micros / 1000

    second = client.pipeline(transaction=False)
    for partition, head in heads:
        due = keys.due(partition.decode())
        second.zcard(due)
        if head <= now:
            second.zcount(due, "-inf", now)
    for owner in leases:
        second.hlen(keys.inflight(owner.decode()))
    replies = iter(second.execute())
    waiting = []
    for partition, head in heads:
        app_id, task = parse_partition(partition.decode())
        waiting.append(
            Waiting(
                app_id=app_id,
                task=task,
                count=next(replies),
                due=next(replies) if head <= now else 0,
                lag=max(0.0, now - head) / 1000,
            )
        )
    lengths_left = iter(lengths)
    return Backlog(
        waiting=waiting,
        waiting_in_all=in_all,
        fetched=sum(replies),
        queued={name: sum(next(lengths_left) for _ in lists) for name, lists in queues.items()},
        failed=failed,
    )
