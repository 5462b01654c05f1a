"""An event as PostHog has it: a mapping with a name, properties and a team."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthog_jobs.errors import EventError
from posthog_jobs.payloads import check_payload


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
    if isinstance(checked["team_id"], bool) or not isinstance(checked["team_id"], int):
        raise EventError(
            f"the event's team_id is of type {type(checked['team_id']).__name__}; make it an int"
        )
    check_payload(checked, "event")
    return checked
