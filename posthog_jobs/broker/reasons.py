"""Why a job ended without success, as the failed jobs that are kept say it."""

from __future__ import annotations

from enum import Enum
from typing import Final

from celery.exceptions import (
    NotRegistered,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)

from posthog_jobs import errors


class Reason(Enum):
    """Why a job is kept as failed."""

    #: The app's code raised something that is no `RetryError`.
    EXCEPTION = "exception"
    #: It raised `RetryError` at every attempt that its policy allows.
    RETRIES_EXHAUSTED = "retries exhausted"
    #: It ran longer than its time limit.
    TIME_LIMIT = "time limit"
    #: The process that ran it died, as often as `posthog_jobs_max_deliveries` allows.
    WORKER_LOST = "worker lost too often"
    #: Its installation is disabled.
    APP_DISABLED = "app disabled"
    #: Its installation was uninstalled.
    APP_REMOVED = "app removed"
    #: Its app cannot be loaded, its config is wrong, or its `setup_plugin` failed.
    APP_BROKEN = "app broken"
    #: No installation has its app id.
    UNKNOWN_APP = "unknown app"
    #: The app exports no job of its name, or nobody knows its task.
    UNKNOWN_JOB = "unknown job"
    #: The message cannot be read as a task.
    UNDECODABLE = "undecodable message"
    #: The job's function does not take its payload any more.
    PAYLOAD_REFUSED = "payload no longer accepted"


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
