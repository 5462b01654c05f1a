from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given

from posthog_jobs.errors import StoreValueError
from posthog_jobs.jobs.payload import MAX_KEY_BYTES, check_key, decode, encode, in_order
from tests.jobs.test_payloads import payloads


@given(payloads)
def test_values_come_back_equal(value: Any) -> None:
    """A value that is written and read again is equal to what it was."""
    assert decode(encode(value)) == value


def test_equal_dicts_are_equal_text_in_order() -> None:
    """The order of a dict's keys is kept, and can be put aside to find what is equal."""
    texts = encode({"a": 1, "b": {"c": 2, "d": 3}}), encode({"b": {"d": 3, "c": 2}, "a": 1})

    assert list(decode(texts[1])["b"]) == ["d", "c"]
    assert in_order(texts[0]) == in_order(texts[1])
    assert in_order(encode([1, True, 1.0, "1"])) == encode([1, True, 1.0, "1"])


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [(None, 5, 5), (None, None, None), ("null", 5, None), (b"1", 5, 1)],
)
def test_the_default_stands_for_no_value(text: Any, default: object, value: object) -> None:
    """Where nothing is kept the default is returned, but not where None is kept."""
    assert decode(text, default) is value or decode(text, default) == value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        b"\x00\xff",
        datetime(2024, 2, 29, tzinfo=UTC),
        {"id": UUID(int=5), "price": Decimal("1.10")},
    ],
)
def test_types_come_back(value: Any) -> None:
    """Bytes, datetimes, UUIDs and decimals come back as what they were."""
    back = decode(encode(value))

    assert (back, type(back)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "value is of type set"),
        ({"a": [(1,)]}, r"value\['a'\]\[0\] is of type tuple.*use a list"),
        (float("nan"), "value is nan"),
        ({1: 2}, r"value has the key '1' of type int"),
    ],
)
def test_values_that_cannot_be_kept(value: Any, message: str) -> None:
    """What cannot come back equal is refused, naming where it is and the fix."""
    with pytest.raises(StoreValueError, match=message):
        encode(value)


@pytest.mark.parametrize("key", ["a", " ", "a:b", "\n", "ключ", "x" * MAX_KEY_BYTES])
def test_keys(key: str) -> None:
    """Every string of 1 to 1,024 bytes is a key."""
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (5, r"not int; use str\(key\)"),
        (None, "not NoneType"),
        (b"a", "not bytes"),
        ("", "has 0 bytes"),
        ("x" * 1025, "has 1025 bytes; use 1 to 1024"),
        ("ж" * 513, "has 1026 bytes"),
        ("\ud800", "surrogates"),
    ],
)
def test_keys_that_cannot_be_used(key: Any, message: str) -> None:
    """A key of another type or size is refused with what is wrong about it."""
    with pytest.raises(StoreValueError, match=message) as caught:
        check_key(key)
    assert len(str(caught.value)) < 200
