from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthog_jobs.errors import DueError, DurationError, NaiveDatetimeError
from posthog_jobs.jobs.due import CALENDAR_UNITS, FIXED_UNITS, LAST_DUE, due_at, due_in
from tests.odd_times import IN_BROKEN_ZONE, NOT_A_TIME, Index

NOW = datetime(2024, 1, 31, 12, 30, tzinfo=UTC)
ZONES = (
    UTC,
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("America/New_York"),
    ZoneInfo("Australia/Lord_Howe"),  # its summer time is half an hour
    timezone(timedelta(hours=14)),
    timezone(timedelta(hours=-23, minutes=-59, seconds=-59, microseconds=-1)),
)

moments = st.builds(
    lambda moment, zone: moment.astimezone(zone),
    st.datetimes(datetime(1971, 1, 1), datetime(2900, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.sampled_from(ZONES),
)
fixed_units = st.sampled_from(sorted(FIXED_UNITS))
calendar_units = st.sampled_from(sorted(CALENDAR_UNITS))
endings = st.sampled_from(["", "s"])


def up(moment: datetime, now: datetime) -> datetime:
    # to whole milliseconds, as Redis has them; what is due at once is not moved
    return moment if moment <= now else moment + timedelta(microseconds=-moment.microsecond % 1000)


@given(st.integers(0, 10_000), fixed_units, endings, moments)
def test_fixed_units_are_exact(number: int, unit: str, ending: str, now: datetime) -> None:
    """run_in: so many of a unit of fixed length pass on the clock, whatever zone now is in."""
    due = due_in(number, unit + ending, now=now)

    assert due == up(now.astimezone(UTC) + number * FIXED_UNITS[unit], now)
    assert due.tzinfo is UTC


@given(st.integers(0, 1000), calendar_units, endings, moments)
def test_calendar_units_are_of_the_calendar(
    number: int, unit: str, ending: str, now: datetime
) -> None:
    """run_in: months, quarters and years keep day and time in UTC, clamped at a month's end."""
    start = now.astimezone(UTC)
    years, month = divmod(start.month - 1 + number * CALENDAR_UNITS[unit], 12)
    year, month = start.year + years, month + 1
    day = min(start.day, monthrange(year, month)[1])

    due = due_in(number, unit + ending, now=now)

    assert due == up(start.replace(year=year, month=month, day=day), now)
    assert due.tzinfo is UTC


@pytest.mark.parametrize(
    ("start", "number", "unit", "expected"),
    [
        ((2024, 1, 31), 1, "month", (2024, 2, 29)),
        ((2023, 1, 31), 1, "month", (2023, 2, 28)),
        ((2024, 1, 31), 3, "months", (2024, 4, 30)),
        ((2024, 12, 31), 2, "months", (2025, 2, 28)),
        ((2023, 11, 30), 1, "quarter", (2024, 2, 29)),
        ((2024, 1, 31), 2, "quarters", (2024, 7, 31)),
        ((2024, 2, 29), 1, "year", (2025, 2, 28)),
        ((2024, 2, 29), 4, "years", (2028, 2, 29)),
        ((2096, 2, 29), 4, "years", (2100, 2, 28)),
        ((2024, 1, 31), 0, "months", (2024, 1, 31)),
    ],
)
def test_month_ends_and_leap_years(
    start: tuple[int, int, int], number: int, unit: str, expected: tuple[int, int, int]
) -> None:
    """run_in: a day that a month does not have becomes the month's last one."""
    assert due_in(number, unit, now=datetime(*start, tzinfo=UTC)) == datetime(*expected, tzinfo=UTC)


def test_a_month_is_counted_in_utc() -> None:
    """run_in: what is a month's end in UTC decides, not what it is where `now` was read."""
    tokyo = datetime(2024, 2, 1, 8, 0, tzinfo=ZoneInfo("Asia/Tokyo"))  # 31 January, 23:00 UTC

    assert due_in(1, "month", now=tokyo) == datetime(2024, 2, 29, 23, tzinfo=UTC)


@pytest.mark.parametrize("zone", ZONES[1:4], ids=str)
@pytest.mark.parametrize("month", [3, 4, 10, 11])
def test_a_day_has_24_hours_across_summer_time(zone: ZoneInfo, month: int) -> None:
    """run_in: a day is 24 hours and a month keeps its time in UTC, through changes of the clock."""
    now = datetime(2024, month, 1, 2, 30, tzinfo=zone)

    assert due_in(31, "days", now=now).timestamp() - now.timestamp() == 31 * 86_400
    assert due_in(1, "month", now=now).time() == now.astimezone(UTC).time()


@pytest.mark.parametrize(
    ("number", "unit", "microseconds"),
    [
        (0.5, "seconds", 500_000),
        (1.5, "milliseconds", 2_000),
        (Decimal("0.000001"), "second", 1000),
        (Decimal("2.5"), "hours", 9_000_000_000),
        (Fraction(1, 3), "minutes", 20_000_000),
        (Fraction(1, 3), "second", 334_000),
        (0.1, "weeks", 60_480_000_000),
        (1e-300, "weeks", 0),
        (-0.0, "seconds", 0),
        (True + True, "seconds", 2_000_000),
        (Index(3), "seconds", 3_000_000),
    ],
)
def test_fractions_of_fixed_units(number: Any, unit: str, microseconds: int) -> None:
    """run_in: units of fixed length take fractions of every kind, to the millisecond."""
    assert due_in(number, unit, now=NOW) - NOW == timedelta(microseconds=microseconds)


@pytest.mark.parametrize("number", [1.5, Decimal("0.1"), Fraction(1, 3)])
@pytest.mark.parametrize("unit", ["month", "quarters", "years"])
def test_calendar_units_take_no_fractions(number: Any, unit: str) -> None:
    """run_in: half a month is no length, and the message says so and not something else."""
    with pytest.raises(DurationError, match=r"whole numbers; use one, or days"):
        due_in(number, unit, now=NOW)


@pytest.mark.parametrize("number", [2.0, Decimal("2.00"), Decimal("2E0"), Fraction(4, 2)])
def test_calendar_units_take_whole_numbers_of_every_kind(number: Any) -> None:
    """run_in: a number that is whole counts months, whatever type it has."""
    assert due_in(number, "months", now=NOW) == datetime(2024, 3, 31, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (-1, "0 or more"),
        (-0.5, "0 or more"),
        (Decimal(-1), "0 or more"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (float("-inf"), "finite"),
        (Decimal("NaN"), "finite"),
        (Decimal("-Infinity"), "finite"),
        (True, "not bool"),
        ("5", "not str"),
        (None, "not NoneType"),
        (1j, "not complex"),
        (timedelta(1), "not timedelta"),
        ([5], "not list"),
    ],
)
@pytest.mark.parametrize("unit", ["seconds", "months"])
def test_no_number(number: Any, unit: str, reason: str) -> None:
    """run_in: what is no finite number from 0 on is refused with the reason."""
    with pytest.raises(DurationError, match=reason) as caught:
        due_in(number, unit, now=NOW)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("unit", "close"),
    [("secnds", "seconds"), ("Hours", "hours"), ("mins", "minutes"), ("yeers", "years")],
)
def test_unknown_units_with_a_suggestion(unit: str, close: str) -> None:
    """run_in: a misspelt unit is refused with the closest one and all that there are."""
    with pytest.raises(DurationError, match=f"did you mean '{close}'.*milliseconds, .*, years"):
        due_in(1, unit, now=NOW)


@pytest.mark.parametrize("unit", ["", "fortnight", "\u00b5s", 5, None, b"seconds", ["seconds"]])
def test_no_units(unit: Any) -> None:
    """run_in: what is nowhere near a unit is refused with all that there are."""
    with pytest.raises(DurationError, match=r"the units are milliseconds, .*, years|The units"):
        due_in(1, unit, now=NOW)


@pytest.mark.parametrize("unit", [*FIXED_UNITS, *CALENDAR_UNITS])
@pytest.mark.parametrize("number", [10**15, 1e300, 10**400, Decimal("1e300"), Fraction(10**300)])
def test_past_the_last_year(unit: str, number: Any) -> None:
    """run_in: a date past year 9999 is refused, however large the number."""
    with pytest.raises(DurationError, match=r"past the year 9999"):
        due_in(number, unit, now=NOW)


def test_the_last_moment() -> None:
    """run_in: the last day of year 9999 can be reached, and nothing after it."""
    span = LAST_DUE - NOW

    assert due_in(span // timedelta(milliseconds=1), "milliseconds", now=NOW) == LAST_DUE
    with pytest.raises(DurationError, match=r"past the year 9999"):
        due_in(span // timedelta(milliseconds=1) + 1, "milliseconds", now=NOW)


@given(moments, moments)
def test_run_at_is_never_before_now(moment: datetime, now: datetime) -> None:
    """run_at: the moment itself in UTC, or now if it has passed, in whichever zones both are."""
    due = due_at(moment, now=now)

    assert due == max(up(moment.astimezone(UTC), now), now.astimezone(UTC))
    assert due.tzinfo is UTC


@pytest.mark.parametrize(("fold", "hour"), [(0, 0), (1, 1)])
def test_run_at_in_a_repeated_hour(fold: int, hour: int) -> None:
    """run_at: of an hour that comes twice, the one that `fold` tells is meant."""
    moment = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)

    assert due_at(moment, now=NOW) == datetime(2024, 10, 27, hour, 30, tzinfo=UTC)


def test_a_naive_datetime() -> None:
    """run_at: a datetime without a zone is refused, and the message shows how to write one."""
    with pytest.raises(NaiveDatetimeError, match=r"datetime\.now\(timezone\.utc\)"):
        due_at(datetime(2030, 1, 1), now=NOW)  # noqa: DTZ001


@pytest.mark.parametrize("moment", [date(2030, 1, 1), "2030-01-01", 1e9, None, timedelta(1), 5])
def test_no_datetime(moment: Any) -> None:
    """run_at: what is no datetime is refused with its type and an example."""
    with pytest.raises(DueError, match=f"not {type(moment).__name__}; for example"):
        due_at(moment, now=NOW)


@pytest.mark.parametrize("moment", [NOT_A_TIME, IN_BROKEN_ZONE], ids=["NaT", "zone"])
def test_what_names_no_moment(moment: datetime) -> None:
    """run_at: a datetime that raises where it is asked, such as pandas' NaT, is our error."""
    with pytest.raises(DueError, match=r"^reschedule\(.* does not name a moment, since it raises"):
        due_at(moment, now=NOW, call="reschedule")


@pytest.mark.parametrize("hours", [-23, 0, 23])
def test_the_ends_of_time(hours: int) -> None:
    """run_at: in any zone the first day is past, and the last is refused with what the limit is."""
    zone = timezone(timedelta(hours=hours))

    assert due_at(datetime.min.replace(tzinfo=zone), now=NOW) == NOW
    with pytest.raises(DueError, match="9999-12-31"):
        due_at(datetime.max.replace(tzinfo=zone), now=NOW)
