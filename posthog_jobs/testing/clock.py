"""A clock that stands still until a test turns it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from posthog_jobs.jobs.due import due_at, due_in

if TYPE_CHECKING:
    from posthog_jobs.jobs.due import Number

_FIRST: Final = datetime.min.replace(tzinfo=UTC)


class Clock:
    """The time that `run_in`, a ttl and a waiting job go by; it never goes back."""

    __slots__ = ("_now",)

    def __init__(self, now: datetime | None = None) -> None:
        """Set the clock.

        Args:
            now: an aware datetime; None for the present, which app code that asks Python for the
                time reckons from, too.
        """
        self._now = datetime.now(UTC) if now is None else due_at(now, now=_FIRST, call="Clock")

    @property
    def now(self) -> datetime:
        """What it shows, an aware datetime in UTC."""
        return self._now

    def turn(self, number: Number, unit: str) -> None:
        """Turn it on by a duration, in the units of `run_in`, and run nothing.

        Raises:
            DurationError: the number or the unit is not one.
        """
        self._now = due_in(number, unit, now=self._now)

    def turn_to(self, moment: datetime) -> None:
        """Turn it on to a moment, an aware datetime; one that has passed leaves it as it is."""
        self._now = due_at(moment, now=self._now, call="turn_to")

    def __repr__(self) -> str:
        return f"<Clock {self._now.isoformat()}>"
