"""What the schedule answers with: a job that waits, a page of them, a forecast, what a call did."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from posthog_jobs.broker.envelope import ERROR_HEADER, body_of

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class Steered(Enum):
    """What a steering call did."""

    #: It waited, and does not any more.
    CANCELLED = "cancelled"
    #: It waits still, for another time.
    RESCHEDULED = "rescheduled"
    #: It waited, and is in its queue now.
    QUEUED = "queued"
    #: It had been due and left for its queue: it may be there, running, or done. Nothing changed.
    PROMOTED = "promoted"
    #: Nothing waits under this id, and nothing was promoted under it lately. Nothing changed.
    UNKNOWN = "unknown"

    @property
    def waited(self) -> bool:
        """Whether it waited, so that the call did what it was asked for."""
        return self not in (Steered.PROMOTED, Steered.UNKNOWN)


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
