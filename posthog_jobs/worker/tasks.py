"""The Celery task of a job."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from kombu.utils.json import dumps

from posthog_jobs.broker.envelope import (
    APP_HEADER,
    DUE_HEADER,
    KEPT_KEY_HEADER,
    KEY_HEADER,
    describe,
)
from posthog_jobs.errors import AppError, RetryError, UnknownJobError
from posthog_jobs.jobs.due import moment_of
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.running import Delivery
from posthog_jobs.worker.durable_task import DurableTask

if TYPE_CHECKING:
    from celery.app.task import Context


class JobTask(DurableTask):
    """One exported job. Which function it calls is looked up when it runs, by app id."""

    Request = "posthog_jobs.worker.requests:LimitedRequest"
    abstract = True
    app_name: str
    job_name: str
    takes = (
        'the app id and then the payload, if there is one, as args: ["teapot", {"url": "x"}]; '
        "there are no kwargs"
    )

    def run(self, app_id: str, payload: object = ABSENT) -> None:
        """Run the job; again later if it raises `RetryError` or its app is not there."""
        with self.running():
            try:
                job = self.app.runtime.job(
                    self.app_name, self.job_name, app_id, payload, _delivery(self.request)
                )
            except (AppError, UnknownJobError) as error:
                self.wait_for_app(error)
            try:
                job.run()
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


def _delivery(request: Context) -> Delivery:
    """Return what a job's message says of this run."""
    headers = request.headers or {}
    due = request.eta  # of a job that waited on RabbitMQ
    if DUE_HEADER in headers:
        due = moment_of(headers[DUE_HEADER])
    elif due is not None:
        due = datetime.fromisoformat(due)
    return Delivery(
        id=request.id,
        attempt=request.retries + 1,
        due=due,
        key=headers.get(KEY_HEADER) or headers.get(KEPT_KEY_HEADER),
    )
