"""The Celery tasks: one for each exported job, one for events, and how a name finds its task."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from celery import Task
from celery.exceptions import Ignore
from kombu.utils.json import dumps

from posthog_jobs.errors import (
    AppError,
    RetryError,
    UnknownJobError,
)
from posthog_jobs.execution import in_worker
from posthog_jobs.messages import ABSENT
from posthog_jobs.retries import ON_RETRY_ERROR, UNTIL_THERE
from posthog_jobs.transport.records import APP_HEADER, DUE_HEADER, IF_WAITING_HEADER, KEY_HEADER

if TYPE_CHECKING:
    from posthog_jobs.installations import Installation
    from posthog_jobs.retries import RetryPolicy

logger = logging.getLogger(__name__)

CAPTURE: Final = "posthog_jobs.capture"
ON_EVENT: Final = "posthog_jobs.on_event"

#: How often a message waited for its app; apart from Celery's count of the job's own retries.
WAITED: Final = "posthog_jobs_waited"


def task_name(app_name: str, job_name: str) -> str:
    """Return the name of a job's task, as `task_routes` and Flower have it."""
    return f"posthog_jobs.{app_name}.{job_name}"


class DurableTask(Task):
    """A task whose message stays on the broker until it has run, and shows no contents."""

    Request = "posthog_jobs.worker:DiscreetRequest"
    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    ignore_result = True
    serializer = "json"
    typing = False  # meta.jobs checks calls, and says what is wrong with them
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

    def begin(self) -> None:
        """Note that this is a worker; end here if the task was revoked while it was queued in it.

        Celery looks when it hands a task to its pool. In a pool of threads that is before one of
        them is free.

        Raises:
            Ignore: it was revoked.
        """
        in_worker.set(True)
        state = sys.modules.get("celery.worker.state")  # which only a worker has imported
        if state is None or not state.revoked:
            return
        request = self.request
        if not request.called_directly and request.id in state.revoked:
            logger.info("Discarding revoked task: %s[%s]", self.name, request.id)
            raise Ignore

    def again(
        self,
        reason: Exception,
        policy: RetryPolicy,
        attempt: int,
        headers: dict[str, Any] | None = None,
        **options: Any,
    ) -> NoReturn:
        """Send the message again, due later, and let this delivery be acknowledged.

        Raises:
            Ignore: it was sent.
            Exception: the reason, when the policy has no retry left.
        """
        delay = policy.delay(attempt)
        if delay is None:
            raise reason
        request = self.request
        logger.warning("%s[%s] runs again in %g s: %s", self.name, request.id, delay, reason)
        # without its key, under which another job may wait by now
        headers = {
            name: value
            for name, value in {**(request.headers or {}), **(headers or {})}.items()
            if name not in (KEY_HEADER, IF_WAITING_HEADER, DUE_HEADER)
        }
        self.signature_from_request(
            request, countdown=delay, argsrepr=request.argsrepr, headers=headers, **options
        ).apply_async()
        raise Ignore from reason

    def wait_for_app(self, reason: Exception) -> NoReturn:
        """Send the message again, due later, because its app is not there now."""
        waited = int((self.request.headers or {}).get(WAITED, 0))
        self.again(reason, UNTIL_THERE, waited, {WAITED: waited + 1}, retries=self.request.retries)


class JobTask(DurableTask):
    """One exported job. Which function it calls is looked up when it runs, by app id."""

    abstract = True
    app_name: str
    job_name: str

    def run(self, app_id: str, payload: object = ABSENT) -> None:
        """Run the job; again later if it raises `RetryError` or its app is not there."""
        self.begin()
        try:
            job = self.app.runtime.job(self.app_name, self.job_name, app_id, payload)
        except (AppError, UnknownJobError) as error:
            self.wait_for_app(error)
        try:
            job()
        except RetryError as error:
            retries = self.request.retries
            self.again(error, ON_RETRY_ERROR, retries, retries=retries + 1)

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule is listed."""
        return {APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id, and the payload's size if there is one."""
        app_id, *payload = args
        return describe(app_id, len(dumps(payload[0])) if payload else None)


class CaptureTask(DurableTask):
    """Runs an event through `process_event`, then `on_event`, of its team's apps."""

    name = CAPTURE

    def run(self, event: dict[str, Any]) -> None:
        """Run the hooks; an `on_event` that raised `RetryError` again later, and alone."""
        self.begin()
        processed = self.app.runtime.process_event(event)
        if processed is None:
            return

        def again(installation: Installation, reason: Exception) -> None:
            delay = ON_RETRY_ERROR.delay(0)
            logger.warning(
                "on_event of app id %r runs again in %g s: %s", installation.id, delay, reason
            )
            task = self.app.tasks[ON_EVENT]
            task.apply_async((installation.id, processed), countdown=delay, retries=1)

        self.app.runtime.on_event(processed, again)


class OnEventTask(DurableTask):
    """Runs one app's `on_event` again."""

    name = ON_EVENT

    def run(self, app_id: str, event: dict[str, Any]) -> None:
        """Run the hook; again later if it raises `RetryError` or its app is not there."""
        self.begin()
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

    def describe(self, args: Any) -> str:
        """Return the app id and the event's size."""
        return describe(args[0], len(dumps(args[1])))


def describe(app_id: object, size: int | None) -> str:
    """Return what logs and Flower show of a job's arguments."""
    return f"({app_id!r},)" if size is None else f"({app_id!r}, <{size} bytes>)"
