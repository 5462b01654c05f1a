"""A job on its way to a worker, and who brings it to the broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from datetime import datetime


class Absent:
    """The type of `ABSENT`, which stands for no payload, as no value of an app can."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


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
class JobMessage:
    """A job on its way to a worker.

    Attributes:
        id: the task id.
        app_id: the installation that runs it.
        app_name: the app that exports it.
        job_name: the exported name.
        payload: its payload, or ABSENT.
        payload_bytes: the payload's size as JSON.
        due: when it shall run, in UTC.
        waits: whether that is later than now, so that it waits in the schedule until then.
        key: at most one job of the app and name waits under it, if it has one.
        if_waiting: what becomes of one that waits under it already: `replace` it, or `keep` it
            and do not send this one.
    """

    id: str
    app_id: str
    app_name: str
    job_name: str
    payload: Any = field(repr=False)
    payload_bytes: int
    due: datetime
    waits: bool = False
    key: str | None = None
    if_waiting: str = "replace"


class Sender(Protocol):
    """What brings a job to the broker."""

    def now(self) -> datetime:
        """Return the present, in UTC, from which durations count."""

    def measure(self, payload: object) -> int:
        """Return the size of a payload in bytes; raise PayloadTooLargeError over the limit."""

    def due(self, moment: datetime, now: datetime) -> datetime:
        """Return when the broker lets go of a job that waits for a moment, never before it.

        Raises:
            DelayTooLongError: the broker cannot hold it until then.
        """

    def send(self, message: JobMessage) -> tuple[str, datetime]:
        """Enqueue a job; raise BrokerUnavailableError if that cannot be done.

        Returns:
            The id that waits, or runs, now, and when it is due: the job's own, or those of the
            one that waited under its key and was kept.
        """

    def capture(self, event: dict[str, Any], task_id: str, size: int) -> None:
        """Enqueue a checked event of this size; raise BrokerUnavailableError if that fails."""

    def cancel(self, task_id: str) -> Steered:
        """Take a job out of the schedule."""

    def reschedule(self, task_id: str, at: datetime) -> Steered:
        """Move a job that waits."""
