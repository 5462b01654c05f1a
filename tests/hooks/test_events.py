from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from posthog_jobs.errors import EventError, PayloadError
from posthog_jobs.hooks.events import check_event


def test_what_is_missing_is_filled_in() -> None:
    """Hooks can rely on an event's properties and team, and the caller's own is not changed."""
    event = {"event": "sign up"}

    checked = check_event(event, default_team_id=7)

    assert checked == {"event": "sign up", "properties": {}, "team_id": 7}
    assert event == {"event": "sign up"}


def test_what_is_there_is_kept() -> None:
    """An event keeps all that its caller wrote, its own team too."""
    event = {"event": "x", "properties": {"a": [1]}, "team_id": 2, "distinct_id": "d", "ip": None}

    assert check_event(event, default_team_id=7) == event


def test_any_mapping_is_an_event() -> None:
    """An event and its properties may be any mapping; hooks get dicts of their own."""
    properties = {"a": 1}
    event = MappingProxyType({"event": "x", "properties": MappingProxyType(properties)})

    checked = check_event(event, default_team_id=7)

    assert type(checked["properties"]) is dict
    assert checked["properties"] == properties
    assert checked["properties"] is not properties


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (None, 'an event is a mapping, not NoneType; such as {"event"'),
        ("sign up", "an event is a mapping, not str"),
        ([("event", "x")], "an event is a mapping, not list"),
        ({}, "the event has no name; add"),
        ({"event": ""}, "the event has no name"),
        ({"event": 5}, "the event has no name"),
        ({"event": "x", "properties": None}, "properties are of type NoneType; make them"),
        ({"event": "x", "properties": [1]}, "properties are of type list"),
        ({"event": "x", "team_id": None}, "team_id is of type NoneType; make it an int"),
        ({"event": "x", "team_id": "1"}, "team_id is of type str"),
        ({"event": "x", "team_id": True}, "team_id is of type bool"),
    ],
)
def test_what_is_no_event(event: Any, message: str) -> None:
    """What lacks an event's parts is refused, with the part and the fix."""
    with pytest.raises(EventError, match=message):
        check_event(event, default_team_id=7)


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ({"event": "x", "properties": {"a": [{1}]}}, r"event\['properties'\]\['a'\]\[0\] is of"),
        ({"event": "x", "at": (1,)}, r"event\['at'\] is of type tuple"),
        ({"event": "x", 5: 1}, r"event has the key '5' of type int"),
    ],
)
def test_what_cannot_travel(event: Any, path: str) -> None:
    """An event that no message can carry is refused, with the path of what is in the way."""
    with pytest.raises(PayloadError, match=path):
        check_event(event, default_team_id=7)
