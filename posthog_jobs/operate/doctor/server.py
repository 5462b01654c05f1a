"""What the doctor asks of a Redis server: each thing once, when a check first needs it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.broker.envelope import parse_record
from posthog_jobs.broker.redis import REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.broker.schedule import Forecast

    #: Gives a Redis client, whose replies are bytes, and the names of the keys.
    Connected = Callable[[], tuple[Any, Keys]]

#: Seconds that a search among all keys of a server may take; a large cache has many.
_LONGEST_SEARCH: Final = 2.0

#: Bytes that a job with a small payload takes while it waits; for where none waits.
_USUAL: Final = 700
_SAMPLES: Final = 5

#: Between a queue's name and a priority, in the keys of kombu's lists, and in its bindings.
_PRIORITY: Final = "\x06\x16"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSize:
    """What a job takes of a server's memory.

    Attributes:
        waiting: bytes while it waits, with all that points to it.
        growth: bytes more once it is due, for in its queue its message is not packed.
    """

    waiting: float = _USUAL
    growth: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """The messages that were fetched and are not acknowledged.

    Attributes:
        held: owner → how many.
        ended: owner of a lease → seconds since it has ended; negative while it is alive.
        stock: how many stock workers have held for too long.
        complete: whether all owners could be looked for, not those of leases alone.
    """

    held: Mapping[str, int]
    ended: Mapping[str, float]
    stock: int
    complete: bool


class Server:
    """One Redis server.

    Attributes:
        holds: what is lost with its data.
    """

    def __init__(
        self,
        connected: Connected,
        holds: str = "jobs that wait",
        coming: Callable[[], Forecast] | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            connected: gives a client and the key names.
            holds: what is lost with its data.
            coming: gives what waits there, if it is the broker.
        """
        self._connected: Final = connected
        self._coming: Final = coming
        self.holds: Final = holds

    @cached_property
    def client(self) -> Any:
        """A client."""
        return self._connected()[0]

    @cached_property
    def keys(self) -> Keys:
        """The names of its keys."""
        return self._connected()[1]

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """Its reply to INFO."""
        info: Mapping[str, Any] = self.client.info()
        return info

    @cached_property
    def saves(self) -> str:
        """Its setting `save`: empty without snapshots."""
        setting: str | bytes | None = self.client.config_get("save").get("save")
        return setting.decode() if isinstance(setting, bytes) else setting or ""

    @property
    def due_within_an_hour(self) -> int:
        """How many of the jobs that wait there are due by then."""
        if self._coming is None:
            return 0
        coming = self._coming()
        return coming.minute + coming.hour

    @cached_property
    def job_size(self) -> JobSize:
        """What some of the jobs that wait take."""
        client, keys = self.client, self.keys
        count = 0 if self._coming is None else client.hlen(keys.waiting)
        if not count:
            return JobSize()
        try:
            waiting = client.memory_usage(keys.waiting, samples=_SAMPLES) / count
            due = keys.due(client.zrange(keys.heads, 0, 0)[0].decode())
            waiting += client.memory_usage(due, samples=_SAMPLES) / client.zcard(due)
        except (REFUSED, LookupError, TypeError, ZeroDivisionError):
            # MEMORY is forbidden, or what was to be measured has just left for its queue
            waiting = _USUAL
        _, some = client.hscan(keys.waiting, count=_SAMPLES)
        lengths = [len(parse_record(name.decode(), data)[3]) for name, data in some.items()]
        return JobSize(
            waiting=waiting, growth=max(0, sum(lengths) / max(1, len(lengths)) - waiting)
        )

    def waiting(self) -> Counter[str]:
        """Return queue → how many wait for it, all of an app's job by where its first goes."""
        client, keys = self.client, self.keys
        pipe = client.pipeline(transaction=False)
        for partition in client.zrange(keys.heads, 0, -1):
            due = keys.due(partition.decode())
            pipe.zcard(due)
            pipe.zrange(due, 0, 0)
        replies = pipe.execute()
        counts = {
            first[0].decode(): count
            for count, first in zip(replies[::2], replies[1::2], strict=True)
            if first
        }
        found: Counter[str] = Counter()
        records = client.hmget(keys.waiting, list(counts)) if counts else []
        for (task_id, count), data in zip(counts.items(), records, strict=True):
            if data is not None:  # else it has just left for its queue
                queue = parse_record(task_id, data)[0].removeprefix(keys.global_keyprefix)
                found[queue.partition(_PRIORITY)[0]] += count
        return found

    def declared(self) -> set[str]:
        """Return the queues that anybody has ever sent to on this Redis, by kombu's bindings."""
        prefix = f"{self.keys.global_keyprefix}_kombu.binding."
        exchanges, _ = self._search(prefix)
        pipe = self.client.pipeline(transaction=False)
        for exchange in sorted(exchanges):
            pipe.smembers(f"{prefix}{exchange}")
        bindings = {binding.decode() for members in pipe.execute() for binding in members}
        names = {binding.rpartition(_PRIORITY)[2] for binding in bindings}
        return {name for name in names if ".pidbox" not in name and not name.startswith("celeryev")}

    def holders(self) -> set[str]:
        """Return the owners of leases that are alive and hold messages.

        A lease that holds nothing may be that of any process that waits for a reply.
        """
        client, keys = self.client, self.keys
        alive = client.zrange(keys.leases, client.time()[0] * 1000, "+inf", byscore=True)
        owners = [owner.decode() for owner in alive]
        pipe = client.pipeline(transaction=False)
        for owner in owners:
            pipe.exists(keys.inflight(owner))
        return {owner for owner, holds in zip(owners, pipe.execute(), strict=True) if holds}

    def in_flight(self, *, stock_timeout: float) -> InFlight:
        """Return who holds what; `stock_timeout` is how many seconds a stock worker may."""
        client, keys = self.client, self.keys
        owners, complete = self._search(keys.inflight(""))
        leases = client.zrange(keys.leases, 0, -1, withscores=True)
        now, _ = client.time()
        ended = {owner.decode(): now - end / 1000 for owner, end in leases}
        return InFlight(
            held={owner: client.hlen(keys.inflight(owner)) for owner in owners | set(ended)},
            ended=ended,
            stock=client.zcount(keys.unacked_index, "-inf", now - stock_timeout),
            complete=complete,
        )

    def _search(self, prefix: str) -> tuple[set[str], bool]:
        """Return what follows a prefix in each key that has it, and whether all were looked at."""
        found: set[str] = set()
        until, cursor = monotonic() + _LONGEST_SEARCH, 0
        pattern = "".join(f"\\{char}" if char in "\\*?[]^" else char for char in prefix)
        while monotonic() < until:
            cursor, names = self.client.scan(cursor, match=f"{pattern}*", count=1000)
            found.update(name.decode().removeprefix(prefix) for name in names)
            if not cursor:
                return found, True
        return found, False
