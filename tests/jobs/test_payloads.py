from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from posthog_jobs.errors import PayloadError, PayloadTooLargeError
from posthog_jobs.jobs.payload import MAX_DEPTH, check_payload, dumps, loads, measure
from tests.odd_times import IN_BROKEN_ZONE, NOT_A_TIME, BrokenZone, LunarDate, LunarTime, stamp

Pair = namedtuple("Pair", "a b")  # noqa: PYI024


class Colour(enum.Enum):
    RED = "red"


class Shade(enum.StrEnum):
    DARK = "dark"


class Level(enum.IntEnum):
    HIGH = 3


class LastOfEach(dict[str, list[int]]):
    """Django's QueryDict, and werkzeug's MultiDict, show one value of each key."""

    def items(self) -> Any:
        return [(key, values[-1]) for key, values in super().items()]


class Price(Decimal):
    def __str__(self) -> str:
        return f"{super().__str__()[:-1]}0"


@dataclass
class Point:
    x: int = 0


offsets = st.builds(
    lambda seconds: timezone(timedelta(seconds=seconds)), st.integers(-86_399, 86_399)
)
zones = st.none() | st.just(UTC) | offsets
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.binary()
)
payloads = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(payloads)
def test_what_is_accepted_arrives_equal(payload: Any) -> None:
    """Payload: JSON's values and what kombu's JSON carries are equal on arrival."""
    check_payload(payload)

    arrived = loads(dumps(payload))

    assert arrived == payload
    assert repr(type(arrived)) == repr(type(payload))


@given(payloads)
def test_the_json_is_that_of_kombu(payload: Any) -> None:
    """Payload: it is written byte for byte as Celery's JSON, and read as Celery reads it."""
    text = dumps(payload)

    assert text == kombu_json.dumps(payload)
    assert repr(loads(text)) == repr(loads(text.encode())) == repr(kombu_json.loads(text))


@pytest.mark.parametrize(
    "payload",
    [
        None,
        0,
        "",
        [],
        {},
        False,
        -0.0,
        10**4200,
        -(10**4200),
        5e-324,
        1.7976931348623157e308,
        "\x00",
        b"\xff\x00",
        b"",
        Decimal("Infinity"),
        Decimal("1e-999999"),
        datetime(1, 1, 1),  # noqa: DTZ001
        datetime.max.replace(tzinfo=UTC),
        date.min,
        time.max,
        time(1, 2, tzinfo=timezone(timedelta(hours=-5))),
        stamp(0),
        time(1, 2, tzinfo=ZoneInfo("UTC")),
        "\U0001f600",
        UUID(int=0),
        OrderedDict(b=1, a=[2]),
        defaultdict(list, a=[1]),
        Shade.DARK,
        Level.HIGH,
        {Shade.DARK: Level.HIGH},
        {"__type__": "datetime", "__value__": "no", "more": 1},
        {"__type__": "datetime"},
        [{"deep": [{"at": datetime(2024, 2, 29, tzinfo=UTC), "id": UUID(int=1)}]}],
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_values_at_the_edge_arrive_equal(payload: Any) -> None:
    """Payload: the smallest, the largest and the oddest values are equal on arrival too."""
    check_payload(payload)

    assert loads(dumps(payload)) == payload
    assert dumps(payload) == kombu_json.dumps(payload)


class Reduced:
    def __json__(self) -> object:
        return {"at": date(2024, 2, 29)}


def test_json_that_others_write() -> None:
    """Payload: what other code puts beside it is written, and refused, as by Celery's JSON."""
    assert dumps([Reduced()]) == kombu_json.dumps([Reduced()])
    for write in (dumps, kombu_json.dumps):
        with pytest.raises(TypeError, match="not JSON serializable"):
            write({"a": object()})
    for read in (loads, kombu_json.loads):
        with pytest.raises(ValueError, match=r"type"):
            read('{"__type__": "planet", "__value__": 1}')


def test_measure() -> None:
    """Payload: its size counts the bytes of its JSON, and one over the limit is refused."""
    assert measure({"a": "é"}, 15) == len('{"a": "\\u00e9"}') == 15
    with pytest.raises(PayloadTooLargeError, match="has 15 bytes as JSON, over the limit of 14"):
        measure({"a": "é"}, 14)


@pytest.mark.parametrize(
    ("bad", "fix"),
    [
        ((1, 2), "use a list"),
        ({1, 2}, "use a sorted list"),
        (frozenset({1}), "use a sorted list"),
        (bytearray(b"x"), r"use bytes\(...\)"),
        (memoryview(b"x"), "JSON values"),
        (Pair(1, 2), "JSON values"),
        (Colour.RED, "JSON values"),
        (Point(), "JSON values"),
        (timedelta(1), "JSON values"),
        (Fraction(1, 2), "JSON values"),
        (1j, "JSON values"),
        (Path("x"), "JSON values"),
        (MappingProxyType({}), "JSON values"),
        (object(), "JSON values"),
        (len, "JSON values"),
        (int, "JSON values"),
        (ValueError("x"), "JSON values"),
        (iter([]), "JSON values"),
        (range(3), "JSON values"),
        (float("nan"), "JSON has no word"),
        (float("inf"), "JSON has no word"),
        (Decimal("NaN"), "equals nothing"),
        (Decimal("sNaN"), "equals nothing"),
        ({"__type__": "datetime", "__value__": "2024-01-01"}, "mark typed values"),
        ({"__value__": 1, "__type__": 2}, "mark typed values"),
        (stamp(1), "would not be equal; use a string"),
        (NOT_A_TIME, "would not be equal; use a string"),
        (IN_BROKEN_ZONE, "would not be equal; use a string"),
        (time(1, tzinfo=BrokenZone()), "would not be equal; use a string"),
        (time(1, tzinfo=ZoneInfo("Europe/Berlin")), "a time with an offset"),
        (LunarDate(2030, 1, 1), "would not be equal; use a string"),
        (LunarTime(1), "would not be equal; use a string"),
        (Price("1.05"), "would not be equal; use a string"),
        (LastOfEach(a=[1, 2]), "use a plain dict"),
        ("\ud800", r'use text\.encode\("utf-16", "surrogatepass"\)'),
        ("an emoji: \ud83d\ude00", "as one character"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_cannot_travel_is_refused_with_its_path(bad: Any, fix: str) -> None:
    """Payload: anything else is refused, naming the path of the bad value and the fix."""
    for payload, path in (
        (bad, "payload"),
        ([0, [bad]], "payload[1][0]"),
        ({"items": [1, {"a b": bad}]}, "payload['items'][1]['a b']"),
    ):
        with pytest.raises(PayloadError, match=fix) as caught:
            check_payload(payload)
        assert str(caught.value).startswith(f"{path} ")


@pytest.mark.parametrize("key", [1, None, True, b"a", 1.5, (1,), UUID(int=0), Colour.RED])
def test_keys_are_strings(key: Any) -> None:
    """Payload: a key of another type would arrive as a string, so it is refused by its dict."""
    with pytest.raises(PayloadError, match=r"payload\[0\] has the key .* use str\(key\)") as caught:
        check_payload([{"good": 1, key: 2}])
    assert f"of type {type(key).__name__};" in str(caught.value)


@pytest.mark.parametrize("key", ["\ud800", "\ud83d\ude00"])
def test_keys_are_unicode(key: str) -> None:
    """Payload: a key with surrogates would be another one on arrival, so it is refused."""
    with pytest.raises(PayloadError, match=r"^the key '\\ud8.*' of payload\[0\] holds surrogates"):
        check_payload([{"good": 1, key: 2}])


def test_the_hour_that_comes_twice() -> None:
    """Payload: either 2:30 of the end of summer time arrives as the moment that it is."""
    for fold in (0, 1):
        moment = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
        check_payload(moment)
        assert loads(dumps(moment)).astimezone(UTC) == moment.astimezone(UTC)


def test_the_first_bad_value_is_named() -> None:
    """Payload: of several bad values the first is named, under the name its caller chose."""
    with pytest.raises(PayloadError, match=r"^event\['b'\] is of type set"):
        check_payload({"a": 1, "b": {1}, "c": {2}}, "event")


def nested(kind: str, depth: int) -> Any:
    payload: Any = [] if kind == "list" else {}
    for _ in range(depth - 1):
        payload = [payload] if kind == "list" else {"a": payload}
    return payload


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_depth(kind: str) -> None:
    """Payload: so many levels arrive, one more is refused, and 100,000 harm nobody."""
    deepest = nested(kind, MAX_DEPTH)
    check_payload(deepest)
    assert loads(dumps(deepest)) == deepest

    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(PayloadError, match=f"deeper than {MAX_DEPTH} levels") as caught:
            check_payload(nested(kind, depth))
        assert len(str(caught.value)) < 200


def test_cycles() -> None:
    """Payload: a value that holds itself is refused, directly or through others."""
    in_itself: list[Any] = []
    in_itself.append(in_itself)
    through_another: dict[str, Any] = {"list": [1]}
    through_another["list"].append(through_another)

    for payload in (in_itself, through_another):
        with pytest.raises(PayloadError, match="or in itself"):
            check_payload(payload)


def test_the_same_value_twice_is_no_cycle() -> None:
    """Payload: one value in two places is as good as two."""
    shared = {"a": [1]}

    check_payload([shared, shared, {"again": shared}])
