"""An event as PostHog has it, and its way through the hooks of installations, one after another."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

from posthog_jobs.errors import AppSetupError, EventError, PayloadError, RetryError, is_whole
from posthog_jobs.jobs.execution import call
from posthog_jobs.jobs.payload import check_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.jobs.function import Function

logger = logging.getLogger(__name__)

Event = dict[str, Any]

#: The name that PostHog gives the events of session recordings.
SNAPSHOT: Final = "$snapshot"

_PersonUpdates = TypedDict(
    "_PersonUpdates", {"$set": dict[str, Any], "$set_once": dict[str, Any]}, total=False
)


class PluginEvent(_PersonUpdates):
    """An event as hooks get it, by PostHog's type of that name.

    Times are ISO 8601 strings. Besides the fields below it may have `$set` and `$set_once`, the
    properties of its person to be set, over those that are there or not.

    Attributes:
        event: its name.
        properties: what is known about it.
        team_id: whose event it is; a hook must leave it as it is.
        distinct_id: who did it.
        uuid: the event's id.
        ip: where from, if that is kept.
        site_url: the PostHog instance.
        now: when PostHog got it.
        sent_at: when its sender sent it, by the sender's clock.
        timestamp: when it happened.
        offset: how long before it was sent it happened, in milliseconds.
        person: its person, as far as PostHog knows it.
        elements: of an autocaptured event, the clicked element and those around it.
    """

    event: str
    properties: dict[str, Any]
    team_id: int
    distinct_id: NotRequired[str]
    uuid: NotRequired[str]
    ip: NotRequired[str | None]
    site_url: NotRequired[str]
    now: NotRequired[str]
    sent_at: NotRequired[str]
    timestamp: NotRequired[str]
    offset: NotRequired[int]
    person: NotRequired[dict[str, Any]]
    elements: NotRequired[list[dict[str, Any]]]


def is_snapshot(event: Mapping[str, Any]) -> bool:
    """Tell whether an event is part of a session recording, which has a hook of its own."""
    return bool(event["event"] == SNAPSHOT)


def check_event(event: object, *, default_team_id: int) -> Event:
    """Return an event with all that hooks rely on; the caller's own stays as it is.

    Args:
        event: a mapping with `event`, its name; `properties` and `team_id` are filled in.
        default_team_id: the team of an event that names none.

    Returns:
        A new dict.

    Raises:
        EventError: it is not a mapping, has no name, or its team or properties cannot be such.
        PayloadError: it holds what cannot travel.
    """
    if not isinstance(event, Mapping):
        raise EventError(
            f"an event is a mapping, not {type(event).__name__}; such as "
            '{"event": "sign up", "properties": {}}'
        )
    checked = {"properties": {}, "team_id": default_team_id, **event}
    if not isinstance(checked.get("event"), str) or not checked["event"]:
        raise EventError('the event has no name; add "event": "…", a string')
    if not isinstance(checked["properties"], Mapping):
        raise EventError(
            f"the event's properties are of type {type(checked['properties']).__name__}; make them "
            "a mapping"
        )
    checked["properties"] = dict(checked["properties"])
    if not is_whole(checked["team_id"]):
        raise EventError(
            f"the event's team_id is of type {type(checked['team_id']).__name__}; make it an int"
        )
    check_payload(checked, "event")
    return checked


def process_event(
    event: Event, installations: Iterable[Installation], meta: Callable[[Installation], object]
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
    meta: Callable[[Installation], object],
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
                result
                for event in events
                for result in _passed("process_event", [event], installation, meta)
            ]
        elif "process_event_batch" in hooks:
            events = _passed("process_event_batch", events, installation, meta)
    return events


def on_event(
    event: Event,
    installations: Iterable[Installation],
    meta: Callable[[Installation], object],
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


def processed(name: str, hook: Function, events: list[Event], meta: object) -> list[Event]:
    """Call one `process_event` or `process_event_batch`.

    Args:
        name: which of them.
        hook: the function.
        events: what it gets, of one team: one, or with a batch one or more; they are not changed.
        meta: its installation's, set up.

    Returns:
        The events that it returned.

    Raises:
        Exception: what the hook raised.
        EventError: it returned something else, or changed the team.
    """
    # each by itself, since two that share a part would share their copies of it
    given = [copy.deepcopy(event) for event in events]
    if name == "process_event":
        result = call(hook, given[0], meta)
        results = [] if result is None else [result]
    else:
        results = call(hook, given, meta)
        if not isinstance(results, list):
            raise EventError(
                f"{name} returned {type(results).__name__}; return a list of the events, an empty "
                "one to drop them all"
            )
    return [_checked(name, result, events[0]["team_id"]) for result in results]


def _passed(
    name: str,
    events: list[Event],
    installation: Installation,
    meta: Callable[[Installation], object],
) -> list[Event]:
    """Return what a hook makes of events; if it fails, the same ones."""
    what = f"event {events[0]['event']!r}" if name == "process_event" else f"{len(events)} event(s)"
    try:
        return processed(name, installation.definition.hooks[name], events, meta(installation))
    except AppSetupError as error:  # logged, with its traceback, when it happened
        logger.warning("%s left out an app: %s", what, error)
    except Exception:
        logger.exception(
            "%s of app id %r failed, and left %s as before", name, installation.id, what
        )
    return events


def _checked(name: str, result: object, team_id: int) -> Event:
    if not isinstance(result, Mapping):
        raise EventError(
            f"{name} returned {type(result).__name__}; return the event, or None to drop it"
            if name == "process_event"
            else f"{name} returned a list with {type(result).__name__} in it; leave out what is "
            "dropped"
        )
    if result.get("team_id") != team_id:
        raise EventError(
            f"{name} changed team_id from {team_id!r} to {result.get('team_id')!r}; an app must "
            "leave it as it is"
        )
    try:
        return check_event(result, default_team_id=team_id)
    except (EventError, PayloadError) as error:
        raise EventError(f"{name} returned what is not an event: {error}") from None
