"""`meta.jobs`: an app's jobs, by name, to be triggered now, at a time or after a while.

The API is that of PostHog's jobs documentation, spelt as Python does.
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from uuid import uuid4

from posthog_jobs.durations import due_at, due_in
from posthog_jobs.errors import JobCallError, UnknownJobError
from posthog_jobs.lane import in_event_loop
from posthog_jobs.payloads import check_payload

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from posthog_jobs.definitions import JobFunction
    from posthog_jobs.durations import Number
    from posthog_jobs.installations import Installation
    from posthog_jobs.lane import Lane, Pending


class Absent:
    """The type of `ABSENT`, which stands for no payload, as no value of an app can."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


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
        eta: the same for `run_at`, else None.
        countdown: seconds until then for `run_in`, else None.
    """

    id: str
    app_id: str
    app_name: str
    job_name: str
    payload: Any
    payload_bytes: int
    due: datetime
    eta: datetime | None = None
    countdown: float | None = None


class Sender(Protocol):
    """What brings a job to the broker."""

    def measure(self, payload: object) -> int:
        """Return the size of a payload in bytes; raise PayloadTooLargeError over the limit."""

    def check_delay(self, seconds: float) -> None:
        """Raise DelayTooLongError for a delay that the broker cannot hold."""

    def send(self, message: JobMessage) -> None:
        """Enqueue a job; raise BrokerUnavailableError if that cannot be done."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose jobs are triggered, and how they get to the broker."""

    installation: Installation
    sender: Sender
    lane: Lane

    def __str__(self) -> str:
        return f"app {self.installation.definition.name!r} (app id {self.installation.id!r})"


class JobHandle:
    """A job that was triggered. Awaiting it waits until the broker has it, and gives None.

    Attributes:
        id: the task id.
        due: when the job is due, an aware datetime in UTC.
    """

    __slots__ = ("_sent", "due", "id")

    def __init__(self, id: str, due: datetime, sent: Pending[None] | None) -> None:  # noqa: A002
        self.id: Final = id
        self.due: Final = due
        self._sent: Final = sent

    def __await__(self) -> Generator[object, None, None]:
        if self._sent is not None:
            yield from self._sent.__await__()

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} due {self.due.isoformat()}>"


class JobCall:
    """A job and its payload, checked, before it is said when it shall run."""

    __slots__ = ("_job", "_origin", "_payload", "_payload_bytes")

    def __init__(
        self, origin: Origin, job: JobFunction, payload: object, payload_bytes: int
    ) -> None:
        self._origin: Final = origin
        self._job: Final = job
        self._payload: Final = payload
        self._payload_bytes: Final = payload_bytes

    def run_now(self) -> JobHandle:
        """Run the job as soon as a worker is free.

        Returns:
            A handle; the job is enqueued whether it is awaited or not.

        Raises:
            BrokerUnavailableError: nothing was enqueued. In a running event loop it is raised
                where the handle is awaited.
        """
        return self._send(datetime.now(UTC))

    def run_at(self, moment: datetime) -> JobHandle:
        """Run the job at a moment; now if that has passed.

        Args:
            moment: an aware datetime.

        Returns:
            A handle, as `run_now`.

        Raises:
            NaiveDatetimeError: the datetime has no time zone.
            DueError: it is no datetime, or lies past year 9999, or later than the broker can hold
                a job (DelayTooLongError; RabbitMQ alone has a limit).
            BrokerUnavailableError: as `run_now`.
        """
        now = datetime.now(UTC)
        due = due_at(moment, now=now)
        self._origin.sender.check_delay((due - now).total_seconds())
        return self._send(due, eta=due if due > now else None)

    def run_in(self, number: Number, unit: str) -> JobHandle:
        """Run the job after a while.

        Args:
            number: how many units, 0 or more; whole for months, quarters and years.
            unit: milliseconds, seconds, minutes, hours, days, weeks, months, quarters or years,
                in the singular or the plural; the last three are those of the calendar in UTC.

        Returns:
            A handle, as `run_now`.

        Raises:
            DurationError: the number or the unit is not one, or the end lies past year 9999.
            DelayTooLongError: the broker is RabbitMQ, which holds a job for 8.5 years at most.
            BrokerUnavailableError: as `run_now`.
        """
        now = datetime.now(UTC)
        due = due_in(number, unit, now=now)
        delay = (due - now).total_seconds()
        self._origin.sender.check_delay(delay)
        return self._send(due, countdown=delay or None)

    def _send(
        self, due: datetime, eta: datetime | None = None, countdown: float | None = None
    ) -> JobHandle:
        installation, sender = self._origin.installation, self._origin.sender
        message = JobMessage(
            id=str(uuid4()),
            app_id=installation.id,
            app_name=installation.definition.name,
            job_name=self._job.name,
            # what is sent a moment later is what was given now
            payload=copy.deepcopy(self._payload) if in_event_loop() else self._payload,
            payload_bytes=self._payload_bytes,
            due=due,
            eta=eta,
            countdown=countdown,
        )
        sent = self._origin.lane.call(
            lambda: sender.send(message), f"enqueueing {self._job.name!r} of {self._origin}"
        )
        return JobHandle(message.id, due, sent)


class TriggerableJob:
    """One of an app's jobs; calling it with a payload, or none, gives what says when."""

    __slots__ = ("_job", "_origin")

    def __init__(self, origin: Origin, job: JobFunction) -> None:
        self._origin: Final = origin
        self._job: Final = job

    def __call__(self, *payload: object, **unknown: object) -> JobCall:
        """Take the job's payload: any JSON value, None too, or no argument for no payload.

        Raises:
            JobCallError: the job's function cannot be called so.
            PayloadError: the payload cannot travel, or is too large.
        """
        job = self._job
        if unknown or len(payload) > 1:
            self._refuse("takes one payload", "put all its values into one list or dict")
        if payload and not job.takes_payload:
            self._refuse(
                "takes no payload", f"call it with none, or write it as {job.name}(payload, meta)"
            )
        if not payload and not job.takes_none:
            self._refuse(
                "needs a payload", f"pass one, which may be None, or write it as {job.name}(meta)"
            )
        if not payload:
            return JobCall(self._origin, job, ABSENT, 0)
        check_payload(payload[0])
        size = self._origin.sender.measure(payload[0])
        return JobCall(self._origin, job, payload[0], size)

    def _refuse(self, why: str, fix: str) -> NoReturn:
        raise JobCallError(f"job {self._job.name!r} of {self._origin} {why}; {fix}")


class Jobs:
    """The jobs that an app exports: `meta.jobs.name(payload)` or `meta.jobs["name"](payload)`."""

    # two underscores in front: every other name may be a job's
    __slots__ = ("__origin",)

    def __init__(self, origin: Origin) -> None:
        self.__origin: Final = origin

    def __getitem__(self, name: str) -> TriggerableJob:
        jobs = self.__origin.installation.definition.jobs
        if name in jobs:
            return TriggerableJob(self.__origin, jobs[name])
        close = difflib.get_close_matches(str(name), jobs, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? It" if close else "it"
        raise UnknownJobError(
            f"{self.__origin} exports no job {name!r}; {hint} exports: {', '.join(jobs) or 'none'}"
        )

    def __getattr__(self, name: str) -> TriggerableJob:
        if name.startswith("__") and name.endswith("__"):  # Python asking what this object can do
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self.__origin.installation.definition.jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self.__origin.installation.definition.jobs)

    def __len__(self) -> int:
        return len(self.__origin.installation.definition.jobs)

    def __dir__(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return f"<Jobs of {self.__origin}: {', '.join(self) or 'none'}>"
