"""Moments as Redis has them: whole milliseconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from posthog_jobs.errors import DueError, NaiveDatetimeError
from posthog_jobs.jobs.due import LAST_DUE

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def milliseconds(moment: datetime, name: str) -> int:
    """Return a moment in milliseconds since the epoch, rounded up: nothing runs early.

    Args:
        moment: an aware datetime.
        name: of the argument that it is, for the error.

    Raises:
        DueError: it is no datetime.
        NaiveDatetimeError: it has no time zone.
    """
    if not isinstance(moment, datetime):
        raise DueError(f"{name} is of type {type(moment).__name__}; use an aware datetime")
    if moment.utcoffset() is None:
        raise NaiveDatetimeError(
            f"{name}={moment.isoformat()} has no time zone; "
            f"say {name}={moment.isoformat()}.replace(tzinfo=timezone.utc) if it is UTC"
        )
    return -((EPOCH - moment) // _MS)


def moment_of(milliseconds: int) -> datetime:
    """Return the reverse; a plain task's eta may lie past what a datetime in UTC can hold."""
    try:
        return EPOCH + milliseconds * _MS
    except OverflowError:
        return LAST_DUE
