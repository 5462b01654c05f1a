"""What failed: list it, count it, replay it, discard it.

A job that ends without success moves to the failed jobs in the same step that acknowledges it
(`lua/fail.lua`). It is open until it is replayed or discarded. A replayed one stays as
history, with the id that it was sent again under; it is not listed or counted unless asked for.
What is older than 30 days, or over `posthog_jobs_max_failures`, goes, the oldest first.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack
from uuid import uuid4

from posthog_jobs.broker import scripts
from posthog_jobs.broker.envelope import parse_netstrings, replay_message, take
from posthog_jobs.broker.failure import (
    OPEN,
    REPLAYED,
    FailedCount,
    FailedJob,
    FailedPage,
    Reason,
)
from posthog_jobs.broker.listing import checked_limit, chunks, fits, page_of, parse_cursor
from posthog_jobs.broker.redis import reaching_broker
from posthog_jobs.errors import ReplayError, UnknownFailureError, UnsupportedByBrokerError
from posthog_jobs.jobs.due import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from redis import Redis

    from posthog_jobs.broker.redis import Keys, RedisServer
    from posthog_jobs.broker.transport.connection import Connection

logger = logging.getLogger(__name__)

#: How long failed jobs are kept, in ms: 30 days.
KEPT_FOR: Final = 30 * 24 * 3600 * 1000
#: Most failed jobs that one script call lets go.
_TRIM: Final = 100

#: Partitions asked in one round trip, and ids in one script call.
_PARTITIONS: Final = 200
_BATCH: Final = 200

#: Seconds after which a replay by another broker that was killed holds up the next one no longer.
_SENDING: Final = 60


class Filters(TypedDict, total=False):
    """Which failed jobs are meant; all that is given must fit.

    Attributes:
        app_id: of this app id.
        job: of this job's name, or its task's.
        reason: kept for this reason.
        before: failed before this moment; aware, or NaiveDatetimeError is raised.
    """

    app_id: str | None
    job: str | None
    reason: Reason | None
    before: datetime | None


#: When it failed (ms), and id: failed jobs are listed in the reverse of this order.
_Row = tuple[float, str]


class Failures:
    """The failed jobs of one broker.

    Args:
        server: where they are kept.
        send: sends a message, as JSON, to the queue of a name, where the broker is another one.

    Every method raises BrokerUnavailableError when Redis does not answer, and
    UnsupportedByBrokerError when neither is the broker Redis, nor is there one beside it.
    """

    __slots__ = ("_send", "_server")

    def __init__(
        self, server: RedisServer, *, send: Callable[[str, str], None] | None = None
    ) -> None:
        self._server: Final = server
        self._send: Final = send

    @property
    def _client(self) -> Any:
        return self._connected()[0]

    @property
    def _keys(self) -> Keys:
        return self._connected()[1]

    def _connected(self) -> tuple[Any, Keys]:
        try:
            return self._server.connected()
        except UnsupportedByBrokerError as error:
            raise UnsupportedByBrokerError(
                f"{error}; set posthog_jobs_redis_url, and what fails is kept there"
            ) from None

    # -- look -------------------------------------------------------------------------------

    @reaching_broker
    def get(self, task_id: str) -> FailedJob | None:
        """The job that failed under this id, with its message; or None."""
        keys = self._keys
        pipe = self._client.pipeline()
        pipe.hget(keys.failed, task_id)
        pipe.hget(keys.failed_messages, task_id)
        pipe.zscore(keys.failed_at, task_id)
        record, held, at = pipe.execute()
        if record is None or held is None or at is None:
            return None
        queue, raw = take(held)
        return FailedJob.parse(record, at, queue=queue.decode(), raw=raw)

    @reaching_broker
    def list(
        self,
        *,
        replayed: bool = False,
        limit: int = 100,
        cursor: str | None = None,
        **filters: Unpack[Filters],
    ) -> FailedPage:
        """Some of the open failed jobs, the newest first, without their messages.

        Args:
            replayed: those that were replayed instead.
            limit: how many at most.
            cursor: `FailedPage.cursor` of the page before.
            filters: which ones; see `Filters`.

        Raises:
            PageError: `cursor` is none of ours, or `limit` is not a whole number above 0.
        """
        checked_limit(limit)
        place = parse_cursor(cursor, (float, str), "FailedPage")
        state = REPLAYED if replayed else OPEN
        partitions = self._partitions(filters, state)
        rows = self._rows(partitions, _until(filters), limit + 1, place)
        page, following = page_of(rows, limit)
        return FailedPage(jobs=tuple(self._load(page)), cursor=following)

    @reaching_broker
    def count(self, **filters: Unpack[Filters]) -> int:
        """How many failed jobs are open."""
        return sum(self._counts(self._partitions(filters), _until(filters)))

    @reaching_broker
    def counts(self) -> tuple[FailedCount, ...]:
        """How many are open by app id, job and reason; the most first."""
        partitions = self._partitions({})
        found = []
        for partition, count in zip(partitions, self._counts(partitions, None), strict=True):
            app_id, job, reason, _ = parse_netstrings(partition)
            if count:
                found.append(
                    FailedCount(app_id=app_id, job=job, reason=Reason(reason), count=count)
                )
        return tuple(sorted(found, key=lambda kind: (-kind.count, kind.app_id, kind.job)))

    @reaching_broker
    def dropped(self) -> int:
        """How many were let go so far, because they were too old or too many."""
        return int(self._client.get(self._keys.failed_dropped) or 0)

    # -- replay and discard -----------------------------------------------------------------

    @reaching_broker
    def replay(self, task_id: str) -> str:
        """Send a failed job again, with its payload byte for byte, its attempts counted anew.

        Returns:
            The id that it runs under now.

        Raises:
            UnknownFailureError: no failed job has this id.
            ReplayError: it was replayed before, or its message cannot be read.
        """
        while True:
            record, held = self._read([task_id])[0]
            if record is None or held is None:
                raise UnknownFailureError(f"no failed job is kept under the id {task_id!r}")
            status, new_id = self._replay(task_id, record, held)
            if status == b"replayed":
                return new_id

    @reaching_broker
    def replay_all(self, **filters: Unpack[Filters]) -> int:
        """Send again all that are open now and fit the filters, the first failed first.

        Messages that cannot be read are left. Returns how many were sent.
        """
        replayed = 0
        for ids in self._all(filters):
            for task_id, (record, held) in zip(ids, self._read(ids), strict=True):
                if record is None or held is None:
                    continue
                try:
                    status, _ = self._replay(task_id, record, held)
                except ReplayError:
                    continue
                replayed += status == b"replayed"
        return replayed

    @reaching_broker
    def discard(self, task_id: str) -> bool:
        """Let a failed job go for good; whether there was one."""
        return bool(self._run(scripts.DISCARD, task_id))

    @reaching_broker
    def discard_all(self, **filters: Unpack[Filters]) -> int:
        """Let go for good all that are open now and fit the filters. Returns how many."""
        discarded = 0
        for ids in self._all(filters):
            discarded += self._run(scripts.DISCARD, *ids)
        return discarded

    # -- inner ------------------------------------------------------------------------------

    def _run(self, script: scripts.Script, *args: Any, queue: Sequence[str] = ()) -> Any:
        keys = [*self._keys.fixed, *self._keys.failures, *queue]
        return script(self._client, keys, [self._keys.prefix, *args])

    def _now(self) -> float:
        seconds, micros = self._client.time()
        return float(seconds * 1000 + micros / 1000)

    def _partitions(self, filters: Filters, state: str = OPEN) -> Sequence[str]:
        app_id, job, reason = filters.get("app_id"), filters.get("job"), filters.get("reason")
        reason = None if reason is None else Reason(reason)  # so that its text is one, too
        wanted = []
        for name in sorted(self._client.smembers(self._keys.failed_parts)):
            partition = name.decode()
            app, task, why, condition = parse_netstrings(partition)
            if (
                condition == state
                and fits(app_id, job, app, task)
                and reason in (None, Reason(why))
            ):
                wanted.append(partition)
        return wanted

    def _ask(self, partitions: Sequence[str], ask: Callable[[Any, str], object]) -> Iterator[Any]:
        """The answers to a command about the key of each partition."""
        for some in chunks(partitions, _PARTITIONS):
            pipe = self._client.pipeline(transaction=False)
            for partition in some:
                ask(pipe, self._keys.failed_part(partition))
            yield from pipe.execute()

    def _counts(self, partitions: Sequence[str], until: float | None) -> Sequence[int]:
        """How many of each partition there are; what is to be let go by its age is left out."""
        oldest, newest = self._now() - KEPT_FOR, "+inf" if until is None else f"({until}"
        return list(self._ask(partitions, lambda pipe, key: pipe.zcount(key, oldest, newest)))

    def _rows(
        self, partitions: Sequence[str], until: float | None, limit: int, place: _Row | None
    ) -> Sequence[_Row]:
        """The newest behind a place, over all partitions."""
        oldest, newest = self._now() - KEPT_FOR, "+inf" if until is None else f"({until}"
        if place is not None and (until is None or place[0] < until):
            newest = repr(place[0])

        def ask(pipe: Any, key: str) -> None:
            # one more than wanted: the place itself; no two fail at one microsecond
            pipe.zrevrangebyscore(key, newest, oldest, 0, limit + 1, withscores=True)

        replies = self._ask(partitions, ask)
        rows = ((float(at), name.decode()) for reply in replies for name, at in reply)
        return nlargest(limit, (row for row in rows if place is None or row < place))

    def _all(self, filters: Filters) -> Iterator[Sequence[str]]:
        """The ids of all that are open now, the oldest first, in batches."""
        until, now = _until(filters), self._now()
        before = f"({now if until is None else min(until, now)}"
        replies = self._ask(
            self._partitions(filters),
            lambda pipe, key: pipe.zrangebyscore(key, "-inf", before, withscores=True),
        )
        rows = sorted((float(at), name.decode()) for reply in replies for name, at in reply)
        yield from chunks([task_id for _, task_id in rows], _BATCH)

    def _load(self, rows: Sequence[_Row]) -> Sequence[FailedJob]:
        """Read these failed jobs, without their messages; what is gone meanwhile is left out."""
        if not rows:
            return []
        records = self._client.hmget(self._keys.failed, [task_id for _, task_id in rows])
        return [
            FailedJob.parse(record, at)
            for (at, _), record in zip(rows, records, strict=True)
            if record is not None
        ]

    def _read(self, ids: Sequence[str]) -> Sequence[tuple[bytes | None, bytes | None]]:
        """Records and messages of some ids."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hmget(self._keys.failed, ids)
        pipe.hmget(self._keys.failed_messages, ids)
        return list(zip(*pipe.execute(), strict=True))

    def _replay(self, task_id: str, record: bytes, held: bytes) -> tuple[bytes, str]:
        queue, raw = take(held)
        failure = FailedJob.parse(record, 0, raw=raw)
        if failure.replayed_as is not None:
            raise ReplayError(
                f"{task_id} was replayed already, as {failure.replayed_as}; if that failed too, "
                "replay it under that id"
            )
        new_id = str(uuid4())
        message = replay_message(failure.envelope, task_id, new_id)
        again = replace(failure, replayed_as=new_id)
        args = (scripts.REPLAY, task_id, record, again.record, message)
        status: bytes
        if self._send is None:
            status = self._run(*args, queue=[queue.decode()])
            return status, new_id
        with self._client.lock(self._keys.replay_lock(task_id), timeout=_SENDING):
            if self._client.hget(self._keys.failed, task_id) != record:
                return b"changed", new_id
            # first: if this is killed in between, it is replayed twice rather than never
            self._send(queue.decode(), message)
            status = self._run(*args)
            return status, new_id


def _until(filters: Filters) -> float | None:
    before = filters.get("before")
    return None if before is None else milliseconds(before, "before")


class FailureKeeper:
    """Puts jobs to the failed ones, and lets those go that are too old or too many.

    Args:
        keys: the key names.
        most: how many failed jobs are kept.
    """

    __slots__ = ("_keys", "_most")

    def __init__(self, keys: Keys, most: int) -> None:
        self._keys: Final = keys
        self._most: Final = most

    def move(
        self, client: Redis | Connection, inflight: str, failures: Mapping[str, FailedJob]
    ) -> Iterator[tuple[str, bool]]:
        """Move messages from those in flight to the failed jobs, which acknowledges them.

        Args:
            client: what to send the commands by.
            inflight: the in-flight hash of the lease that has them.
            failures: tag in flight → why and how it failed.

        Yields:
            Each tag, when that is done, and whether the lease still had it.
        """
        dropped = 0
        try:
            for tag, failure in failures.items():
                what = (tag, failure.id, failure.partition, failure.details)
                kept, gone = self._run(scripts.FAIL, client, *what, keys=[inflight])
                dropped += gone
                yield tag, bool(kept)
        finally:
            self._warn(dropped)

    def keep(self, client: Redis | Connection, failure: FailedJob, held: str) -> None:
        """Put a message of another broker to the failed jobs.

        Args:
            client: what to send the command by.
            failure: why and how it failed.
            held: its queue, as a netstring, and the message.
        """
        what = (failure.id, failure.partition, failure.details, held)
        self._warn(self._run(scripts.KEEP, client, *what))

    def trim(self, client: Redis | Connection) -> bool:
        """Let some go that are too old or too many; return whether there are no more of those."""
        dropped: int = self._run(scripts.TRIM, client)
        self._warn(dropped)
        return dropped < _TRIM

    def _run(
        self,
        script: scripts.Script,
        client: Redis | Connection,
        *args: str,
        keys: Sequence[str] = (),
    ) -> Any:
        return script(
            client,
            [*self._keys.fixed, *self._keys.failures, *keys],
            [self._keys.prefix, *args, KEPT_FOR, self._most, _TRIM],
        )

    def _warn(self, dropped: int) -> None:
        if dropped:
            logger.warning(
                "%s failed jobs were let go: they were older than 30 days, or more than "
                "posthog_jobs_max_failures=%s were kept. Replay or discard failed jobs, or raise "
                "that.",
                dropped,
                self._most,
            )
