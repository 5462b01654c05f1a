"""Runs what comes due while a test's clock is turned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import PostHogJobsError, RetriesExhaustedError, RetryError
from posthog_jobs.jobs.retry import delay_after
from posthog_jobs.testing.recorder import FailedJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from posthog_jobs.jobs.ready_job import ReadyJob
    from posthog_jobs.testing.clock import Clock
    from posthog_jobs.testing.schedule import MemorySchedule, ScheduledJob

#: So many jobs that were triggered at one instant run at it before that counts as endless.
_MOST_AT_ONCE: Final = 1000


def run_until(
    end: datetime,
    clock: Clock,
    schedule: MemorySchedule,
    prepare: Callable[[ScheduledJob], ReadyJob],
) -> Iterator[tuple[ScheduledJob, FailedJob | None]]:
    """Run what is due by a moment, in order, with the clock turned to each job's due time.

    Args:
        end: the moment, which the clock shows at last.
        clock: the clock that the schedule goes by.
        schedule: what waits; a job that raises `RetryError` waits there again.
        prepare: returns what runs a job.

    Yields:
        Each job after it has run, and its failure if it failed for good.

    Raises:
        PostHogJobsError: jobs trigger each other at one instant without an end.
    """
    at_once = 0
    while (waiting := schedule.jobs) and waiting[0].due <= end:
        job = waiting[0]
        clock.turn_to(job.due)
        at_once = at_once + 1 if job.due <= job.sent else 0
        if at_once > _MOST_AT_ONCE:
            raise PostHogJobsError(
                f"over {_MOST_AT_ONCE} jobs were triggered and due at the same instant, "
                f"{clock.now.isoformat()}, the last of them {job.name!r}; let what triggers "
                "itself end, or use run_in"
            )
        schedule.take(job)
        yield job, _attempt(job, schedule, prepare(job))
    clock.turn_to(end)


def _attempt(job: ScheduledJob, schedule: MemorySchedule, run: ReadyJob) -> FailedJob | None:
    failure: Exception
    what = f"{'hook' if job.is_hook else 'job'} {job.name!r}"
    try:
        run()
    except RetryError as error:
        delay = delay_after(error, run.retry, job.attempt)
        if delay is not None:
            schedule.again(job, delay)
            return None
        failure = RetriesExhaustedError(
            f"{what} raised RetryError at each of {job.attempt + 1} attempts; the last one: {error}"
        )
        failure.__cause__ = error
    except Exception as error:  # noqa: BLE001  # whoever runs the jobs raises it, or keeps it
        failure = error
    else:
        return None
    failure.add_note(f"raised by {what}, which was due at {job.due.isoformat()}")
    return FailedJob(job=job, error=failure)
