"""`meta.jobs`: an app's jobs, by name, to be triggered now, at a time or later; and their handles.

The API is that of PostHog's jobs documentation, spelt as Python does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn
from uuid import uuid4

from posthog_jobs.errors import JobCallError, UnknownJobError, did_you_mean
from posthog_jobs.jobs.due import due_at, due_in
from posthog_jobs.jobs.message import ABSENT, JobMessage
from posthog_jobs.jobs.payload import check_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from datetime import datetime

    from posthog_jobs.errors import Number
    from posthog_jobs.jobs.execution import LoopCaller
    from posthog_jobs.jobs.function import JobFunction
    from posthog_jobs.jobs.message import Sender, Steered

_MAX_KEY: Final = 200


@dataclass(frozen=True, slots=True)
class Outbox:
    """How jobs get to the broker: by whom, and on which thread for coroutines."""

    sender: Sender
    caller: LoopCaller


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose jobs are triggered, which there are, and how they get to the broker."""

    app_id: str
    app_name: str
    jobs: Mapping[str, JobFunction]
    outbox: Outbox

    def __str__(self) -> str:
        return f"app {self.app_name!r} (app id {self.app_id!r})"


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
        self._sent: Final = outbox.caller.call(send_off, what)

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
        return self._outbox.caller.call(lambda: sender.cancel(place.id), f"cancelling {place.id}")

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

        return self._outbox.caller.call(move, f"rescheduling {place.id}")

    def __await__(self) -> Generator[object, None, None]:
        if self._sent is not None:
            yield from self._sent.__await__()

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} due {self.due.isoformat()}>"


class JobCall:
    """A job and its payload, checked, before it is said when it shall run."""

    __slots__ = ("_message", "_origin")

    def __init__(self, origin: Origin, message: Callable[..., JobMessage]) -> None:
        """Remember what the job is.

        Args:
            origin: whose it is.
            message: makes its message of `id`, `due` and `waits`.
        """
        self._origin: Final = origin
        self._message: Final = message

    def run_now(self) -> JobHandle:
        """Run the job as soon as a worker is free.

        Returns:
            A handle; the job is enqueued whether it is awaited or not.

        Raises:
            BrokerUnavailableError: nothing was enqueued. In a running event loop it is raised
                where the handle is awaited.
        """
        now = self._now()
        return self._send(now, now)

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
        now = self._now()
        return self._send(due_at(moment, now=now), now)

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
        now = self._now()
        return self._send(due_in(number, unit, now=now), now)

    def _now(self) -> datetime:
        return self._origin.outbox.sender.now()

    def _send(self, due: datetime, now: datetime) -> JobHandle:
        outbox = self._origin.outbox
        if waits := due > now:
            due = outbox.sender.due(due, now)
        message = self._message(id=str(uuid4()), due=due, waits=waits)
        what = f"enqueueing {message.job_name!r} of {self._origin}"
        return JobHandle(message.id, due, outbox, partial(outbox.sender.send, message), what)


class TriggerableJob:
    """One of an app's jobs; calling it with a payload, or none, gives what says when."""

    __slots__ = ("_job", "_origin")

    def __init__(self, origin: Origin, job: JobFunction) -> None:
        self._origin: Final = origin
        self._job: Final = job

    def __call__(
        self,
        *payload: object,
        key: str | None = None,
        if_waiting: Literal["replace", "keep"] = "replace",
        **unknown: object,
    ) -> JobCall:
        """Take the job's payload: any JSON value, None too, or no argument for no payload.

        Args:
            payload: the payload, or nothing.
            key: at most one job of this name, app and key waits. A second call takes the place of
                the first one, which is how to wait for the last of many; up to 200 characters.
            if_waiting: "replace", or "keep" for the first one to stay, and this one to be nothing.
            unknown: nothing; a job has one payload.

        Raises:
            JobCallError: the job's function cannot be called so, or the key is not one.
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
        if key is not None and not _is_key(key):
            shown = repr(key[:40]) if isinstance(key, str) else repr(key)[:60]
            self._refuse(
                f"cannot have the key {shown}", f"use 1 to {_MAX_KEY} printable characters"
            )
        if if_waiting not in ("replace", "keep"):
            self._refuse(f"cannot have if_waiting={if_waiting!r:.60}", 'use "replace" or "keep"')
        origin = self._origin
        value: object = ABSENT
        if payload:
            check_payload(payload[0])
            # what is sent is what was given and checked now
            value = copy.deepcopy(payload[0])
        message = partial(
            JobMessage,
            app_id=origin.app_id,
            app_name=origin.app_name,
            job_name=job.name,
            payload=value,
            payload_bytes=self._origin.outbox.sender.measure(value) if payload else 0,
            key=key,
            if_waiting=if_waiting,
        )
        return JobCall(self._origin, message)

    def _refuse(self, why: str, fix: str) -> NoReturn:
        raise JobCallError(f"job {self._job.name!r} of {self._origin} {why}; {fix}")


class Jobs:
    """The jobs that an app exports: `meta.jobs.name(payload)` or `meta.jobs["name"](payload)`."""

    # two underscores in front: every other name may be a job's
    __slots__ = ("__origin",)

    def __init__(self, origin: Origin) -> None:
        self.__origin: Final = origin

    def __getitem__(self, name: str) -> TriggerableJob:
        jobs = self.__origin.jobs
        if name in jobs:
            return TriggerableJob(self.__origin, jobs[name])
        raise UnknownJobError(
            f"{self.__origin} exports no job {name!r}; {did_you_mean(name, jobs)}it exports: "
            f"{', '.join(jobs) or 'none'}"
        )

    def __getattr__(self, name: str) -> TriggerableJob:
        # Python asking what this object can do, or for the slot of one that is not made yet
        if name == "_Jobs__origin" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self.__origin.jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self.__origin.jobs)

    def __len__(self) -> int:
        return len(self.__origin.jobs)

    def __dir__(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return f"<Jobs of {self.__origin}: {', '.join(self) or 'none'}>"


def _is_key(key: object) -> bool:
    # printable, so that a listing shows it
    return isinstance(key, str) and 0 < len(key) <= _MAX_KEY and key.isprintable()
