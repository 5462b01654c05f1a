"""When a job is due: a number and a unit, or a datetime, made into one moment in UTC.

The units and their spelling are PostHog's (`runIn` in its jobs documentation). A moment is of whole
milliseconds, as Redis has it, rounded up: nothing runs early.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
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
    from posthog_jobs.errors import Number

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

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

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
        An aware datetime in UTC, of whole milliseconds; `now` itself if no time lies between.

    Raises:
        DurationError: the number or the unit is not one, or the result lies past year 9999.
    """
    singular, count, start = _singular(unit), plain_number(number), now.astimezone(UTC)
    if count is None:
        raise DurationError(
            f"run_in takes a number of {unit}, not {type(number).__name__}; "
            "for example run_in(30, 'seconds')"
        )
    call = f"run_in({number!s:.40}, {unit!r})"
    if not 0 <= count < math.inf:
        raise DurationError(
            f"{call} is not a duration; use a finite number, 0 or more, or run_now()"
        )
    if singular in CALENDAR_UNITS and count != int(count):
        raise DurationError(
            f"{call}: {unit} differ in length, so they take whole numbers; use one, or days"
        )
    try:
        if singular in CALENDAR_UNITS:
            due = start + relativedelta(months=int(count) * CALENDAR_UNITS[singular])
        else:
            due = start + FIXED_UNITS[singular] * count
    except (OverflowError, ValueError):
        due = None
    if due is None or due > LAST_DUE:
        raise DurationError(
            f"{call} lies past the year 9999, the last that a date can have; use a shorter duration"
        )
    return _not_before(start, due)


def due_at(moment: datetime, *, now: datetime, call: str = "run_at") -> datetime:
    """Return the moment a job is due that shall run at `moment`: never before `now`.

    Args:
        moment: an aware datetime, of any time zone; one in the past means now.
        now: the present, an aware datetime.
        call: what the caller is called in messages.

    Returns:
        An aware datetime in UTC, of whole milliseconds, or `now` itself.

    Raises:
        NaiveDatetimeError: the datetime has no time zone.
        DueError: it is not a moment, or it lies past year 9999 in UTC.
    """
    due = in_utc(moment, call)
    if due > LAST_DUE:
        raise DueError(
            f"{call}({moment!r}) lies past {LAST_DUE:%Y-%m-%d} in UTC; use an earlier one"
        )
    return _not_before(now.astimezone(UTC), due)


def _not_before(now: datetime, due: datetime) -> datetime:
    return moment_of(milliseconds(due, "due")) if due > now else now


def milliseconds(moment: datetime, name: str) -> int:
    """Return a moment in milliseconds since the epoch, rounded up, as Redis has it.

    Args:
        moment: an aware datetime.
        name: of the argument that it is, for the error.

    Raises:
        DueError: it is not a moment.
        NaiveDatetimeError: it has no time zone.
    """
    return -((EPOCH - in_utc(moment, name)) // FIXED_UNITS["millisecond"])


def moment_of(milliseconds: int) -> datetime:
    """Return the reverse; a plain task's eta may lie past what a datetime in UTC can hold."""
    try:
        return EPOCH + milliseconds * FIXED_UNITS["millisecond"]
    except OverflowError:
        return LAST_DUE


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
        return moment.replace(tzinfo=UTC)
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
