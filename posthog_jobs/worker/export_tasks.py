"""The Celery tasks of exports: one empties a buffer, one brings a batch to `export_events`."""

from __future__ import annotations

from typing import Any

from kombu.utils.json import dumps

from posthog_jobs.broker.envelope import (
    APP_HEADER,
    EXPORT_EVENTS,
    FLUSH_EXPORT,
    IF_WAITING_HEADER,
    KEY_HEADER,
    describe,
)
from posthog_jobs.errors import AppError, RetryError, UnknownJobError
from posthog_jobs.jobs.retry import ON_EXPORT_RETRY
from posthog_jobs.worker.durable_task import DurableTask


class FlushExportTask(DurableTask):
    """Sends what an installation's buffer holds, in batches. At most one of them waits."""

    name = FLUSH_EXPORT

    def run(self, app_id: str) -> None:
        """Empty the buffer; again later if a server does not answer."""
        with self.running():
            self.app.runtime.flush_export(app_id, str(self.request.id))

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id."""
        return not kwargs and len(args) == 1 and isinstance(args[0], str)

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, and the key under which one waits; RabbitMQ knows no keys."""
        return {APP_HEADER: args[0], KEY_HEADER: "flush", IF_WAITING_HEADER: "replace"}

    def describe(self, args: Any) -> str:
        """Return the app id."""
        return describe(args[0], None)


class ExportEventsTask(DurableTask):
    """Brings a batch of events to an installation's `export_events`."""

    name = EXPORT_EVENTS

    def run(self, app_id: str, events: list[dict[str, Any]]) -> None:
        """Run the hook; again later if it raises `RetryError` or its app is not there."""
        with self.running():
            try:
                export = self.app.runtime.batch(app_id, events)
            except (AppError, UnknownJobError) as error:
                self.wait_for_app(error)
            try:
                export()
            except RetryError as error:
                retries = self.request.retries
                self.again(error, ON_EXPORT_RETRY, retries, retries=retries + 1)

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id and a list of events."""
        match args:
            case [str(), list() as events]:
                return not kwargs and all(isinstance(event, dict) for event in events)
        return False

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule and failed jobs are listed."""
        return {APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id and the events' size."""
        return describe(args[0], len(dumps(args[1])))
