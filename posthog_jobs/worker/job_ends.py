"""How a job ended: one value for the metrics, and one line in the log, in place of Celery's two."""

from __future__ import annotations

import json
import logging
import re
import warnings
from dataclasses import dataclass
from enum import Enum
from time import time
from typing import TYPE_CHECKING, Any, Final

from celery.exceptions import (
    CPendingDeprecationWarning,
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
from posthog_jobs.jobs.running import extra, logger_with_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

logger: Final = logger_with_fields("posthog_jobs.jobs")

_LINE: Final = "job=%s app=%s app_id=%s id=%s attempt=%d lateness=%s duration=%s result=%s"

_PLAIN_WORD: Final = re.compile(r"[\w.:@/+-]+")
_LONGEST_WORD: Final = 300

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


#: A failure is Celery's own ERROR already, with its traceback.
_LEVELS: Final = {
    Result.SUCCEEDED: logging.INFO,
    Result.RETRIED: logging.INFO,
    Result.REVOKED: logging.INFO,
    Result.FAILED: logging.WARNING,
    Result.LOST: logging.WARNING,
}


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


def tell(  # what a request knows of itself
    error: BaseException | None,
    headers: Mapping[str, Any],
    eta: datetime | None,
    start: float | None,
    listener: Callable[[JobEnd], object] | None,
    **facts: Any,
) -> None:
    """Tell the log, and a listener, that a delivery has ended just now.

    Args:
        error: what ended it; None if it ran to its end.
        headers: its message's, which may hold anything.
        eta: when it was due, where its headers do not say.
        start: when it started, in seconds since the epoch; None if it did not.
        listener: who is told beside the log.
        facts: what else a `JobEnd` has.
    """
    result, reason, delay = (Result.SUCCEEDED, None, None) if error is None else result_of(error)
    if listener is None and not logger.isEnabledFor(_LEVELS[result]):
        return
    due = headers.get(DUE_HEADER, headers.get(SENT_HEADER))
    if isinstance(due, int) and abs(due) < _LAST_MS:
        due /= 1000
    else:
        due = None if eta is None else eta.timestamp()  # as RabbitMQ brings it
    retries = headers.get("retries")
    end = JobEnd(
        attempt=1 + (retries if isinstance(retries, int) else 0),
        # the due time is by Redis' clock, or its sender's, and the start by this machine's
        lateness=None if start is None or due is None else max(0.0, start - due),
        duration=None if start is None else time() - start,
        result=result,
        reason=reason,
        delay=delay,
        **facts,
    )
    write(end)
    if listener is not None:
        listener(end)


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


def write(end: JobEnd) -> None:
    """Log the end of a job.

    What the line says is also in the record, for formatters that write JSON: as attributes, named
    as in the line but for `task_id`.
    """
    level = _LEVELS[end.result]
    if not logger.isEnabledFor(level):
        return
    result = end.result.value
    fields = {
        "job": end.job,
        "app": end.app,
        "app_id": end.app_id,
        "task_id": end.id,
        "attempt": end.attempt,
        "lateness": end.lateness,
        "duration": end.duration,
        "result": result,
    }
    more = ""
    if end.reason is not None:
        fields["reason"] = reason = end.reason.value
        more = f" reason={_word(reason)}"
    elif end.delay is not None:
        fields["delay"] = end.delay
        more = f" delay={end.delay:g}"
    logger.log(
        level,
        _LINE,
        end.job,
        end.app or "-",
        _word(end.app_id),
        _word(end.id),
        end.attempt,
        _seconds(end.lateness),
        _seconds(end.duration),
        result + more,
        extra=extra(fields),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _word(text: str) -> str:
    """Return a text as one word, which no message of a stranger can make two lines of."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    return json.dumps(text[:_LONGEST_WORD]) if text else "-"


class _CelerysLines(logging.Filter):
    """Drops what Celery says of our tasks when they are received, and when they end well."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass, unless our own line says the same; a result stays in its line."""
        data = getattr(record, "data", None)
        if record.levelno > logging.INFO or not isinstance(data, dict):
            return True
        result = data.get("return_value")
        if isinstance(result, str) and not result.isprintable():
            # what a stranger had one of Celery's own tasks return; these are the line's arguments
            data["return_value"] = ascii(result)[1:-1]
        return not str(data.get("name")).startswith("posthog_jobs.")


_celerys_lines: Final = _CelerysLines()


def replace_celerys() -> None:
    """Leave out Celery's INFO lines about our tasks, and a warning; any number of times."""
    # of what Celery may do with running jobs once the connection is lost; ours stay on their lease
    warnings.filterwarnings("ignore", r"\s*In Celery 5\.1", CPendingDeprecationWarning)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).addFilter(_celerys_lines)
