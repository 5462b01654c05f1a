"""Moments as Redis has them: whole milliseconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from posthog_jobs.jobs.due import LAST_DUE, in_utc

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def milliseconds(moment: datetime, name: str) -> int:
    """Return a moment in milliseconds since the epoch, rounded up: nothing runs early.

    Args:
        moment: an aware datetime.
        name: of the argument that it is, for the error.

    Raises:
        DueError: it is not a moment.
        NaiveDatetimeError: it has no time zone.
    """
    return -((EPOCH - in_utc(moment, name)) // _MS)


def moment_of(milliseconds: int) -> datetime:
    """Return the reverse; a plain task's eta may lie past what a datetime in UTC can hold."""
    try:
        return EPOCH + milliseconds * _MS
    except OverflowError:
        return LAST_DUE
