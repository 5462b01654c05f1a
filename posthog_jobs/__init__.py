"""PostHog's jobs API for Python apps, on Celery.

App code needs `job`, `RetryError` and the types of what it is called with; whoever has events
needs `capture` or `process_event`; `celery -A posthog_jobs worker` runs it all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from posthog_jobs.celery import PostHogJobs
    from posthog_jobs.errors import PostHogJobsError, RetryError
    from posthog_jobs.hooks.events import PluginEvent
    from posthog_jobs.jobs.function import job
    from posthog_jobs.jobs.retry import RetryPolicy
    from posthog_jobs.jobs.trigger import JobHandle, Jobs
    from posthog_jobs.meta.meta import Meta

__all__ = [
    "JobHandle",
    "Jobs",
    "Meta",
    "PluginEvent",
    "PostHogJobsError",
    "RetryError",
    "RetryPolicy",
    "capture",
    "job",
    "meta_for",
    "process_event",
    "process_events",
]


#: Public name → its module, imported when the name is first asked for: pytest, which imports this
#: package for its plugin, pays for none of it.
_MODULES: Final = {
    "JobHandle": "jobs.trigger",
    "Jobs": "jobs.trigger",
    "Meta": "meta.meta",
    "PluginEvent": "hooks.events",
    "PostHogJobsError": "errors",
    "RetryError": "errors",
    "RetryPolicy": "jobs.retry",
    "job": "jobs.function",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def process_event(event: Mapping[str, object]) -> PluginEvent | None:
    """Pass an event through the `process_event` hooks of its team, in this process.

    Args:
        event: a mapping with `event`, its name, and optionally what else a `PluginEvent` has.

    Returns:
        The event that came out, or None if a hook dropped it.

    Raises:
        EventError, PayloadError: it is no event; no hook has run.
        ConfigurationError: a setting cannot work.
    """
    return cast("PluginEvent | None", _app().process_event(event))


def process_events(events: Iterable[Mapping[str, object]]) -> list[PluginEvent]:
    """Pass events through the hooks of their teams, in this process.

    `process_event` gets them one by one, `process_event_batch`, of apps without it, all of a team
    at once.

    Args:
        events: events as for `process_event`.

    Returns:
        The events that came out, team by team.

    Raises:
        EventError, PayloadError: one is no event; no hook has run.
        ConfigurationError: a setting cannot work.
    """
    return cast("list[PluginEvent]", _app().process_events(events))


def capture(event: Mapping[str, object]) -> JobHandle:
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
