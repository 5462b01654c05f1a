"""Times and numbers of classes that are not Python's own, as pandas and numpy have them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, tzinfo
from typing import NoReturn


class Index:
    """A whole number that is not an int, as numpy's are."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


class Stamp(datetime):
    """A moment to the nanosecond, as pandas' Timestamp."""

    nanosecond = 0

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.nanosecond == getattr(other, "nanosecond", 0)

    __hash__ = datetime.__hash__


def stamp(nanosecond: int) -> Stamp:
    made = Stamp(2030, 1, 1, tzinfo=UTC)
    made.nanosecond = nanosecond
    return made


class NotATime(datetime):
    """No moment at all, as pandas' NaT, which looks like the first one of the year 1."""

    def utcoffset(self) -> NoReturn:
        raise ValueError("NaTType does not support utcoffset")

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = datetime.__hash__


NOT_A_TIME = NotATime(1, 1, 1)


class LunarDate(date):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LunarDate) and super().__eq__(other)

    __hash__ = date.__hash__


class LunarTime(time):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LunarTime) and super().__eq__(other)

    __hash__ = time.__hash__


class BrokenZone(tzinfo):
    """A time zone that raises where it is asked."""

    def utcoffset(self, _: object) -> NoReturn:
        raise LookupError("no such zone")

    dst = tzname = utcoffset


IN_BROKEN_ZONE = datetime(2030, 1, 1, tzinfo=BrokenZone())
