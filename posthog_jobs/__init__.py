"""PostHog's jobs API for Python apps, on Celery.

App code needs `job`, `RetryError` and the types of what it is called with; whoever has events
needs `capture` or `process_event`; `celery -A posthog_jobs worker` runs it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posthog_jobs.definitions import job
from posthog_jobs.errors import PostHogJobsError, RetryError
from posthog_jobs.handle import JobHandle
from posthog_jobs.jobs import Jobs
from posthog_jobs.meta import Meta

if TYPE_CHECKING:
    from posthog_jobs.celery import PostHogJobs

__all__ = [
    "JobHandle",
    "Jobs",
    "Meta",
    "PostHogJobsError",
    "RetryError",
    "capture",
    "job",
    "meta_for",
    "process_event",
]


def process_event(event: object) -> dict[str, Any] | None:
    """Pass an event through the `process_event` hooks of its team, in this process.

    Args:
        event: a mapping with `event`, its name, and optionally `properties`, `team_id` and what
            else PostHog's events have.

    Returns:
        The event that came out, or None if a hook dropped it.

    Raises:
        EventError, PayloadError: it is no event; no hook has run.
        ConfigurationError: a setting cannot work.
    """
    return _app().process_event(event)


def capture(event: object) -> JobHandle:
    """Hand an event to a worker, which runs `process_event` and then `on_event`.

    Args:
        event: as for `process_event`.

    Returns:
        A handle; the event is sent whether it is awaited or not.

    Raises:
        EventError, PayloadError: it is no event, or too large; nothing was enqueued.
        BrokerUnavailableError: the broker did not take it. In a running event loop it is raised
            where the handle is awaited.
        ConfigurationError: a setting cannot work.
    """
    return _app().capture(event)


def meta_for(app_id: str) -> Meta:
    """Return an installation's `meta`, to trigger its jobs from outside of the app.

    Raises:
        UnknownAppError, AppLoadError, AppDisabledError: the app cannot run.
        ConfigurationError: a setting cannot work.
    """
    return _app().meta_for(app_id)


def _app() -> PostHogJobs:
    # imported when it is needed: app code that only wants `job` pulls in no Celery
    from posthog_jobs.celery import app  # noqa: PLC0415

    return app
