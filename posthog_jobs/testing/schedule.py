"""What waits, in memory: takes what `meta.jobs` sends as the broker's schedule does."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from posthog_jobs.jobs.message import ABSENT, Steered
from posthog_jobs.jobs.payload import dumps, loads, measure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from posthog_jobs.jobs.message import JobMessage
    from posthog_jobs.testing.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledJob:
    """A job that was triggered and has not run, or a hook that is run again.

    Attributes:
        id: the handle's.
        name: the exported name; of a hook Python's.
        payload: its payload, as it arrives; ABSENT if it has none. Of a hook the event, or events.
        due: when it is due, in UTC.
        key: the key it waits under, if it has one.
        sent_key: the key that it was triggered with; a retry waits under none.
        attempt: how often it has raised `RetryError`.
        sent: when it was triggered, or sent again after `RetryError`.
        is_hook: whether it is a hook.
    """

    id: str
    name: str
    payload: Any
    due: datetime
    key: str | None
    sent_key: str | None
    attempt: int
    sent: datetime
    is_hook: bool = False


class MemorySchedule:
    """A `messages.Sender` that keeps all it is given. Threads may share it.

    Attributes:
        captured: the events that `meta.posthog` was given, in order.
    """

    __slots__ = ("_clock", "_jobs", "_largest", "_lock", "_promoted", "_queued", "captured")

    def __init__(self, clock: Clock, largest: int) -> None:
        """Begin with nothing.

        Args:
            clock: decides what is due.
            largest: the most bytes that a payload may have as JSON.
        """
        self._clock: Final = clock
        self._largest: Final = largest
        self._lock: Final = threading.RLock()
        self._jobs: Final[dict[str, ScheduledJob]] = {}  # in the order in which they were sent
        self._queued: Final[set[str]] = set()  # has left the schedule, or was never in it
        self._promoted: Final[set[str]] = set()  # has left the schedule
        self.captured: Final[list[dict[str, Any]]] = []

    @property
    def jobs(self) -> Sequence[ScheduledJob]:
        """What has not run, in the order in which it will."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: job.due)

    def now(self) -> datetime:
        """Return what the clock shows."""
        return self._clock.now

    def measure(self, payload: object) -> int:
        """Return the size of a payload in bytes; raise PayloadTooLargeError over the limit."""
        return measure(payload, self._largest)

    def check_delay(self, seconds: float) -> None:
        """Take any, as Redis does."""

    def send(self, message: JobMessage) -> tuple[str, datetime]:
        """Keep a job until it is taken; what waits under its key gives way, or stays."""
        payload = message.payload
        if payload is not ABSENT:
            payload = loads(dumps(payload))
        with self._lock:
            self._promote()
            for other in list(self._jobs.values()):
                if message.key is not None and self._waits_under(other, message):
                    if message.if_waiting == "keep":
                        return other.id, other.due
                    del self._jobs[other.id]
            self._add(
                ScheduledJob(
                    id=message.id,
                    name=message.job_name,
                    payload=payload,
                    due=message.due,
                    key=message.key,
                    sent_key=message.key,
                    attempt=0,
                    sent=self.now(),
                )
            )
        return message.id, message.due

    def capture(self, event: dict[str, Any], task_id: str, size: int) -> None:  # noqa: ARG002
        """Keep an event, as it arrives."""
        self.captured.append(loads(dumps(event)))

    def cancel(self, task_id: str) -> Steered:
        """Take a job out of the schedule, or, as a revoke does, out of its queue."""
        with self._lock:
            steered = self._steered(task_id, Steered.CANCELLED)
            self._jobs.pop(task_id, None)
        return steered

    def reschedule(self, task_id: str, at: datetime) -> Steered:
        """Move a job that waits."""
        with self._lock:
            steered = self._steered(
                task_id, Steered.QUEUED if at <= self.now() else Steered.RESCHEDULED
            )
            if steered.waited:
                self._jobs[task_id] = replace(self._jobs[task_id], due=max(at, self.now()))
                self._promote()
        return steered

    def take(self, job: ScheduledJob) -> None:
        """Take a job out, to run it."""
        with self._lock:
            self._promote()
            del self._jobs[job.id]

    def wait_for_hook(self, name: str, payload: object, delay: float) -> None:
        """Let a hook that was run once, and raised `RetryError`, wait for so many seconds."""
        now = self.now()
        first = ScheduledJob(
            id=str(uuid4()),
            name=name,
            payload=loads(dumps(payload)),
            due=now,
            key=None,
            sent_key=None,
            attempt=0,
            sent=now,
            is_hook=True,
        )
        self.again(first, delay)

    def again(self, job: ScheduledJob, delay: float) -> None:
        """Let a job that was taken wait for so many seconds, under its id and no key."""
        now = self.now()
        due = now + timedelta(seconds=delay)
        with self._lock:
            self._queued.discard(job.id)
            self._promoted.discard(job.id)
            self._add(replace(job, due=due, key=None, attempt=job.attempt + 1, sent=now))

    def _add(self, job: ScheduledJob) -> None:
        self._jobs[job.id] = job
        if job.due <= self.now():
            self._queued.add(job.id)

    def _promote(self) -> None:
        """Note what the turned clock has made due; its key is free then."""
        now = self.now()
        due = {job.id for job in self._jobs.values() if job.due <= now} - self._queued
        self._queued.update(due)
        self._promoted.update(due)

    def _waits_under(self, job: ScheduledJob, message: JobMessage) -> bool:
        return job.id not in self._queued and (job.name, job.key) == (
            message.job_name,
            message.key,
        )

    def _steered(self, task_id: str, done: Steered) -> Steered:
        self._promote()
        if task_id in self._jobs and task_id not in self._queued:
            return done
        return Steered.PROMOTED if task_id in self._promoted else Steered.UNKNOWN
