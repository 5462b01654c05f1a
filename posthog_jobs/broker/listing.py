"""Listings of what waits or failed: filters, pages, and the cursor that leads on to the next."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, TypeVar

from posthog_jobs.errors import PageError, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

R = TypeVar("R", bound=tuple[Any, ...])


def checked_limit(limit: object) -> int:
    """Return how many rows a page shall have at most.

    Raises:
        PageError: it is no whole number above 0.
    """
    if not is_whole(limit, 1):
        raise PageError(f"limit={limit!r} lists nothing; use a whole number above 0")
    return limit


def page_of(rows: Sequence[R], limit: int) -> tuple[Sequence[R], str | None]:
    """Return the rows of a page, and the cursor of the next one, if there is one.

    Args:
        rows: what there is, and if there is more than fits, one row more.
        limit: how many rows a page has at most.
    """
    page = rows[:limit]
    if not page or len(rows) == len(page):
        return page, None
    return page, base64.urlsafe_b64encode(json.dumps(page[-1]).encode()).decode()


def parse_cursor(
    cursor: str | None, kinds: tuple[Callable[[Any], Any], ...], page: str
) -> tuple[Any, ...] | None:
    """Return the row that a page begins behind.

    Args:
        cursor: what `page_of` returned; None for the first page.
        kinds: the types of the row's parts.
        page: the class whose `cursor` it should be, for the error.

    Raises:
        PageError: it is no cursor of such a page.
    """
    if cursor is None:
        return None
    if not isinstance(cursor, str):
        raise PageError(f"a cursor is a string, not {type(cursor).__name__}; pass {page}.cursor")
    try:
        row = json.loads(base64.urlsafe_b64decode(cursor))
        return tuple(kind(part) for kind, part in zip(kinds, row, strict=True))
    except (ValueError, TypeError) as error:
        raise PageError(
            f"{cursor!r} is no cursor of this list; pass {page}.cursor as it is"
        ) from error


def chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Cut a sequence into parts of a size, the last of which may be shorter."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def fits(app_id: str | None, job: str | None, app: str, task: str) -> bool:
    """Tell whether a listing of an app id and a job, or of all, has a task of an app.

    Args:
        app_id: the app id that is asked for, or None.
        job: the job's or the task's name that is asked for, or None.
        app: the app id that it is of.
        task: the task's name.
    """
    return app_id in (None, app) and job in (None, task, task.rpartition(".")[2])
