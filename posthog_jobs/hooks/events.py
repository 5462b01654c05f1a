"""An event as PostHog has it: a mapping with a name, properties and a team."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NotRequired, TypedDict

from posthog_jobs.errors import EventError, is_whole
from posthog_jobs.jobs.payload import check_payload

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


def check_event(event: object, *, default_team_id: int) -> dict[str, Any]:
    """Return an event with all that hooks rely on; the caller's own stays as it is.

    Args:
        event: a mapping with `event`, its name; `properties` and `team_id` are filled in.
        default_team_id: the team of an event that names none.

    Returns:
        A new dict.

    Raises:
        EventError: it is no mapping, has no name, or its team or properties are none.
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
