"""What the commands print of jobs that wait."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from posthog_jobs.operate.cli.output import print_json

if TYPE_CHECKING:
    from posthog_jobs.broker.schedule import Forecast, WaitingJob
    from posthog_jobs.jobs.message import Steered


def described(waiting: WaitingJob, *, error_class_alone: bool = False) -> dict[str, Any]:
    """Return what is known of a job that waits, but its payload.

    Args:
        waiting: the job.
        error_class_alone: leave out what its last error says, which may quote the payload.
    """
    return {
        "id": waiting.id,
        "app": waiting.app_id or None,
        "job": waiting.job.rpartition(".")[2] if waiting.app_id else None,
        "task": waiting.job,
        "due": waiting.due.isoformat(),
        "key": waiting.key,
        "queue": waiting.queue,
        "attempt": waiting.attempt,
        "error": _error_class(waiting) if error_class_alone else waiting.last_error,
    }


def attempt(waiting: WaitingJob) -> str:
    """Return which attempt a job waits for, and after what."""
    error = _error_class(waiting)
    return str(waiting.attempt) if error is None else f"{waiting.attempt}, after {error}"


def _error_class(waiting: WaitingJob) -> str | None:
    # the message may quote a payload
    return None if waiting.last_error is None else waiting.last_error.partition(":")[0]


def counts(coming: Forecast) -> dict[str, int]:
    """Return how many come due in each period."""
    return {
        period: getattr(coming, period)
        for period in ("minute", "hour", "day", "week", "month", "later")
    }


_SENTENCES = {
    "cancelled": "cancelled",
    "rescheduled": "moved",
    "queued": "sent to its queue",
    "promoted": "had left for its queue already: it may be running, or have run",
    "unknown": "does not wait",
}


def report(outcomes: dict[str, Steered], *, as_json: bool) -> None:
    """Print what became of jobs, and exit with 1 if one of them did not wait."""
    if as_json:
        print_json({task_id: steered.value for task_id, steered in outcomes.items()})
    else:
        for task_id, steered in outcomes.items():
            click.echo(f"{task_id}: {_SENTENCES[steered.value]}")
    if not all(steered.waited for steered in outcomes.values()):
        sys.exit(1)
