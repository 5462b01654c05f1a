"""Events to test with, shaped as PostHog's own (`@posthog/plugin-scaffold/test/utils`).

What is not given is the same in every run: an event's `uuid` follows from its other fields.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import NAMESPACE_URL, uuid5

if TYPE_CHECKING:
    from posthog_jobs.hooks.events import PluginEvent

_PERSON: Final = {"$os": "Linux", "$browser": "Firefox", "$browser_version": 128}


def create_event(**fields: Any) -> PluginEvent:
    """Return a custom event.

    Args:
        fields: what shall differ, `event`, `properties` and `team_id` too; for a field with a
            `$`, `create_event(**{"$set": {}})`.
    """
    event = {
        "event": "sign up",
        "properties": {"plan": "free"},
        "team_id": 1,
        "distinct_id": "user-42",
        "ip": "203.0.113.7",
        "site_url": "http://localhost:8000",
        "now": "2024-02-29T12:00:01.250000+00:00",
        "sent_at": "2024-02-29T12:00:01.000000+00:00",
        "timestamp": "2024-02-29T12:00:00.000000+00:00",
        **fields,
    }
    if "uuid" not in event:
        written = json.dumps(event, sort_keys=True, default=repr)
        event["uuid"] = str(uuid5(NAMESPACE_URL, written))
    return cast("PluginEvent", event)


def create_pageview(**fields: Any) -> PluginEvent:
    """Return a `$pageview`, as PostHog's web library captures it; see `create_event`."""
    properties = {
        **_PERSON,
        "$lib": "web",
        "$lib_version": "1.130.1",
        "$device_id": "018f0c5e-1f6b-7c3a-9d2e-3b4c5d6e7f80",
        "$session_id": "018f0c5e-1f6b-7c3a-9d2e-3b4c5d6e7f81",
        "$host": "localhost:8000",
        "$pathname": "/pricing",
        "$current_url": "http://localhost:8000/pricing",
        "$referrer": "$direct",
        "$referring_domain": "$direct",
        "$screen_height": 1080,
        "$screen_width": 1920,
        "distinct_id": "user-42",
        "token": "phc_testing",
    }
    return create_event(**{"event": "$pageview", "properties": properties, **fields})


def create_identify(**fields: Any) -> PluginEvent:
    """Return an `$identify`, which sets properties of its person; see `create_event`."""
    person = {**_PERSON, "email": "user-42@example.com"}
    properties = {"$anon_distinct_id": "018f0c5e-1f6b-7c3a-9d2e-3b4c5d6e7f80", "$set": person}
    event = {"event": "$identify", "properties": properties, "$set": dict(person)}
    return create_event(**{**event, **fields})
