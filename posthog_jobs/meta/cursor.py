"""`meta.utils.cursor`: whole numbers in `meta.storage` that several workers advance at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import StoreValueError, is_whole
from posthog_jobs.jobs.payload import check_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.jobs.lane import Lane
    from posthog_jobs.meta.storage import StorageBackend

_INT64: Final = (-(2**63), 2**63 - 1)


class Cursor:
    """An installation's cursors: keys of its storage that hold whole numbers of 64 bits.

    Both methods raise StoreKeyError or StoreValueError for a bad argument where they are called,
    and StoreUnavailableError when the store does not answer.
    """

    __slots__ = ("_app_id", "_backend", "_lane")

    def __init__(self, app_id: str, backend: StorageBackend, lane: Lane) -> None:
        self._app_id: Final = app_id
        self._backend: Final = backend
        self._lane: Final = lane

    def init(self, key: str, initial: int = 0) -> Any:
        """Start a cursor, unless it was started before: then it goes on, as with PostHog.

        So `setup_plugin`, which runs in every process, can do it. To start again, use
        `meta.storage.set(key, initial)`.
        """
        text = str(_checked("initial", initial))

        def call() -> None:
            self._backend.add(self._app_id, key, text)

        return self._call("init", key, call)

    def increment(self, key: str, by: int = 1) -> Any:
        """Add to a cursor, 0 if it was not started; return the sum. Atomic."""
        _checked("by", by)
        return self._call("increment", key, lambda: self._backend.increment(self._app_id, key, by))

    def _call(self, what: str, key: str, call: Callable[[], Any]) -> Any:
        check_key(key)
        return self._lane.call(call, f"cursor.{what} of app id {self._app_id!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Utils:
    """`meta.utils`, which PostHog's API has for the cursor alone.

    Attributes:
        cursor: whole numbers that several workers advance at once.
    """

    cursor: Cursor


def _checked(name: str, number: object) -> int:
    if not is_whole(number, *_INT64):
        shown = number if isinstance(number, (int, float)) else type(number).__name__
        raise StoreValueError(f"{name} is {shown}; use a whole number of 64 bits")
    return number
