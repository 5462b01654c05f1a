"""What waits, in memory, and how it is run while a test turns its clock."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from posthog_jobs.errors import AppRaisedError, PostHogJobsError, RetriesExhaustedError, RetryError
from posthog_jobs.jobs.due import due_at, due_in, moment_of
from posthog_jobs.jobs.message import ABSENT, Steered
from posthog_jobs.jobs.payload import dumps, loads, measure
from posthog_jobs.jobs.retry import delay_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from posthog_jobs.errors import Number
    from posthog_jobs.hooks.events import PluginEvent
    from posthog_jobs.jobs.execution import ReadyJob
    from posthog_jobs.jobs.message import JobMessage

_FIRST: Final = datetime.min.replace(tzinfo=UTC)

#: So many jobs that were triggered at one instant run at it before that counts as endless.
_MOST_AT_ONCE: Final = 1000


class Clock:
    """The time that `run_in`, a ttl and a waiting job go by; it never goes back."""

    __slots__ = ("_now",)

    def __init__(self, now: datetime | None = None) -> None:
        """Set the clock.

        Args:
            now: an aware datetime; None for the present, which app code that asks Python for the
                time reckons from, too.
        """
        # whole milliseconds, as due times have them: a delay is then what it was asked to be
        present = moment_of(time_ns() // 1_000_000)
        self._now = present if now is None else due_at(now, now=_FIRST, call="Clock")

    @property
    def now(self) -> datetime:
        """What it shows, an aware datetime in UTC."""
        return self._now

    def turn(self, number: Number, unit: str) -> None:
        """Turn it on by a duration, in the units of `run_in`, and run nothing.

        Raises:
            DurationError: the number or the unit is not one.
        """
        self._now = due_in(number, unit, now=self._now)

    def turn_to(self, moment: datetime) -> None:
        """Turn it on to a moment, an aware datetime; one that has passed leaves it as it is."""
        self._now = due_at(moment, now=self._now, call="turn_to")

    def __repr__(self) -> str:
        return f"<Clock {self._now.isoformat()}>"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedJob:
    """A job that failed for good.

    Attributes:
        job: which one, as it was when it ran for the last time.
        error: what it raised; RetriesExhaustedError if that was `RetryError` to the last.
    """

    job: ScheduledJob
    error: Exception


class MemorySchedule:
    """A `Sender` that keeps all it is given; what is due by the clock has left for its queue.

    Threads may share it.

    Attributes:
        captured: the events that `meta.posthog` was given, in order.
    """

    __slots__ = ("_clock", "_jobs", "_largest", "_lock", "_promoted", "captured")

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
        self._promoted: Final[set[str]] = set()  # waited, and does not any more
        self.captured: Final[list[PluginEvent]] = []

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

    def due(self, moment: datetime, now: datetime) -> datetime:  # noqa: ARG002
        """Return the same: any moment can be waited for, as on Redis."""
        return moment

    def send(self, message: JobMessage) -> tuple[str, datetime]:
        """Keep a job until it is taken; what waits under its key gives way, or stays."""
        payload = message.payload
        job = ScheduledJob(
            id=message.id,
            name=message.job_name,
            payload=payload if payload is ABSENT else loads(dumps(payload)),
            due=message.due,
            key=message.key,
            sent_key=message.key,
            attempt=0,
            sent=self.now(),
        )
        with self._lock:
            for other in self.jobs if job.key is not None else ():
                if (other.name, other.key) == (job.name, job.key) and other.due > job.sent:
                    if message.if_waiting == "keep":
                        return other.id, other.due
                    del self._jobs[other.id]
            self._jobs[job.id] = job
        return job.id, job.due

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
            now = self.now()
            steered = self._steered(task_id, Steered.QUEUED if at <= now else Steered.RESCHEDULED)
            if steered.waited:
                self._jobs[task_id] = replace(self._jobs[task_id], due=max(at, now))
            if steered is Steered.QUEUED:
                self._promoted.add(task_id)
        return steered

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
        self._again(first, delay)

    def run_until(
        self, end: datetime, prepare: Callable[[ScheduledJob], ReadyJob]
    ) -> Iterator[tuple[ScheduledJob, FailedJob | None]]:
        """Run what is due by a moment, in order, with the clock turned to each job's due time.

        Args:
            end: the moment, which the clock shows at last.
            prepare: returns what runs a job.

        Yields:
            Each job after it has run, and its failure if it failed for good.

        Raises:
            PostHogJobsError: jobs trigger each other at one instant without an end.
        """
        clock, at_once = self._clock, 0
        while (waiting := self.jobs) and waiting[0].due <= end:
            job = waiting[0]
            clock.turn_to(job.due)
            at_once = at_once + 1 if job.due <= job.sent else 0
            if at_once > _MOST_AT_ONCE:
                raise PostHogJobsError(
                    f"over {_MOST_AT_ONCE} jobs were triggered and due at the same instant, "
                    f"{clock.now.isoformat()}, the last of them {job.name!r}; let what triggers "
                    "itself end, or use run_in"
                )
            self.cancel(job.id)
            yield job, self._attempt(job, prepare(job))
        clock.turn_to(end)

    def _attempt(self, job: ScheduledJob, ready: ReadyJob) -> FailedJob | None:
        failure: Exception
        what = f"{'hook' if job.is_hook else 'job'} {job.name!r}"
        try:
            with as_worker():
                ready.run()
        except RetryError as error:
            delay = delay_after(error, ready.retry, job.attempt)
            if delay is not None:
                self._again(job, delay)
                return None
            failure = RetriesExhaustedError(
                f"{what} raised RetryError at each of {job.attempt + 1} attempts; the last one: "
                f"{error}"
            )
            failure.__cause__ = error
        except Exception as error:  # noqa: BLE001  # whoever runs the jobs raises it, or keeps it
            failure = error
        else:
            return None
        failure.add_note(f"raised by {what}, which was due at {job.due.isoformat()}")
        return FailedJob(job=job, error=failure)

    def _again(self, job: ScheduledJob, delay: float) -> None:
        """Let a job that has run wait for so many seconds, under its id and no key."""
        now = self.now()
        due = now + timedelta(seconds=delay)
        with self._lock:
            self._promoted.discard(job.id)
            self._jobs[job.id] = replace(job, due=due, key=None, attempt=job.attempt + 1, sent=now)

    def _steered(self, task_id: str, done: Steered) -> Steered:
        """Return what was done to a job if it waits, else what has become of it."""
        job = self._jobs.get(task_id)
        if job is not None and job.due > self.now():
            return done
        if job is not None and job.due > job.sent:
            self._promoted.add(task_id)
        return Steered.PROMOTED if task_id in self._promoted else Steered.UNKNOWN


@contextmanager
def as_worker() -> Iterator[None]:
    """Let app code end the process no more than it can in a worker.

    Ctrl-C, and what `pytest.fail` raises, are the test's own, and pass.
    """
    try:
        yield
    except SystemExit as error:
        raise AppRaisedError(
            f"the app called sys.exit({error.code!r}); return, or raise an exception, instead"
        ) from error
