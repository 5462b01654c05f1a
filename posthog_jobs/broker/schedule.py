"""What waits: list it, count it, cancel it, move it, and see what comes due when.

Works on the transport's keys alone, so any process that reaches the broker can steer. A job waits
here from the call that sends it until it is due; then it is in its queue and Celery's to control
(`app.control.revoke`). The answers of this module say which of the two it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self

from posthog_jobs.broker import scripts
from posthog_jobs.broker.envelope import (
    ERROR_HEADER,
    body_of,
    parse_partition,
    parse_record,
    partition_of,
)
from posthog_jobs.broker.listing import checked_limit, chunks, fits, page_of, parse_cursor
from posthog_jobs.broker.redis import reaching_broker
from posthog_jobs.jobs.due import EPOCH, due_at, milliseconds, moment_of
from posthog_jobs.jobs.message import Steered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from posthog_jobs.broker.redis import Keys, RedisServer


#: Partitions and rows per script call, and jobs per batch of `cancel_all`, so that each call is
#: short for the server.
_PARTITIONS: Final = 200
_ROWS: Final = 2000
_BATCH: Final = 500
_PERIODS: Final = {
    "minute": 60_000,
    "hour": 3_600_000,
    "day": 86_400_000,
    "week": 7 * 86_400_000,
    "month": 30 * 86_400_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """A job that waits.

    Attributes:
        id: task id.
        app_id: app id; empty for a Celery task that is no job.
        job: task name, `posthog_jobs.<app name>.<job name>`.
        due: when it is due, in UTC.
        key: the key it waits under, if it has one.
        queue: Redis list that it will go to.
        raw: the message, JSON in Celery's protocol 2.
    """

    id: str
    app_id: str
    job: str
    due: datetime
    key: str | None
    queue: str
    raw: bytes = field(repr=False)

    @classmethod
    def parse(cls, task_id: str, record: bytes, due: int) -> Self:
        """Read a value of the hash `waiting`; it is due at so many ms since the epoch."""
        queue, partition, key, raw = parse_record(task_id, record)
        app_id, job = parse_partition(partition)
        return cls(
            id=task_id,
            app_id=app_id,
            job=job,
            due=moment_of(due),
            key=key or None,
            queue=queue,
            raw=raw,
        )

    @property
    def attempt(self) -> int:
        """Which run it waits for, from 1 on; those that `RetryError` asked for count."""
        retries = self.message["headers"].get("retries")
        return retries + 1 if isinstance(retries, int) else 1

    @property
    def last_error(self) -> str | None:
        """Class and message of what the run before raised, up to 500 characters, if there was one.

        It is the app's text, and may quote a payload.
        """
        error = self.message["headers"].get(ERROR_HEADER)
        return error if isinstance(error, str) else None

    @property
    def message(self) -> dict[str, Any]:
        """The message, decoded: `headers`, `properties`, and the still encoded `body`."""
        decoded: dict[str, Any] = json.loads(self.raw)
        return decoded

    @property
    def body(self) -> bytes:
        """The message's body as its serializer made it: args, kwargs and callbacks."""
        return body_of(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some of what waits, in the order in which it is due; `cursor` leads on, None at the end."""

    jobs: tuple[WaitingJob, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How many come due when; each period begins where the one before ends.

    Attributes:
        minute: due within a minute, or overdue.
        hour: within an hour, but not within a minute; and so on. A month is 30 days.
        late: by how much the first is overdue; zero when nothing is.
    """

    minute: int
    hour: int
    day: int
    week: int
    month: int
    later: int
    late: timedelta

    @property
    def total(self) -> int:
        """How many wait."""
        return self.minute + self.hour + self.day + self.week + self.month + self.later


#: Due time, partition and id of what waits: listed in this order, which needs no search for a
#: place in a partition but its own.
_Row = tuple[int, str, str]
_Rows = list[_Row]


class Schedule:
    """What waits on one broker.

    Args:
        server: the broker.
        revoke: called with the id of a job that `cancel` found to have left the schedule.

    Every method raises BrokerUnavailableError when Redis does not answer, and
    UnsupportedByBrokerError when the broker is not Redis.
    """

    __slots__ = ("_revoke", "_server")

    def __init__(
        self, server: RedisServer, *, revoke: Callable[[str], object] | None = None
    ) -> None:
        self._server: Final = server
        self._revoke: Final = revoke

    @property
    def _client(self) -> Any:
        return self._server.connected()[0]

    @property
    def _keys(self) -> Keys:
        return self._server.connected()[1]

    @reaching_broker
    def check(self) -> None:
        """Connect, if that has not been done; raises what each method raises then."""
        self._server.connected()

    # -- look -------------------------------------------------------------------------------

    @reaching_broker
    def get(self, task_id: str) -> WaitingJob | None:
        """The job that waits under this id, or None."""
        client, keys = self._client, self._keys
        record = client.hget(keys.waiting, task_id)
        if record is None:
            return None
        _, partition, *_ = parse_record(task_id, record)
        due = client.zscore(keys.due(partition), task_id)
        return None if due is None else WaitingJob.parse(task_id, record, int(due))

    @reaching_broker
    def under_key(self, key: str, jobs: Sequence[tuple[str, str]]) -> Sequence[str | None]:
        """The id, or None, that waits under a key for each pair of app id and task name."""
        fields = [f"{partition_of(app_id, job)}{key}" for app_id, job in jobs]
        found = self._client.hmget(self._keys.keyed, fields) if fields else []
        return [None if task_id is None else task_id.decode() for task_id in found]

    @reaching_broker
    def list(
        self,
        *,
        app_id: str | None = None,
        job: str | None = None,
        before: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Some of what waits, the first due first.

        Args:
            app_id: of this app only.
            job: of this job name or task name only.
            before: due before this moment only; aware.
            limit: how many at most.
            cursor: `Page.cursor` of the page before.

        Raises:
            NaiveDatetimeError: `before` has no time zone.
            PageError: `cursor` is none of ours, or `limit` is not a whole number above 0.
        """
        checked_limit(limit)
        due, partition, task_id = parse_cursor(cursor, (int, str, str), "Page") or (0, "", "")
        until = None if before is None else milliseconds(before, "before")
        partitions = self._partitions(app_id, job)
        rows = self._first(partitions, limit + 1, (due, partition, task_id))
        if until is not None:
            rows = [row for row in rows if row[0] < until]
        page, following = page_of(rows, limit)
        return Page(jobs=tuple(self._load(page)), cursor=following)

    @reaching_broker
    def count(
        self,
        *,
        app_id: str | None = None,
        job: str | None = None,
        before: datetime | None = None,
    ) -> int:
        """How many wait; see `list` for the filters."""
        if app_id is None and job is None and before is None:
            return int(self._client.hlen(self._keys.waiting))
        until = None if before is None else milliseconds(before, "before")
        pipe = self._client.pipeline(transaction=False)
        for partition in self._partitions(app_id, job):
            if until is None:
                pipe.zcard(self._keys.due(partition))
            else:
                pipe.zcount(self._keys.due(partition), "-inf", f"({until}")
        return sum(pipe.execute())

    @reaching_broker
    def forecast(self, *, app_id: str | None = None, job: str | None = None) -> Forecast:
        """How many come due in the next minute, hour, day, week, month, and later."""
        totals, late = [0] * (len(_PERIODS) + 1), 0
        periods = [len(_PERIODS), *_PERIODS.values()]
        for some in chunks(self._partitions(app_id, job), _PARTITIONS):
            *counts, first = self._run(scripts.FORECAST, *periods, *some)
            late = max(late, -first)
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
        steps = [later - earlier for earlier, later in zip([0, *totals], totals, strict=False)]
        names = (*_PERIODS, "later")
        return Forecast(late=timedelta(milliseconds=late), **dict(zip(names, steps, strict=True)))

    # -- steer ------------------------------------------------------------------------------

    @reaching_broker
    def cancel(self, task_id: str) -> Steered:
        """Take a job out of the schedule: CANCELLED, PROMOTED or UNKNOWN.

        After CANCELLED it never runs. After PROMOTED it may be running, or have run; it has been
        revoked in all workers, so that one that still has to start it does not.
        """
        steered = Steered(self._run(scripts.CANCEL, task_id).decode())
        if steered is Steered.PROMOTED and self._revoke is not None:
            self._revoke(task_id)
        return steered

    @reaching_broker
    def cancel_all(self, *, app_id: str, job: str | None = None) -> int:
        """Take all jobs of an app, or of one of its task names, out of the schedule.

        In batches, so that Redis answers others meanwhile. Returns how many there were.
        """
        cancelled = 0
        for partition in self._partitions(app_id, job):
            while taken := self._run(scripts.CANCEL_SOME, partition, _BATCH):
                cancelled += taken
        return cancelled

    @reaching_broker
    def reschedule(self, task_id: str, at: datetime) -> Steered:
        """Move a job to another time: RESCHEDULED, QUEUED (`at` is past), PROMOTED or UNKNOWN.

        Raises:
            NaiveDatetimeError, DueError: `at` is no usable time; nothing was changed.
        """
        due = milliseconds(due_at(at, now=EPOCH, call="reschedule"), "at")
        return Steered(self._run(scripts.RESCHEDULE, task_id, due).decode())

    @reaching_broker
    def run_now(self, task_id: str) -> Steered:
        """Send a job to its queue before its time: QUEUED, PROMOTED or UNKNOWN."""
        return Steered(self._run(scripts.RESCHEDULE, task_id, 0).decode())

    # -- inner ------------------------------------------------------------------------------

    def _run(self, script: scripts.Script, *args: Any) -> Any:
        return script(self._client, self._keys.fixed, [self._keys.prefix, *args])

    def _partitions(self, app_id: str | None, job: str | None) -> Sequence[str]:
        if app_id is not None and job is not None and "." in job:
            return [partition_of(app_id, job)]
        partitions = [name.decode() for name in self._client.zrange(self._keys.heads, 0, -1)]
        if app_id is None and job is None:
            return partitions
        return [part for part in partitions if fits(app_id, job, *parse_partition(part))]

    def _first(self, partitions: Sequence[str], limit: int, place: _Row) -> _Rows:
        """The first few over all partitions, in the order of rows, reading few more than needed."""
        heads = zip(self._page(partitions, 1, place), partitions, strict=True)
        # Only partitions whose first is among the first `limit` can have anything among them.
        chosen = [part for _, part in sorted((rows[0], part) for rows, part in heads if rows)][
            :limit
        ]
        if not chosen:
            return []
        some = 2 * limit // len(chosen) + 1
        found = dict(zip(chosen, self._page(chosen, some, place), strict=True))
        merged = sorted(row for rows in found.values() for row in rows)
        last = merged[limit - 1] if len(merged) >= limit else None
        short = [
            part
            for part, rows in found.items()
            if len(rows) == some < limit and (last is None or rows[-1] < last)
        ]
        if short:
            found.update(zip(short, self._page(short, limit, place), strict=True))
            merged = sorted(row for rows in found.values() for row in rows)
        return merged[:limit]

    def _page(self, partitions: Sequence[str], limit: int, place: _Row) -> Sequence[_Rows]:
        due, own, task_id = place
        pages = []
        for some in chunks(partitions, max(1, min(_PARTITIONS, _ROWS // limit))):
            where = [
                "behind" if part < own else "within" if part == own else "from" for part in some
            ]
            pairs = [word for pair in zip(where, some, strict=True) for word in pair]
            reply = self._run(scripts.PAGE, limit, due, task_id, *pairs)
            for part, found in zip(some, reply, strict=True):
                rows = zip(found[1::2], found[::2], strict=True)
                pages.append([(int(score), part, name.decode()) for score, name in rows])
        return pages

    def _load(self, rows: Sequence[_Row]) -> Sequence[WaitingJob]:
        """Read what waits there; what was promoted meanwhile is left out."""
        ids = [task_id for _, _, task_id in rows]
        records = self._client.hmget(self._keys.waiting, ids) if ids else []
        return [
            WaitingJob.parse(task_id, record, due)
            for (due, _, task_id), record in zip(rows, records, strict=True)
            if record is not None
        ]
