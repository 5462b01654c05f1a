"""The Celery tasks: one for each exported job, one for events, and how a name finds its task."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from celery import Task
from celery.exceptions import Ignore, Reject
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from posthog_jobs.errors import (
    AppDisabledError,
    AppError,
    AppExitError,
    AppMemoryError,
    AppRemovedError,
    AppSetupError,
    BrokerUnavailableError,
    RetriesExhaustedError,
    RetryError,
    UnknownJobError,
)
from posthog_jobs.events import is_snapshot
from posthog_jobs.execution import in_worker
from posthog_jobs.job_ends import SentAgain
from posthog_jobs.messages import ABSENT
from posthog_jobs.redaction import redact
from posthog_jobs.retries import LOAD_AGAIN, ON_RETRY_ERROR, UNTIL_THERE, delay_after
from posthog_jobs.running import Delivery, current_task_id
from posthog_jobs.transport.records import (
    APP_HEADER,
    DUE_HEADER,
    ERROR_HEADER,
    IF_WAITING_HEADER,
    KEPT_KEY_HEADER,
    KEY_HEADER,
    SENT_HEADER,
)
from posthog_jobs.transport.sending import is_away

if TYPE_CHECKING:
    from celery.app.task import Context

    from posthog_jobs.installations import Installation
    from posthog_jobs.retries import Policy

logger = logging.getLogger(__name__)

CAPTURE: Final = "posthog_jobs.capture"
ON_EVENT: Final = "posthog_jobs.on_event"

#: How often a message waited for its app; apart from Celery's count of the job's own retries.
WAITED: Final = "posthog_jobs_waited"

_LONGEST_ERROR: Final = 500


def task_name(app_name: str, job_name: str) -> str:
    """Return the name of a job's task, as `task_routes` and Flower have it."""
    return f"posthog_jobs.{app_name}.{job_name}"


def parse_task_name(name: str) -> tuple[str, str] | None:
    """Return the app's and the job's name; None for a task that is no job's."""
    match name.split("."):
        case ["posthog_jobs", app_name, job_name]:
            return app_name, job_name
    return None


class PlainTask(Task):
    """Any other Celery task of the app; it is kept as failed where it is acknowledged late."""

    Request = "posthog_jobs.requests:KeepingRequest"
    abstract = True


class DurableTask(Task):
    """A task whose message stays on the broker until it has run, and shows no contents."""

    Request = "posthog_jobs.requests:DiscreetRequest"
    abstract = True
    acks_late = True
    acks_on_failure = True  # which is how a failed one is kept
    acks_on_timeout = True
    reject_on_worker_lost = True
    retry_on_worker_lost = False
    ignore_result = True
    serializer = "json"
    typing = False  # meta.jobs checks calls, and says what is wrong with them
    #: The names of app and job that logs and metrics have; a hook's task is of no one app.
    app_name: str | None = None
    job_name: str | None = None
    max_retries = None  # the retry policies count

    def apply_async(
        self, args: Any = None, kwargs: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        """Send the task, as Celery's own does, with its arguments described by their size."""
        if "argsrepr" not in options:
            options["argsrepr"] = self.describe(args or ())
        options.setdefault("kwargsrepr", "{}")
        options["headers"] = {**(options.get("headers") or {}), **self.headers_of(args or ())}
        return super().apply_async(args, kwargs, *arguments, **options)

    def describe(self, args: Any) -> str:
        """Return what logs and Flower may show of the arguments."""
        return f"(<{len(dumps(args))} bytes>)"

    def headers_of(self, args: Any) -> dict[str, Any]:  # noqa: ARG002  # subclasses use it
        """Return the headers that each message of the task has."""
        return {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; what Celery would take for the end of its worker is a failure of the app.

        Raises:
            AppMemoryError, AppExitError: the app's code ran out of memory, or raised what is no
                Exception, such as KeyboardInterrupt.
        """
        request = self.request
        token = current_task_id.set(request.id)
        try:
            if request.called_directly:
                return super().__call__(*args, **kwargs)
            self._begin(request)
            return self.run(*args, **kwargs)
        except MemoryError as error:
            raise AppMemoryError(f"{self.name} raised MemoryError: {error}") from error
        except (Exception, SystemExit):
            raise
        except BaseException as error:
            raise AppExitError(f"{self.name} raised {type(error).__name__}: {error}") from error
        finally:
            current_task_id.reset(token)

    def accepts(self, args: Any, kwargs: Any) -> bool:  # noqa: ARG002  # subclasses use it
        """Tell whether a message's arguments are of this task's shape."""
        return not kwargs

    def _begin(self, request: Context) -> None:
        """Note that this is a worker; end here if the task was revoked while it was queued in it.

        A message that was delivered before is counted, since its job may be what ends workers.

        Celery looks when it hands a task to its pool. In a pool of threads that is before one of
        them is free.

        Raises:
            Ignore: it was revoked.
            WorkerLostTooOftenError: its worker died too often.
        """
        in_worker.set(True)
        if (request.delivery_info or {}).get("redelivered"):
            self.app.deliveries.check(self.name, request.id)
        state = sys.modules.get("celery.worker.state")  # which only a worker has imported
        if state is not None and request.id in state.revoked:
            logger.info("Discarding revoked task: %s[%s]", self.name, request.id)
            raise Ignore

    def again(
        self,
        reason: Exception,
        policy: Policy,
        attempt: int,
        headers: dict[str, Any] | None = None,
        **options: Any,
    ) -> NoReturn:
        """Send the message again, due later, and let this delivery be acknowledged.

        Raises:
            SentAgain: it was sent.
            Reject: the broker is away; this delivery is not acknowledged, and comes again.
            RetriesExhaustedError: the policy has no retry left.
        """
        delay = delay_after(reason, policy, attempt)
        if delay is None:
            raise RetriesExhaustedError(
                f"{self.name} gave up after {attempt + 1} attempts: {reason}"
            ) from reason
        request = self.request
        logger.warning("%s[%s] runs again in %g s: %s", self.name, request.id, delay, reason)
        known = {**(request.headers or {}), **(headers or {}), ERROR_HEADER: described(reason)}
        if KEY_HEADER in known:
            known[KEPT_KEY_HEADER] = known[KEY_HEADER]
        # without its key, under which another job may wait by now
        headers = {
            name: value
            for name, value in known.items()
            if name not in (KEY_HEADER, IF_WAITING_HEADER, DUE_HEADER, SENT_HEADER, "redelivered")
        }
        try:
            self.signature_from_request(
                request, countdown=delay, argsrepr=request.argsrepr, headers=headers, **options
            ).apply_async()
        except (OperationalError, RedisError, OSError) as error:
            if not is_away(error):
                raise
            # kept unacknowledged: Celery logs this, and it comes again when the broker is back
            raise Reject(f"the broker is away: {error}", requeue=True) from reason
        raise SentAgain(delay) from reason

    def wait_for_app(self, reason: Exception) -> NoReturn:
        """Send the message again, due later, because its app is not there now.

        Raises:
            SentAgain: it was sent.
            Exception: the reason, when it waited for 10 minutes, or waiting is of no use.
        """
        waited = int((self.request.headers or {}).get(WAITED, 0))
        definite = isinstance(reason, AppDisabledError | AppRemovedError) or (
            isinstance(reason, AppSetupError) and reason.final
        )
        if definite or UNTIL_THERE.delay(waited) is None:
            raise reason
        self.again(reason, UNTIL_THERE, waited, {WAITED: waited + 1}, retries=self.request.retries)

    def wait_for_server(self, reason: Exception) -> NoReturn:
        """Send the message again, due later, because a server that it needs does not answer.

        Raises:
            SentAgain: it was sent.
        """
        retries = self.request.retries
        self.again(reason, LOAD_AGAIN, retries, retries=retries + 1)


class JobTask(DurableTask):
    """One exported job. Which function it calls is looked up when it runs, by app id."""

    Request = "posthog_jobs.requests:LimitedRequest"
    abstract = True
    app_name: str
    job_name: str

    def run(self, app_id: str, payload: object = ABSENT) -> None:
        """Run the job; again later if it raises `RetryError` or its app is not there."""
        try:
            job = self.app.runtime.job(
                self.app_name, self.job_name, app_id, payload, _delivery(self.request)
            )
        except (AppError, UnknownJobError) as error:
            self.wait_for_app(error)
        try:
            job()
        except RetryError as error:
            retries = self.request.retries
            self.again(error, job.retry, retries, retries=retries + 1)

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id, and perhaps a payload."""
        return not kwargs and len(args) in (1, 2) and isinstance(args[0], str)

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule and failed jobs are listed."""
        return {APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id, and the payload's size if there is one."""
        app_id, *payload = args
        return describe(app_id, len(dumps(payload[0])) if payload else None)


class CaptureTask(DurableTask):
    """Runs an event through `process_event`, then `on_event`, of its team's apps, and buffers it.

    A snapshot goes to `on_snapshot` alone, as in PostHog.
    """

    name = CAPTURE

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an event."""
        return not kwargs and len(args) == 1 and isinstance(args[0], dict)

    def run(self, event: dict[str, Any]) -> None:
        """Run the hooks; an `on_event` that raised `RetryError` again later, and alone."""
        runtime = self.app.runtime
        for processed in [event] if is_snapshot(event) else runtime.process_events([event]):
            runtime.on_event(processed, partial(self._later, processed))
            try:
                runtime.export(processed)
            except BrokerUnavailableError as error:
                self.wait_for_server(error)

    def _later(self, event: dict[str, Any], installation: Installation, reason: Exception) -> None:
        delay = delay_after(reason, ON_RETRY_ERROR, 0)
        logger.warning(
            "on_event of app id %r runs again in %g s: %s", installation.id, delay, reason
        )
        task = self.app.tasks[ON_EVENT]
        task.apply_async(
            (installation.id, event),
            countdown=delay,
            retries=1,
            headers={ERROR_HEADER: described(reason)},
        )


class OnEventTask(DurableTask):
    """Runs one app's `on_event`, or `on_snapshot`, again."""

    name = ON_EVENT

    def run(self, app_id: str, event: dict[str, Any]) -> None:
        """Run the hook; again later if it raises `RetryError` or its app is not there."""
        reasons: list[Exception] = []
        try:
            self.app.runtime.on_event(event, lambda _, reason: reasons.append(reason), app_id)
        except AppError as error:
            reasons.append(error)
        if reasons and isinstance(reasons[0], RetryError):
            retries = self.request.retries
            self.again(reasons[0], ON_RETRY_ERROR, retries, retries=retries + 1)
        elif reasons:
            self.wait_for_app(reasons[0])

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id and an event of a team."""
        return (
            not kwargs
            and [type(argument) for argument in args] == [str, dict]
            and type(args[1].get("team_id")) is int
        )

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule and failed jobs are listed."""
        return {APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id and the event's size."""
        return describe(args[0], len(dumps(args[1])))


def _delivery(request: Context) -> Delivery:
    """Return what a job's message says of this run."""
    headers = request.headers or {}
    due = request.eta  # of a job that waited on RabbitMQ
    if DUE_HEADER in headers:
        due = datetime.fromtimestamp(headers[DUE_HEADER] / 1000, UTC)
    elif due is not None:
        due = datetime.fromisoformat(due)
    return Delivery(
        id=request.id,
        attempt=request.retries + 1,
        due=due,
        key=headers.get(KEY_HEADER) or headers.get(KEPT_KEY_HEADER),
    )


def describe(app_id: object, size: int | None) -> str:
    """Return what logs and Flower show of a job's arguments."""
    return f"({app_id!r},)" if size is None else f"({app_id!r}, <{size} bytes>)"


def described(error: Exception) -> str:
    """Return what a waiting message says of the error before: its class and message, shortened."""
    text = redact(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
    return text.encode("utf-8", "replace").decode()  # a lone surrogate could not be printed
