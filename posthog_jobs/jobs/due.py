"""When a job is due: a number and a unit, or a datetime, made into one moment in UTC.

The units and their spelling are PostHog's (`runIn` in its jobs documentation).
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from dateutil.relativedelta import relativedelta

from posthog_jobs.errors import (
    DueError,
    DurationError,
    NaiveDatetimeError,
    did_you_mean,
    plain_number,
)

if TYPE_CHECKING:
    from posthog_jobs.errors import Number, PlainNumber

#: Units of fixed length, in the singular; they take fractions.
FIXED_UNITS: Final = {
    "millisecond": timedelta(milliseconds=1),
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}

#: Units of the calendar, in the singular, in months; they take whole numbers.
CALENDAR_UNITS: Final = {"month": 1, "quarter": 3, "year": 12}

#: The last moment that a job can be due at. One day short of what a datetime can hold,
#: so that the moment exists in every time zone that a worker may be in.
LAST_DUE: Final = datetime(9999, 12, 31, tzinfo=UTC)

_FIRST_MOMENT: Final = datetime.min.replace(tzinfo=UTC)
_LAST_MOMENT: Final = datetime.max.replace(tzinfo=UTC)

#: Of any unit, more than there is time until then.
_FARTHEST: Final = 10**15
#: Of any unit, less than half a microsecond.
_NOTHING: Final = 1e-13
_MICROSECOND: Final = timedelta(microseconds=1)
_SHOWN_BITS: Final = 128

_SPELLINGS: Final = {
    spelling: unit for unit in (*FIXED_UNITS, *CALENDAR_UNITS) for spelling in (unit, f"{unit}s")
}
_PLURALS: Final = ", ".join(f"{unit}s" for unit in (*FIXED_UNITS, *CALENDAR_UNITS))


def due_in(number: Number, unit: str, *, now: datetime) -> datetime:
    """Return the moment that lies a duration after `now`.

    Months, quarters and years are those of the calendar in UTC, clamped at the end of a
    month: one month after 31 January is the last day of February.

    Args:
        number: how many units; whole for months, quarters and years; 0 or more.
        unit: milliseconds, seconds, minutes, hours, days, weeks, months, quarters or
            years, in the singular or the plural.
        now: where the duration starts, an aware datetime.

    Returns:
        An aware datetime in UTC.

    Raises:
        DurationError: the number or the unit is not one, or the result lies past year 9999.
    """
    singular = _singular(unit)
    count = _checked_number(number, unit)
    start = now.astimezone(UTC)
    if count <= _FARTHEST:
        if singular in CALENDAR_UNITS:
            _check_whole(count, unit)
        try:
            if singular in CALENDAR_UNITS:
                due = start + relativedelta(months=int(count) * CALENDAR_UNITS[singular])
            else:
                due = start + _span(count, FIXED_UNITS[singular])
        except (OverflowError, ValueError):
            pass
        else:
            if due <= LAST_DUE:
                return due
    raise DurationError(
        f"run_in({_shown(count)}, {unit!r}) lies past the year 9999, the last that a date can "
        "have; use a shorter duration"
    )


def due_at(moment: datetime, *, now: datetime, call: str = "run_at") -> datetime:
    """Return the moment a job is due that shall run at `moment`: never before `now`.

    Args:
        moment: an aware datetime, of any time zone; one in the past means now.
        now: the present, an aware datetime.
        call: what the caller is called in messages.

    Returns:
        An aware datetime in UTC.

    Raises:
        NaiveDatetimeError: the datetime has no time zone.
        DueError: it is not a moment, or it lies past year 9999 in UTC.
    """
    due = in_utc(moment, call)
    if due > LAST_DUE:
        raise DueError(
            f"{call}({moment!r}) lies past {LAST_DUE:%Y-%m-%d} in UTC; use an earlier one"
        )
    return max(due, now.astimezone(UTC))


def in_utc(moment: datetime, call: str) -> datetime:
    """Return a moment in UTC.

    Args:
        moment: an aware datetime, of any time zone.
        call: what the caller is called in messages.

    Raises:
        NaiveDatetimeError: the datetime has no time zone.
        DueError: it is not a datetime, or, as pandas' NaT, it does not name a moment.
    """
    if not isinstance(moment, datetime):
        raise DueError(
            f"{call} takes a datetime, not {type(moment).__name__}; for example "
            f"{call}(datetime.now(timezone.utc) + timedelta(hours=1))"
        )
    try:
        if moment.utcoffset() is not None:
            return moment.astimezone(UTC)
    except OverflowError:  # the first or the last day of what a datetime can hold
        return _FIRST_MOMENT if moment.year == 1 else _LAST_MOMENT
    except Exception as error:  # a class or a time zone that is not Python's own
        raise DueError(
            f"{call}({moment!r:.80}) does not name a moment, since it raises "
            f"{type(error).__name__}: {error}; use an aware datetime"
        ) from error
    raise NaiveDatetimeError(
        f"{call}({moment!r}) has no time zone, so it names no moment; write "
        "datetime.now(timezone.utc) instead of datetime.now() or utcnow(), or attach the zone "
        "that is meant: moment.replace(tzinfo=timezone.utc)"
    )


def _singular(unit: str) -> str:
    if not isinstance(unit, str):
        raise DurationError(
            f"run_in takes a unit as a string, not {type(unit).__name__}; the units are {_PLURALS}"
        )
    try:
        return _SPELLINGS[unit]
    except KeyError:
        hint = did_you_mean(unit.lower(), _SPELLINGS)
        raise DurationError(
            f"unknown unit {unit[:40]!r} in run_in; {hint}the units are {_PLURALS}"
        ) from None


def _checked_number(given: Number, unit: str) -> PlainNumber:
    number = plain_number(given)
    if number is None:
        raise DurationError(
            f"run_in takes a number of {unit}, not {type(given).__name__}; "
            "for example run_in(30, 'seconds')"
        )
    # a Decimal tells by itself: math.isfinite makes a float of it, which has less room
    if isinstance(number, Decimal) and not number.is_finite():
        raise DurationError(f"run_in({number}, {unit!r}) is no duration; use a finite number")
    if isinstance(number, float) and not math.isfinite(number):
        raise DurationError(f"run_in({number}, {unit!r}) is no duration; use a finite number")
    if number < 0:
        raise DurationError(
            f"run_in({_shown(number)}, {unit!r}) is negative; use 0 or more, or run_now()"
        )
    return number


def _check_whole(number: PlainNumber, unit: str) -> None:
    if number != int(number):
        raise DurationError(
            f"run_in({_shown(number)}, {unit!r}): {unit} differ in length, so they take whole "
            "numbers; use one, or days"
        )


def _span(number: PlainNumber, length: timedelta) -> timedelta:
    if number < _NOTHING:  # before a Decimal such as 1e-999999999 becomes a Fraction
        return timedelta(0)
    return timedelta(microseconds=round(Fraction(number) * (length // _MICROSECOND)))


def _shown(number: PlainNumber) -> str:
    """Return the number for a message, short where a wrong one has thousands of digits."""
    if isinstance(number, int) and number.bit_length() > _SHOWN_BITS:
        return f"an integer of {number.bit_length()} bits"
    try:
        return str(number)[:40]
    except ValueError:  # a Fraction of more digits than Python writes
        return "a fraction of thousands of digits"
