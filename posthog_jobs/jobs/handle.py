"""The handle of a job that was triggered: what it is, when it is due, and how to change that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.jobs.due import due_at

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from datetime import datetime

    from posthog_jobs.jobs.message import Outbox, Steered


@dataclass(slots=True)
class _Place:
    """What a handle speaks of; known for sure only once the job is sent."""

    id: str
    due: datetime


class JobHandle:
    """A job that was triggered. Awaiting it waits until the broker has it, and gives None."""

    __slots__ = ("_outbox", "_place", "_sent")

    def __init__(
        self,
        task_id: str,
        due: datetime,
        outbox: Outbox,
        send: Callable[[], tuple[str, datetime]],
        what: str,
    ) -> None:
        # apart from the handle: an error's frames refer to it, and must not keep the handle alive
        place = _Place(task_id, due)

        def send_off() -> None:
            place.id, place.due = send()

        self._place: Final = place
        self._outbox: Final = outbox
        self._sent: Final = outbox.lane.call(send_off, what)

    @property
    def id(self) -> str:
        """The task id; once it is sent, that of the job which its key kept waiting, if one."""
        return self._place.id

    @property
    def due(self) -> datetime:
        """When the job is due, an aware datetime in UTC."""
        return self._place.due

    def cancel(self) -> Any:
        """Take the job out of the schedule, or revoke it if it has left that and not started.

        Returns:
            A `posthog_jobs.jobs.message.Steered`, which says whether it waited; in a running
            event loop an awaitable of that.

        Raises:
            BrokerUnavailableError: the broker does not answer.
            UnsupportedByBrokerError: this broker cannot.
        """
        place, sender = self._place, self._outbox.sender
        return self._outbox.lane.call(lambda: sender.cancel(place.id), f"cancelling {place.id}")

    def reschedule(self, at: datetime) -> Any:
        """Move the job to another time, or run it now if that has passed.

        Args:
            at: an aware datetime.

        Returns:
            As `cancel`. `due` changes only if the job waited.

        Raises:
            NaiveDatetimeError, DueError: it is no usable time; nothing was changed.
            BrokerUnavailableError, UnsupportedByBrokerError: as `cancel`.
        """
        place, sender = self._place, self._outbox.sender
        due = due_at(at, now=sender.now(), call="reschedule")

        def move() -> Steered:
            steered = sender.reschedule(place.id, due)
            if steered.waited:
                place.due = due
            return steered

        return self._outbox.lane.call(move, f"rescheduling {place.id}")

    def __await__(self) -> Generator[object, None, None]:
        if self._sent is not None:
            yield from self._sent.__await__()

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} due {self.due.isoformat()}>"
