from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthog_jobs.apps.export_options import BYTES, SECONDS, ExportOptions


def test_defaults() -> None:
    """Options: without a word in the config, or with empty fields, 1 MiB and 10 seconds."""
    fields = ("exportEventsBufferBytes", "exportEventsBufferSeconds", "exportEventsToIgnore")

    for config in ({}, dict.fromkeys(fields), dict.fromkeys(fields, "")):
        assert ExportOptions.of(config) == (ExportOptions(), [])
    assert ExportOptions() == ExportOptions(
        buffer_bytes=1024 * 1024, buffer_seconds=10, ignored=frozenset()
    )


def test_given() -> None:
    """Options: numbers, and strings as PostHog's forms have them, count; names are trimmed."""
    options, wrong = ExportOptions.of(
        {
            "exportEventsBufferBytes": " 2000 ",
            "exportEventsBufferSeconds": 1.5,
            "exportEventsToIgnore": "$pageview, sign up ,,",
        }
    )

    assert options == ExportOptions(
        buffer_bytes=2000, buffer_seconds=1.5, ignored=frozenset({"$pageview", "sign up"})
    )
    assert wrong == []


@pytest.mark.parametrize(
    ("field", "value", "expected", "sentence"),
    [
        (
            "exportEventsBufferBytes",
            "abc",
            1024 * 1024,
            "is not a number; use one from 1 to 10",
        ),
        ("exportEventsBufferBytes", True, 1024 * 1024, "is not a number"),
        ("exportEventsBufferBytes", [1], 1024 * 1024, "is not a number"),
        ("exportEventsBufferBytes", "nan", 1024 * 1024, "is not a number"),
        ("exportEventsBufferBytes", 0, 1, "is out of range; use 1 to 10485760"),
        ("exportEventsBufferBytes", "inf", 10485760, "is out of range"),
        ("exportEventsBufferBytes", 10**400, 10485760, "is out of range"),
        ("exportEventsBufferSeconds", "0", 1, "is out of range; use 1 to 600"),
        ("exportEventsBufferSeconds", 3600, 600, "is out of range; use 1 to 600"),
    ],
)
def test_numbers_that_cannot_be(field: str, value: Any, expected: float, sentence: str) -> None:
    """Options: a wrong number is named, with the fix, and the default or nearest one counts."""
    options, wrong = ExportOptions.of({field: value})

    found = {
        "exportEventsBufferBytes": options.buffer_bytes,
        "exportEventsBufferSeconds": options.buffer_seconds,
    }
    assert found[field] == expected
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{field} {sentence}")


def test_names_that_are_none() -> None:
    """Options: names that are no string are named, and nothing is ignored."""
    options, wrong = ExportOptions.of({"exportEventsToIgnore": ["a"]})

    assert options == ExportOptions()
    assert wrong[0].startswith("exportEventsToIgnore is of type list; use a string")


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary())
def test_any_value(value: object) -> None:
    """Options: whatever the config holds, there are options that can work."""
    options, wrong = ExportOptions.of(
        {"exportEventsBufferBytes": value, "exportEventsBufferSeconds": value}
    )

    assert BYTES[0] <= options.buffer_bytes <= BYTES[1]
    assert SECONDS[0] <= options.buffer_seconds <= SECONDS[1]
    assert all("exportEventsBuffer" in sentence for sentence in wrong)
