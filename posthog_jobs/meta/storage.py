"""`meta.storage`, values that stay until they are deleted, and `meta.utils.cursor` upon it.

Called as `meta.cache` is: values from sync code, awaitables in a running event loop.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.errors import StoreValueError, is_whole
from posthog_jobs.jobs.payload import check_key, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.jobs.execution import LoopCaller

_INT64: Final = (-(2**63), 2**63 - 1)


class StorageBackend(Protocol):
    """Where the values of all installations are kept, as text, by app id and key.

    Keys are told apart exactly: by case, by spaces at their end, by each code point. Every
    method blocks, may be called from any thread, and again after a fork, and raises
    StoreUnavailableError when the store does not answer.
    """

    def get(self, app_id: str, key: str) -> str | bytes | None:
        """Return the text of a key, or None if it has none."""

    def set(self, app_id: str, key: str, text: str) -> None:
        """Keep a text in place of what was there."""

    def add(self, app_id: str, key: str, text: str) -> bool:
        """Keep a text unless the key has one; return whether it was kept. Atomic."""

    def delete(self, app_id: str, key: str) -> bool:
        """Delete a key; return whether it was there."""

    def increment(self, app_id: str, key: str, by: int) -> int:
        """Add to a whole number of 64 bits, 0 if there is none; return the sum. Atomic.

        Raises:
            StoreValueError: the text is not such a number, or the sum would not be one.
        """

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """One installation's storage. Keys are strings, values what a payload may hold.

    Every method raises StoreValueError for a bad argument where it is called,
    and StoreUnavailableError when the store does not answer.
    """

    _app_id: str
    _backend: StorageBackend
    _caller: LoopCaller

    def get(self, key: str, default: object = None) -> Any:
        """Return the value of a key, or the default if it has none."""
        return self._call("get", key, lambda: decode(self._backend.get(self._app_id, key), default))

    def set(self, key: str, value: object) -> Any:
        """Keep a value until it is set again or deleted."""
        text = encode(value)
        return self._call("set", key, lambda: self._backend.set(self._app_id, key, text))

    def delete(self, key: str) -> Any:
        """Delete a value; return whether there was one."""
        return self._call("delete", key, lambda: self._backend.delete(self._app_id, key))

    def _call(self, what: str, key: str, function: Callable[[], Any]) -> Any:
        check_key(key)
        return self._caller.call(function, f"storage.{what} of app id {self._app_id!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Cursor:
    """An installation's cursors: keys of its storage that hold whole numbers of 64 bits.

    Both methods raise StoreValueError for a bad argument where they are called,
    and StoreUnavailableError when the store does not answer.
    """

    _app_id: str
    _backend: StorageBackend
    _caller: LoopCaller

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

    def _call(self, what: str, key: str, function: Callable[[], Any]) -> Any:
        check_key(key)
        return self._caller.call(function, f"cursor.{what} of app id {self._app_id!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Utils:
    """`meta.utils`, which PostHog's API has for the cursor alone.

    Attributes:
        cursor: whole numbers that several workers advance at once.
    """

    cursor: Cursor


def add_whole(text: str | None, by: int) -> int:
    """Return the sum of what a key holds, 0 if nothing, and a number; for stores.

    Raises:
        StoreValueError: one of them, or the sum, is not a whole number of 64 bits.
    """
    value = 0 if text is None else json.loads(text)
    if not is_whole(value, *_INT64):
        raise StoreValueError(
            f"the key holds a value of another kind: {type(value).__name__}, or over 64 bits; use "
            "one that holds a whole number"
        )
    return _checked("the sum", value + by)


def _checked(name: str, number: object) -> int:
    if not is_whole(number, *_INT64):
        shown = number if isinstance(number, (int, float)) else type(number).__name__
        raise StoreValueError(f"{name} is {shown}; use a whole number of 64 bits")
    return number
