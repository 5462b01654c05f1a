"""Runs events through the hooks of installations, one after another."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posthog_jobs.errors import AppSetupError, EventError, PayloadError, RetryError
from posthog_jobs.hooks.events import check_event, is_snapshot
from posthog_jobs.jobs.execution import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.jobs.function import Function
    from posthog_jobs.meta.meta import Meta

logger = logging.getLogger(__name__)

Event = dict[str, Any]


def process_event(
    event: Event, installations: Iterable[Installation], meta: Callable[[Installation], Meta]
) -> Event | None:
    """Pass one event through the hooks, as `process_events` does.

    Returns:
        The event that came out, the first one if a `process_event_batch` made several, or None
        where a hook dropped it.
    """
    events = process_events([event], installations, meta)
    if len(events) > 1:
        logger.warning(
            "process_event_batch made %d events of %r, of which process_event returns the first; "
            "process_events returns them all",
            len(events),
            event["event"],
        )
    return events[0] if events else None


def process_events(
    events: Iterable[Event],
    installations: Iterable[Installation],
    meta: Callable[[Installation], Meta],
) -> list[Event]:
    """Pass events through each `process_event`, in order; `process_event_batch` where is none.

    A hook that raises, returns something else, or changes the team is logged, and the next one
    gets what it was given as it was before: the event, or the batch.

    Args:
        events: the events, all of one team; they are not changed.
        installations: those whose hooks run, in their order.
        meta: gives an installation's meta, set up.

    Returns:
        The events that came out, without those that a hook dropped.
    """
    events = list(events)
    for installation in installations:
        hooks = installation.definition.hooks
        if not events:
            break
        if "process_event" in hooks:
            events = [
                processed for event in events for processed in _one(event, installation, meta)
            ]
        elif "process_event_batch" in hooks:
            events = _batch(events, installation, meta)
    return events


def on_event(
    event: Event,
    installations: Iterable[Installation],
    meta: Callable[[Installation], Meta],
    retry: Callable[[Installation, Exception], None],
) -> None:
    """Show a processed event to each `on_event`, in order; to `on_snapshot` if it is a snapshot.

    Any error but `RetryError` is logged.

    Args:
        event: the event; it is not changed.
        installations: those whose hooks run, in their order.
        meta: gives an installation's meta, set up.
        retry: called for a hook that raised `RetryError`, or that is not set up.
    """
    name = "on_snapshot" if is_snapshot(event) else "on_event"
    for installation in installations:
        hook = installation.definition.hooks.get(name)
        if hook is None:
            continue
        try:
            call(hook, copy.deepcopy(event), meta(installation))
        except (AppSetupError, RetryError) as error:
            retry(installation, error)
        except Exception:
            logger.exception(
                "%s of app id %r failed on event %r", name, installation.id, event["event"]
            )


def processed(hook: Function, event: Event, meta: Meta) -> Event | None:
    """Call one `process_event`.

    Args:
        hook: the function.
        event: what it gets; it is not changed.
        meta: its installation's, set up.

    Returns:
        The event that it returned, or None if it dropped it.

    Raises:
        Exception: what the hook raised.
        EventError: it returned what is no event, or changed the team.
    """
    result = call(hook, copy.deepcopy(event), meta)
    return None if result is None else _checked("process_event", result, event["team_id"])


def processed_batch(hook: Function, events: list[Event], meta: Meta) -> list[Event]:
    """Call one `process_event_batch`, with events of one team.

    Args:
        hook: the function.
        events: what it gets, one or more; they are not changed.
        meta: its installation's, set up.

    Returns:
        The events that it returned.

    Raises:
        Exception: what the hook raised.
        EventError: it returned no list, what is no event, or changed the team.
    """
    # each by itself, since two that share a part would share their copies of it
    results = call(hook, [copy.deepcopy(event) for event in events], meta)
    team_id = events[0]["team_id"]
    return [_checked("process_event_batch", result, team_id) for result in _listed(results)]


def _one(
    event: Event, installation: Installation, meta: Callable[[Installation], Meta]
) -> list[Event]:
    hook = installation.definition.hooks["process_event"]
    try:
        result = processed(hook, event, meta(installation))
    except AppSetupError as error:  # logged, with its traceback, when it happened
        logger.warning("event %r skips an app: %s", event["event"], error)
    except Exception:
        logger.exception(
            "process_event of app id %r failed; event %r goes on as it was before",
            installation.id,
            event["event"],
        )
    else:
        return [] if result is None else [result]
    return [event]


def _batch(
    events: list[Event], installation: Installation, meta: Callable[[Installation], Meta]
) -> list[Event]:
    name = "process_event_batch"
    hook = installation.definition.hooks[name]
    try:
        return processed_batch(hook, events, meta(installation))
    except AppSetupError as error:  # logged, with its traceback, when it happened
        logger.warning("%d events skip an app: %s", len(events), error)
    except Exception:
        logger.exception(
            "%s of app id %r failed; %d events go on as they were before",
            name,
            installation.id,
            len(events),
        )
    return events


def _listed(results: object) -> list[object]:
    if not isinstance(results, list):
        raise EventError(
            f"process_event_batch returned {type(results).__name__}; return a list of the events, "
            "an empty one to drop them all"
        )
    return results


def _checked(hook: str, result: object, team_id: int) -> Event:
    if not isinstance(result, Mapping):
        raise EventError(
            f"{hook} returned {type(result).__name__}; return the event, or None to drop it"
            if hook == "process_event"
            else f"{hook} returned a list with {type(result).__name__} in it; leave out what is "
            "dropped"
        )
    if result.get("team_id") != team_id:
        raise EventError(
            f"{hook} changed team_id from {team_id!r} to {result.get('team_id')!r}; an app must "
            "leave it as it is"
        )
    try:
        return check_event(result, default_team_id=team_id)
    except (EventError, PayloadError) as error:
        raise EventError(f"{hook} returned what is no event: {error}") from None
