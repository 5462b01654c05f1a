"""The requests of a Celery worker: a job that failed is kept, and no payload is shown."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry, Terminated, TimeLimitExceeded
from celery.utils.log import get_logger

from posthog_jobs.broker.envelope import APP_HEADER
from posthog_jobs.broker.failure import FailedJob
from posthog_jobs.redaction import showable
from posthog_jobs.worker import job_log
from posthog_jobs.worker.job_ends import JobEnd, Result, reason_of, result_of
from posthog_jobs.worker.pools import can_cancel
from posthog_jobs.worker.request import Request
from posthog_jobs.worker.validation import check_job, check_task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.broker.failure import Reason
    from posthog_jobs.celery import PostHogJobs

logger = get_logger(__name__)

#: What a task raises, or is ended by, that is no failure of it.
_NO_FAILURES: Final = (Ignore, Reject, Retry, Terminated)

#: What logs and Flower may show of a job's arguments; see `durable_task.describe`.
_DESCRIPTION: Final = re.compile(
    r"\((?:'[\w.-]{0,100}',(?: (?:<\d{1,15} bytes>|\d{1,15}))?|<\d{1,15} bytes>)\)", re.ASCII
)


def keep(  # noqa: PLR0913  # keyword-only facts about one failure
    app: PostHogJobs,
    message: Any,
    reason: Reason,
    error: BaseException,
    *,
    worker: str,
    traceback: str = "",
    started: float | None = None,
    headers: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """See to it that the message is kept as failed when it is acknowledged.

    Args:
        app: the Celery app.
        message: the broker's.
        reason: why it is kept.
        error: what was raised.
        worker: name of the worker.
        traceback: where it was raised.
        started: when the attempt began, in seconds since the epoch.
        headers: what the message's own headers may lack.

    Returns:
        The id that it will be kept under.
    """
    failure = FailedJob.of(
        {**headers, **message.headers} if isinstance(message.headers, dict) else {},
        fallback_id=str(uuid4()),
        reason=reason,
        error=error,
        traceback=traceback,
        worker=worker,
        started=started,
    )
    try:
        app.broker.keep(failure, message)
    except Exception as obstacle:  # noqa: BLE001  # what it holds may be anything
        logger.error(  # noqa: TRY400  # a traceback would say no more
            "%s[%s] failed (%s), and is kept in this log alone: %s",
            failure.job,
            failure.id,
            failure.reason.value,
            obstacle,
        )
    return failure.id


class KeepingRequest(Request):
    """A request that is kept as failed where Celery acknowledges a failure."""

    _failure: tuple[BaseException, str] | None = None

    def _take_in(self) -> None:
        """Take in the message.

        Raises:
            InvalidTaskError: its shape would end the consumer, or hang in the pool.
        """
        super()._take_in()
        check_task(self)

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Handle what a task raised, as Celery does."""
        error = _raised(exc_info)
        if not isinstance(error, _NO_FAILURES):
            self._failure = (error, exc_info.traceback)
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            self._failure = None

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a time limit, as Celery does; the hard one ends the job."""
        if not soft:
            self._failure = (TimeLimitExceeded(timeout), "")
        try:
            super().on_timeout(soft, timeout)
        finally:
            self._failure = None

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the task; one that has not begun, and was revoked with that, ends when it does."""
        if self.time_start or can_cancel(pool):
            super().terminate(pool, signal)

    def acknowledge(self) -> None:
        """Acknowledge the message: let it go, or let it be kept as failed."""
        if self._failure is not None and not self.acknowledged:
            error, traceback = self._failure
            keep(
                self.app,
                self.message,
                reason_of(error),
                error,
                worker=self.hostname,
                traceback=traceback,
                started=self.time_start,
                headers=self._headers(),
            )
        super().acknowledge()

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's name for it
        """Send an event, as Celery does, in which no secret is quoted, and no text is too long."""
        eventer = self._eventer
        if not (eventer and eventer.enabled and self.task.send_events):
            return
        if eventer.groups and "task" not in eventer.groups:  # nobody monitors this worker
            return
        super().send_event(
            type,
            **{
                name: showable(value) if isinstance(value, str) else value
                for name, value in fields.items()
            },
        )

    def _headers(self) -> dict[str, Any]:
        """Return what the message's headers may lack."""
        return {}

    def _retry_worker_lost(self, *args: Any) -> Any:
        failure, self._failure = self._failure, None  # what is run again has not failed
        retried = super()._retry_worker_lost(*args)
        if not retried:
            self._failure = failure
        return retried


class DiscreetRequest(KeepingRequest):
    """A job's request: `inspect` and Flower see the size of its payload, and not the contents.

    Its message names no other task, keeps no result, and is sent again only to where it came from.
    """

    _told = False

    def _take_in(self) -> None:
        super()._take_in()
        check_job(self)
        if not _DESCRIPTION.fullmatch(self.argsrepr or "") or self.kwargsrepr != "{}":
            # a stock producer's quote the payload
            described = {"argsrepr": self.task.describe(self.args), "kwargsrepr": "{}"}
            self._argsrepr, self._kwargsrepr = described.values()
            self.request_dict.update(described)
        self._ignore_result = self.request_dict["ignore_result"] = True

    def __init_subclass__(cls) -> None:
        """Keep `on_success`: Celery makes a class for each task, with a shorter one of its own."""
        super().__init_subclass__()
        if cls.__module__ == "celery.worker.request" and "on_success" in vars(cls):
            del cls.on_success

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> None:
        """Handle that the task returned, or raised, as Celery does; then tell."""
        # a thread tells this while the event loop may be putting back what does not run
        self._message.is_ending = True
        failed, _, runtime = failed__retval__runtime
        super().on_success(failed__retval__runtime, **kwargs)
        if not failed:
            self._tell(Result.SUCCEEDED, duration=runtime)

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Handle what a task raised, as Celery does; then tell."""
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            self._tell(*result_of(_raised(exc_info)))

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a time limit, as Celery does; then tell."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._tell(*result_of(TimeLimitExceeded(timeout)))

    def _announce_revoked(self, *args: Any) -> None:
        super()._announce_revoked(*args)
        self._tell(Result.REVOKED)

    def info(self, safe: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return what the request is about, with its arguments described."""
        info: dict[str, Any] = super().info(safe=True)
        return info

    @property
    def app_id(self) -> str:
        """The installation that it is for; empty if it is for none."""
        app_id = self._headers().get(APP_HEADER) if self.args else None
        return app_id if isinstance(app_id, str) else ""

    @property
    def subject(self) -> tuple[str, str]:
        """The names of app and job that logs and metrics have."""
        task = self.task
        if task.job_name is not None:
            return task.app_name, task.job_name
        app_id = self.app_id
        return self.app.runtime.app_name(app_id) if app_id else "", task.name

    def _tell(
        self,
        result: Result,
        reason: Reason | None = None,
        delay: float | None = None,
        duration: float | None = None,
    ) -> None:
        """Tell the log, and the metrics if there are any, that this delivery has ended; once."""
        if self._told:
            return
        self._told = True
        listener = self.app.on_job_end
        if listener is None and not job_log.wants(result):
            return
        end = JobEnd.of(self, result, reason, delay, duration)
        job_log.write(end)
        if listener is not None:
            listener(end)

    def _headers(self) -> dict[str, Any]:
        # a stock producer does not set ours
        headers: dict[str, Any] = self.task.headers_of(self.args)
        return headers


def _raised(exc_info: Any) -> BaseException:
    """Return what a task raised; a pool's process wraps it."""
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


class LimitedRequest(DiscreetRequest):
    """A request that has the time limit which its job has in this worker's code.

    The limit is no part of the message, so that who sends it need not have that code.
    """

    time_limits: tuple[float | None, float | None]

    def _take_in(self) -> None:
        super()._take_in()
        hard, soft = self.time_limits
        if hard is None and self.args:
            limit = self.app.runtime.pool_limit(self.args[0], self.task.job_name)
            self.time_limits = (limit, soft)
