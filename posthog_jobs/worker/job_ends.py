"""How a job ended: one value for whoever is told, such as the log and the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from time import time
from typing import TYPE_CHECKING, Final

from celery.exceptions import (
    Ignore,
    NotRegistered,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

from posthog_jobs import errors
from posthog_jobs.broker.envelope import DUE_HEADER, SENT_HEADER
from posthog_jobs.broker.failure import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from posthog_jobs.worker.requests import DiscreetRequest


#: No due time is later, in ms since the epoch: the year 9999 is over.
_LAST_MS: Final = 253_402_300_800_000

#: How Celery says that the process is gone; `Terminated`, too, after the connection was lost.
_LOST: Final = (WorkerLostError, Terminated, SystemExit, KeyboardInterrupt)


class Result(Enum):
    """What became of one delivery of a job."""

    #: It ran to its end.
    SUCCEEDED = "succeeded"
    #: It is kept as failed.
    FAILED = "failed"
    #: It was sent again, due later: after `RetryError`, or because its app is not there.
    RETRIED = "retried"
    #: It was revoked, or expired; it does not run again.
    REVOKED = "revoked"
    #: The process that ran it died; it is delivered again.
    LOST = "lost"


class SentAgain(Ignore):
    """Ends a delivery whose job was sent again; Celery acknowledges what raises it.

    Attributes:
        delay: seconds until it is due.
    """

    def __init__(self, delay: float) -> None:
        super().__init__(delay)  # as its arguments, with which it is unpickled
        self.delay = delay


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """The end of one delivery of a job, or of a hook's task.

    Attributes:
        app_id: the installation; empty for the task of `capture`, which is of no app.
        app: the app's name; empty if nobody knows it.
        job: the name that the job is exported under, or the name of a hook's task.
        id: the task id.
        attempt: counts the runs that `RetryError` asked for, from 1 on.
        lateness: seconds between when it was due, or sent, and when it started; None if it did
            not start, or its message does not say.
        duration: seconds that it ran; None if it did not start.
        result: what became of it.
        reason: why it is kept as failed.
        delay: seconds until a retry is due.
    """

    app_id: str
    app: str
    job: str
    id: str
    attempt: int
    lateness: float | None
    duration: float | None
    result: Result
    reason: Reason | None = None
    delay: float | None = None

    @classmethod
    def of(
        cls,
        request: DiscreetRequest,
        result: Result,
        reason: Reason | None,
        delay: float | None,
        duration: float | None,
    ) -> JobEnd:
        """Describe the end of a request.

        Args:
            request: what has ended; its message may hold anything.
            result: what became of it.
            reason: why it is kept as failed.
            delay: seconds until a retry is due.
            duration: seconds that it ran, if that is known; else it has ended just now.
        """
        headers, start = request.request_dict, request.time_start
        if duration is None and start is not None:
            duration = time() - start
        due = _due(headers.get(DUE_HEADER, headers.get(SENT_HEADER)), request.eta)
        retries = headers.get("retries")
        app, job = request.subject
        return cls(
            app_id=request.app_id,
            app=app,
            job=job,
            id=request.id,
            attempt=1 + (retries if isinstance(retries, int) else 0),
            # the due time is by Redis' clock, or its sender's, and the start by this machine's
            lateness=None if start is None or due is None else max(0.0, start - due),
            duration=duration,
            result=result,
            reason=reason,
            delay=delay,
        )


def _due(milliseconds: object, eta: datetime | None) -> float | None:
    if isinstance(milliseconds, int) and abs(milliseconds) < _LAST_MS:
        return milliseconds / 1000
    return None if eta is None else eta.timestamp()  # as RabbitMQ brings it


def result_of(error: BaseException) -> tuple[Result, Reason | None, float | None]:
    """Return result, reason and delay of a delivery that an exception ended."""
    if isinstance(error, SentAgain):
        return Result.RETRIED, None, error.delay
    if isinstance(error, Retry):
        return Result.RETRIED, None, None
    if isinstance(error, Ignore):
        return Result.REVOKED, None, None
    if isinstance(error, _LOST) or (isinstance(error, Reject) and error.requeue):
        return Result.LOST, None, None
    return Result.FAILED, reason_of(error), None


#: The first class that an exception is of decides.
_REASONS: Final = (
    (errors.RetriesExhaustedError, Reason.RETRIES_EXHAUSTED),
    (errors.JobTimeLimitError, Reason.TIME_LIMIT),
    (TimeLimitExceeded, Reason.TIME_LIMIT),
    (SoftTimeLimitExceeded, Reason.TIME_LIMIT),
    (errors.WorkerLostTooOftenError, Reason.WORKER_LOST),
    (WorkerLostError, Reason.WORKER_LOST),
    (errors.AppDisabledError, Reason.APP_DISABLED),
    (errors.AppRemovedError, Reason.APP_REMOVED),
    (errors.AppLoadError, Reason.APP_BROKEN),
    (errors.AppConfigError, Reason.APP_BROKEN),
    (errors.AppSetupError, Reason.APP_BROKEN),
    (errors.UnknownAppError, Reason.UNKNOWN_APP),
    (errors.UnknownJobError, Reason.UNKNOWN_JOB),
    (NotRegistered, Reason.UNKNOWN_JOB),
    (errors.PayloadRefusedError, Reason.PAYLOAD_REFUSED),
)


def reason_of(error: BaseException) -> Reason:
    """Return why a job that raised this is kept as failed."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return Reason.EXCEPTION
