"""The requests of a Celery worker: what is not a task's is refused, and what failed is kept.

Anybody may have written a message, and nearly every one is valid: so the looks at it are cheap.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import MAXYEAR, MINYEAR
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import Celery, Task
from celery.app.task import Context
from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
)
from celery.utils.log import get_logger
from celery.worker import request as celerys
from kombu import Producer

from posthog_jobs.broker.envelope import APP_HEADER, DUE_HEADER
from posthog_jobs.broker.failure import FailedJob, is_word
from posthog_jobs.jobs.due import LAST_DUE
from posthog_jobs.redaction import showable
from posthog_jobs.worker import job_ends
from posthog_jobs.worker.pools import can_cancel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery.concurrency.base import BasePool

    from posthog_jobs.broker.broker import Broker
    from posthog_jobs.broker.failure import Reason

logger = get_logger(__name__)

#: The headers that Celery's tasks have as attributes of `self.request`, or not at all.
_CELERYS: Final = {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}

#: What a task raises, or is ended by, that is not a failure of it.
_NO_FAILURES: Final = (Ignore, Reject, Retry, Terminated)

#: What logs and Flower may show of a job's arguments; see `broker.envelope.describe`.
_DESCRIPTION: Final = re.compile(
    r"\((?:'[\w.-]{0,100}',(?: (?:<\d{1,15} bytes>|\d{1,15}))?|<\d{1,15} bytes>)\)", re.ASCII
)

#: Nearly every id and name; `is_word` knows of others.
_PLAIN_WORD: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)

#: What a message may say beside the arguments, and of what type; None is always allowed.
_EMBEDDED: Final = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}
_NOTHING: Final = dict.fromkeys(_EMBEDDED)

#: What a task that is named there says beside its name, and of what type.
_SIGNATURE: Final = {"args": list, "kwargs": dict, "options": dict}

#: Headers that say what they are meant to by one type alone, or are None.
_TYPES: Final = (
    ("argsrepr", str),
    ("kwargsrepr", str),
    ("headers", dict),
    ("stamps", dict),
    ("stamped_headers", list),
)

#: The time limits, hard and soft, of nearly every message.
_NO_LIMITS: Final = ([None, None], (None, None))

#: The longest time limit, in seconds, and the most retries that a message may say.
_LONGEST_LIMIT: Final = 10**9
_MOST_RETRIES: Final = 10**9

#: The latest moment, in ms since the epoch.
_LAST_DUE: Final = LAST_DUE.timestamp() * 1000

#: How the names of our own tasks begin.
_OURS: Final = "posthog_jobs."

#: What decides where and how a task is sent: no stamp of a message may be named so.
_OPTIONS: Final = {
    *signature(Celery.send_task).parameters,
    *signature(Task.apply_async).parameters,
    *signature(Producer.publish).parameters,
    *Context().as_execution_options(),
    *("queue", "argsrepr", "kwargsrepr", "ignore_result", "stamped_headers"),
}


class App(Protocol):
    """What keeping a failed message takes of the Celery app."""

    @property
    def broker(self) -> Broker:
        """The broker."""


def keep(  # noqa: PLR0913  # keyword-only facts about one failure
    app: App,
    message: Any,
    reason: Reason,
    error: BaseException,
    *,
    worker: str,
    traceback: str = "",
    started: float | None = None,
    app_id: str = "",
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
        app_id: the installation that it is for; a stock producer's headers do not say.

    Returns:
        The id that it will be kept under.
    """
    known = {APP_HEADER: app_id} if app_id else {}
    failure = FailedJob.of(
        {**known, **message.headers} if isinstance(message.headers, dict) else {},
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


def report_failures(pool: BasePool) -> None:
    """Have a pool hand what Celery's tracer raises to the request, as one of processes does.

    Else a pool of threads forgets it, and the request never ends; solo raises it in the consumer.
    """
    if pool.uses_semaphore:  # it is one of processes
        return
    on_apply = pool.on_apply

    def apply(target: Callable[..., Any], *args: Any, callback: Any, **options: Any) -> Any:
        message = callback.__self__.message

        def trace(name: str, task_id: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return target(name, task_id, *args, **kwargs)
            except Exception:
                logger.exception("Task %s ran, and its end failed", task_id)
                return True, ExceptionInfo(), 0.0  # failed, why, and the runtime
            finally:
                # the event loop may be putting back what does not run, and this is its thread's end
                message.is_ending = True

        return on_apply(trace, *args, callback=callback, **options)

    pool.on_apply = apply


def has_request(message: Any) -> bool:
    """Tell whether a message, also one of RabbitMQ's, was read, and a request made of it."""
    return getattr(message, "is_requested", False)


class Request(celerys.Request):
    """A task's request: refused if it is not valid, and kept as failed where its failure is.

    Celery decodes a message's body when it arrives, and once more where the task runs; this one
    hands the pool what it has decoded. What the task gets is the same: arguments that
    `self.request.args` shares, and the headers of its own in `self.request.headers`, for which
    Celery looks in a longer way.
    """

    #: The installation that it is for; empty if it is for none.
    app_id = ""

    #: What has ended the task, and where that was raised, while that is being dealt with.
    _cause: tuple[BaseException, str] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take in a message.

        Raises:
            InvalidTaskError: it would end the consumer, or hang in the pool.
        """
        super().__init__(*args, **kwargs)
        if not self._decoded:
            self._body = self._message.payload
            self._content_type = self._content_encoding = None
        headers = self._request_dict
        if headers.get("headers") is None:
            headers["headers"] = {name: headers[name] for name in headers.keys() - _CELERYS} or None
        _check_task(self)
        self._take_in()
        self._message.is_requested = True

    def _take_in(self) -> None:
        """Take in what only our own tasks' messages have."""

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Handle what a task raised, as Celery does."""
        error: BaseException = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):  # by which a pool's process sends it
            error = error.exc
        with self._ended_by(error, exc_info.traceback):
            return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a time limit, as Celery does; the hard one ends the job."""
        if soft:
            super().on_timeout(soft, timeout)
            return
        with self._ended_by(TimeLimitExceeded(timeout)):
            super().on_timeout(soft, timeout)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the task; one that has not begun, and was revoked with that, ends when it does."""
        if self.time_start or can_cancel(pool):
            super().terminate(pool, signal)

    def acknowledge(self) -> None:
        """Acknowledge the message: let it go, or let it be kept as failed."""
        if self._cause is not None and not self.acknowledged:
            error, traceback = self._cause
            if not isinstance(error, _NO_FAILURES):
                keep(
                    self.app,
                    self.message,
                    job_ends.reason_of(error),
                    error,
                    worker=self.hostname,
                    traceback=traceback,
                    started=self.time_start,
                    app_id=self.app_id,
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

    @contextmanager
    def _ended_by(self, error: BaseException, traceback: str = "") -> Iterator[None]:
        before, self._cause = self._cause, (error, traceback)
        try:
            yield
        finally:
            self._cause = before
            self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        """Tell that this delivery has ended, and by what."""

    def _announce_revoked(self, *args: Any) -> None:
        with self._ended_by(Ignore()):
            super()._announce_revoked(*args)

    def _retry_worker_lost(self, *args: Any) -> Any:
        cause, self._cause = self._cause, None  # what is run again has not failed
        retried = super()._retry_worker_lost(*args)
        if not retried:
            self._cause = cause
        return retried


class JobRequest(Request):
    """A request of one of our own tasks: `inspect` and Flower see the size of its payload alone.

    Its message names no other task, keeps no result, and is sent again only to where it came from.
    """

    time_limits: tuple[float | None, float | None]
    _told = False

    def _take_in(self) -> None:
        self.app_id = _check_job(self)
        task = self.task
        if not _DESCRIPTION.fullmatch(self.argsrepr or "") or self.kwargsrepr != "{}":
            # a stock producer's quote the payload
            described = {"argsrepr": task.describe(self.args), "kwargsrepr": "{}"}
            self._argsrepr, self._kwargsrepr = described.values()
            self.request_dict.update(described)
        self._ignore_result = self.request_dict["ignore_result"] = True
        # not a part of the message, so that who sends it need not have the job's code
        hard, soft = self.time_limits
        if task.limits_jobs and hard is None:
            self.time_limits = task.time_limit_of(self.app_id), soft

    def acknowledge(self) -> None:
        """Acknowledge the message; what nothing else has ended has run to its end."""
        super().acknowledge()
        if self._cause is None:
            self._tell(None)

    def info(self, safe: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return what the request is about, with its arguments described."""
        info: dict[str, Any] = super().info(safe=True)
        return info

    @property
    def subject(self) -> tuple[str, str]:
        """The names of app and job that logs and metrics have."""
        task = self.task
        if task.job_name is not None:
            return task.app_name, task.job_name
        return self.app.runtime.app_name(self.app_id) if self.app_id else "", task.name

    def _tell(self, error: BaseException | None) -> None:
        """Tell the log, and the metrics if there are any, that this delivery has ended; once."""
        if self._told:
            return
        self._told = True
        app, job = self.subject
        job_ends.tell(
            error,
            self.request_dict,
            self.eta,
            self.time_start,
            self.app.on_job_end,
            app_id=self.app_id,
            app=app,
            job=job,
            id=self.id,
        )


def _check_task(request: Request) -> None:
    """Refuse a message that would end the consumer, hang in the pool, or forge a line of a log.

    Raises:
        InvalidTaskError: it is such a one.
    """
    headers, name, limits = request.request_dict, request.name, request.time_limits
    if not _is_word(request.id) or not _is_word(name):
        raise InvalidTaskError("the id or the name cannot be written into a log")
    if name != request.type and name.startswith(_OURS):
        raise InvalidTaskError("its shadow is the name of a job")
    if type(request.args) not in (list, tuple) or type(request.kwargs) is not dict:
        raise InvalidTaskError("the arguments are of the wrong type")
    if limits not in _NO_LIMITS and not _are_limits(limits):
        raise InvalidTaskError("the time limits are of the wrong type")
    retries = headers.get("retries")
    if retries and not (type(retries) is int and 0 < retries <= _MOST_RETRIES):
        raise InvalidTaskError("the retries cannot be counted")
    for header, kind in _TYPES:
        if (value := headers.get(header)) is not None and type(value) is not kind:
            raise InvalidTaskError(f"the header {header} is of the wrong type")
    if (stamped := headers.get("stamped_headers")) and not all(map(is_word, stamped)):
        raise InvalidTaskError("the stamps are of the wrong type")
    # in UTC it may be in no year at all; Celery would drop the message
    if (eta := request.eta) is not None and eta.year in (MINYEAR, MAXYEAR):
        raise InvalidTaskError("it is due at no time")
    _check_embedded(request.body[2], request.message.headers)


def _check_job(request: Request) -> str:
    """Refuse a message of ours that would run, or be sent, otherwise than ours are.

    Returns:
        The installation that it is for; empty if it is for none.

    Raises:
        InvalidTaskError: it is such a one.
    """
    task, headers, args = request.task, request.request_dict, request.args
    if (due := headers.get(DUE_HEADER)) and not _is_number(due, _LAST_DUE):
        raise InvalidTaskError("it was due at no time")
    if not task.accepts(args, request.kwargs):
        raise InvalidTaskError(f"the arguments are not those of {task.name}")
    app_id = task.headers_of(args).get(APP_HEADER)
    if headers.get(APP_HEADER, app_id) != app_id or not (app_id is None or _is_word(app_id)):
        raise InvalidTaskError("it is not an app id, or the headers have another one")
    embed = request.body[2]
    if (embed and embed != _NOTHING and any(map(embed.get, _EMBEDDED))) or (
        not _EMBEDDED.keys().isdisjoint(headers) and any(map(headers.get, _EMBEDDED))
    ):
        raise InvalidTaskError("a job's message can name no other tasks to run")
    if (stamped := headers.get("stamped_headers")) and not _OPTIONS.isdisjoint(stamped):
        raise InvalidTaskError("a stamp has the name of an option")
    return app_id or ""


def _check_embedded(embed: Any, outside: dict[str, Any]) -> None:
    if not _EMBEDDED.keys().isdisjoint(outside) and any(map(outside.get, _EMBEDDED)):
        raise InvalidTaskError("the callbacks stand where Celery would not put them")
    if not embed or embed == _NOTHING:
        return
    if not isinstance(embed, dict):
        raise InvalidTaskError("the callbacks are not an object")
    for name, value in embed.items():  # all of them None, but for a canvas
        # another name would become one of the request's own attributes
        if not isinstance(value, _EMBEDDED.get(name, type(None)) | None):
            raise InvalidTaskError("the callbacks are of the wrong type")
        signatures: Any = value if isinstance(value, list) else filter(None, [value])
        if not all(map(_is_signature, signatures)):
            raise InvalidTaskError("a callback is not a task")


def _is_signature(value: Any) -> bool:
    # Celery would find that out once the task has run, and is acknowledged
    return (
        isinstance(value, dict)
        and is_word(value.get("task"))
        and all(isinstance(value.get(name, kind()), kind) for name, kind in _SIGNATURE.items())
    )


def _is_word(value: object) -> bool:
    # spares nearly every message three calls
    return isinstance(value, str) and (_PLAIN_WORD.fullmatch(value) is not None or is_word(value))


def _are_limits(limits: object) -> bool:
    return (
        isinstance(limits, (list, tuple))
        and len(limits) == 2  # noqa: PLR2004  # hard and soft
        and all(limit is None or _is_number(limit, _LONGEST_LIMIT) for limit in limits)
    )


def _is_number(value: object, most: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= most  # type: ignore[operator]
