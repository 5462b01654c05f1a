"""The Celery tasks of events: one runs an event through the hooks, one an `on_event` again."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu.utils.json import dumps

from posthog_jobs.broker.envelope import (
    APP_HEADER,
    CAPTURE,
    ERROR_HEADER,
    ON_EVENT,
    describe,
    described,
)
from posthog_jobs.errors import AppError, RetryError
from posthog_jobs.hooks.events import is_snapshot
from posthog_jobs.jobs.retry import ON_RETRY_ERROR, delay_after
from posthog_jobs.worker.durable_task import DurableTask

if TYPE_CHECKING:
    from posthog_jobs.apps.installation import Installation

logger = logging.getLogger(__name__)


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
        with self.running():
            runtime = self.app.runtime
            for processed in [event] if is_snapshot(event) else runtime.process_events([event]):
                runtime.on_event(processed, partial(self._later, processed))
                runtime.export(processed)

    def _later(self, event: dict[str, Any], installation: Installation, reason: Exception) -> None:
        delay = delay_after(reason, ON_RETRY_ERROR, 0)
        logger.warning(
            "on_event of app id %r runs again in %g s: %s", installation.id, delay, reason
        )
        send = partial(
            self.app.tasks[ON_EVENT].apply_async,
            (installation.id, event),
            countdown=delay,
            retries=1,
            headers={ERROR_HEADER: described(reason)},
        )
        self.send_or_requeue(send)


class OnEventTask(DurableTask):
    """Runs one app's `on_event`, or `on_snapshot`, again."""

    name = ON_EVENT

    def run(self, app_id: str, event: dict[str, Any]) -> None:
        """Run the hook; again later if it raises `RetryError` or its app is not there."""
        with self.running():
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
        match args:
            case [str(), {"team_id": int() as team_id}]:
                return not kwargs and not isinstance(team_id, bool)
        return False

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule and failed jobs are listed."""
        return {APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id and the event's size."""
        return describe(args[0], len(dumps(args[1])))
