"""What a test says of the jobs that were triggered."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from posthog_jobs.jobs.due import due_at, due_in
from posthog_jobs.jobs.message import ABSENT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from posthog_jobs.errors import Number
    from posthog_jobs.testing.schedule import FailedJob, MemorySchedule, ScheduledJob


#: Stands for what is not given; not `unittest.mock.ANY`, whose module takes long to import.
_ANY: Final = object()


class JobsRecorder:
    """The jobs of an app under test: which are scheduled, and which have failed.

    Attributes:
        failed: those that failed for good, in order.
    """

    __slots__ = ("_schedule", "failed")

    def __init__(self, schedule: MemorySchedule) -> None:
        self._schedule: Final = schedule
        self.failed: Final[list[FailedJob]] = []

    @property
    def scheduled(self) -> Sequence[ScheduledJob]:
        """What was triggered and has not run, `run_now()` too, in the order in which it is due."""
        return self._schedule.jobs

    def assert_scheduled(
        self,
        name: str,
        *,
        payload: object = _ANY,
        in_: tuple[Number, str] | None = None,
        at: datetime | None = None,
        key: object = _ANY,
    ) -> ScheduledJob:
        """Check that a job was triggered and has not run. What is not given may be anything.

        Args:
            name: the exported name.
            payload: equal to its payload; ABSENT: it has none.
            in_: after how long, from what the clock shows, it is due, as `run_in` takes it;
                `(0, "seconds")` for `run_now()`.
            at: when it is due, an aware datetime; instead of `in_`.
            key: its key; None: it has none.

        Returns:
            The first job that fits.

        Raises:
            AssertionError: there is none; the message lists what is scheduled.
            DurationError, NaiveDatetimeError: `in_` or `at` cannot be.
        """
        __tracebackhide__ = True
        wanted = self._wanted(name, payload, in_, at, key)
        found = next((job for job in self.scheduled if not _differing(job, wanted)), None)
        if found is None:
            self._fail(f"not scheduled: {self._shown(wanted)}", wanted)
        return found

    def assert_not_scheduled(
        self,
        name: str,
        *,
        payload: object = _ANY,
        in_: tuple[Number, str] | None = None,
        at: datetime | None = None,
        key: object = _ANY,
    ) -> None:
        """Check that no such job waits; arguments as for `assert_scheduled`.

        Raises:
            AssertionError: there is one.
        """
        __tracebackhide__ = True
        wanted = self._wanted(name, payload, in_, at, key)
        if any(not _differing(job, wanted) for job in self.scheduled):
            self._fail(f"scheduled, and should not be: {self._shown(wanted)}", wanted)

    def assert_nothing_scheduled(self) -> None:
        """Check that all jobs that were triggered have run.

        Raises:
            AssertionError: one has not.
        """
        __tracebackhide__ = True
        if self.scheduled:
            self._fail("nothing should be scheduled")

    def _wanted(
        self,
        name: str,
        payload: object,
        in_: tuple[Number, str] | None,
        at: datetime | None,
        key: object,
    ) -> dict[str, Any]:
        if in_ is not None and at is not None:
            raise TypeError("say either in_ or at, not both")
        now = self._schedule.now()
        due: object = _ANY if at is None else due_at(at, now=now, call="at")
        if in_ is not None:
            due = due_in(*in_, now=now)
        wanted = {"name": name, "payload": payload, "due": due, "key": key}
        return {field: value for field, value in wanted.items() if value is not _ANY}

    def _fail(self, what: str, wanted: Mapping[str, Any] = MappingProxyType({})) -> NoReturn:
        __tracebackhide__ = True
        lines = []
        differing = [_differing(job, wanted) for job in self.scheduled]
        least = min(map(len, differing), default=0)
        for job, fields in zip(self.scheduled, differing, strict=True):
            near = fields and len(fields) == least and "name" not in fields
            mark = f"   <- differs in {', '.join(fields)}" if near else ""
            lines.append(f"\n  {self._shown(_fields(job))}{mark}")
        raise AssertionError(f"{what}\nscheduled: {''.join(lines) or 'nothing'}")

    def _shown(self, fields: Mapping[str, Any]) -> str:
        shown = [str(fields["name"])]
        if "payload" in fields:
            absent = fields["payload"] is ABSENT
            shown.append("without payload" if absent else f"payload={fields['payload']!r}")
        if "due" in fields:
            delay = fields["due"] - self._schedule.now()
            shown.append(f"due in {delay} at {fields['due'].isoformat()}")
        if fields.get("key") is not None:
            shown.append(f"key={fields['key']!r}")
        return ", ".join(shown)


def _fields(job: ScheduledJob) -> dict[str, Any]:
    return {"name": job.name, "payload": job.payload, "due": job.due, "key": job.key}


def _differing(job: ScheduledJob, wanted: Mapping[str, Any]) -> list[str]:
    """Return the fields in which a job is not what is wanted."""
    fields = _fields(job)
    return [field for field, value in wanted.items() if value != fields[field]]
