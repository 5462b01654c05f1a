"""Runs an event through the hooks of installations, one after another."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posthog_jobs.errors import AppSetupError, EventError, PayloadError, RetryError
from posthog_jobs.events import check_event
from posthog_jobs.execution import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.installations import Installation
    from posthog_jobs.meta import Meta

logger = logging.getLogger(__name__)

Event = dict[str, Any]


def process_event(
    event: Event, installations: Iterable[Installation], meta: Callable[[Installation], Meta]
) -> Event | None:
    """Pass an event through each `process_event`, in order.

    A hook that raises, returns something else, or changes the team is logged, and the next one
    gets the event as it was before.

    Args:
        event: the event; it is not changed.
        installations: those whose hooks run, in their order.
        meta: gives an installation's meta, set up.

    Returns:
        The event that came out, or None where a hook dropped it.
    """
    for installation in installations:
        hook = installation.definition.hooks.get("process_event")
        if hook is None:
            continue
        try:
            result = call(hook, copy.deepcopy(event), meta(installation))
            if result is None:
                return None
            event = _checked(result, event)
        except AppSetupError as error:  # logged, with its traceback, when it happened
            logger.warning("event %r skips an app: %s", event["event"], error)
        except Exception:
            logger.exception(
                "process_event of app id %r failed; event %r goes on as it was before",
                installation.id,
                event["event"],
            )
    return event


def on_event(
    event: Event,
    installations: Iterable[Installation],
    meta: Callable[[Installation], Meta],
    retry: Callable[[Installation, Exception], None],
) -> None:
    """Show a processed event to each `on_event`, in order. Any but `RetryError` is logged.

    Args:
        event: the event; it is not changed.
        installations: those whose hooks run, in their order.
        meta: gives an installation's meta, set up.
        retry: called for a hook that raised `RetryError`, or that is not set up.
    """
    for installation in installations:
        hook = installation.definition.hooks.get("on_event")
        if hook is None:
            continue
        try:
            call(hook, copy.deepcopy(event), meta(installation))
        except (AppSetupError, RetryError) as error:
            retry(installation, error)
        except Exception:
            logger.exception(
                "on_event of app id %r failed on event %r", installation.id, event["event"]
            )


def _checked(result: object, event: Event) -> Event:
    if not isinstance(result, Mapping):
        raise EventError(
            f"process_event returned {type(result).__name__}; return the event, or None to drop it"
        )
    if result.get("team_id") != event["team_id"]:
        raise EventError(
            f"process_event changed team_id from {event['team_id']!r} to "
            f"{result.get('team_id')!r}; an app must leave it as it is"
        )
    try:
        return check_event(result, default_team_id=event["team_id"])
    except (EventError, PayloadError) as error:
        raise EventError(f"process_event returned what is no event: {error}") from None
