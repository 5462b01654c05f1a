"""What the list of failed jobs answers with: a failed job, a page of them, how many of a kind."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from posthog_jobs.broker.reasons import Reason
from posthog_jobs.broker.records import body_of, check_shape, take
from posthog_jobs.jobs.moments import moment_of

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedJob:
    """A job that ended without success, kept with its message.

    Attributes:
        id: task id; a new one for a message that has none.
        app_id: app id; empty for a Celery task of no app.
        job: task name, `posthog_jobs.<app name>.<job name>`; empty if the message names none.
        reason: why it is kept.
        exception: class of what was raised.
        message: what the exception says, without secrets; it may quote the payload.
        traceback: where it was raised, without secrets; it may quote the payload.
        worker: name of the worker.
        attempts: how often it was run, counting its retries.
        key: the key that it waited under, if it had one.
        due: when it was due, in UTC, if it was delayed.
        started: when its last attempt began, in UTC, if it did.
        ended: when its last attempt ended, in UTC, by the worker's clock.
        failed: when it was kept, in UTC, by Redis' clock; failed jobs are listed by it.
        replay_of: the id of the failed job that it was a replay of.
        replayed_as: the id that it was sent again under; it is history then, and not open.
        queue: Redis list that it came from; empty in a list.
        raw: the message as it was on the broker; empty in a list.
    """

    id: str
    app_id: str
    job: str
    reason: Reason
    exception: str
    message: str = field(repr=False)
    traceback: str = field(repr=False)
    worker: str
    attempts: int
    key: str | None
    due: datetime | None
    started: datetime | None
    ended: datetime
    failed: datetime
    replay_of: str | None
    replayed_as: str | None
    queue: str = ""
    raw: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, record: bytes, at: float, *, queue: str = "", raw: bytes = b"") -> Self:
        """Read a value of the hash `failed`.

        Args:
            record: the value; see `lua/failed_lib.lua` for its shape.
            at: when it was kept, in ms since the epoch.
            queue: Redis list that it came from.
            raw: its message.
        """
        details = details_of(record)
        moments = {
            name: None if details[name] is None else moment_of(details[name])
            for name in ("due", "started", "ended")
        }
        return cls(
            **{**details, **moments, "reason": Reason(details["reason"])},
            failed=moment_of(int(at)),
            queue=queue,
            raw=raw,
        )

    @property
    def envelope(self) -> dict[str, Any] | None:
        """The message, decoded: `headers`, `properties`, and the still encoded `body`.

        None when it is no message.
        """
        try:
            decoded: dict[str, Any] = json.loads(self.raw)
            check_shape(decoded)
        except (ValueError, TypeError, RecursionError):
            return None
        return decoded

    @property
    def body(self) -> bytes | None:
        """The message's body as its serializer made it; None when it cannot be read."""
        try:
            return None if self.envelope is None else body_of(self.envelope)
        except Exception:  # noqa: BLE001  # as a compression that nobody knows
            return None


def details_of(record: bytes) -> dict[str, Any]:
    """Return the details in a value of the hash `failed`, as a `Failure` has them."""
    _, details = take(record)
    decoded: dict[str, Any] = json.loads(details)
    return decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPage:
    """Some of the failed jobs, the newest first; `cursor` leads on, None at the end."""

    jobs: tuple[FailedJob, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCount:
    """How many jobs of an app id and a name failed for a reason, and are open."""

    app_id: str
    job: str
    reason: Reason
    count: int
