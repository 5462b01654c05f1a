"""`meta.storage`: values that stay until they are deleted.

Called as `meta.cache` is: values from sync code, awaitables in a running event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.jobs.payload import check_key, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.jobs.lane import Lane


class StorageBackend(Protocol):
    """Where the values of all installations are kept, as text, by app id and key.

    Keys are told apart exactly: by case, by spaces at their end, by each code point. Every
    method blocks, may be called from any thread, and again after a fork, and raises
    StoreUnavailableError when the store does not answer.
    """

    def get(self, app_id: str, key: str) -> str | None:
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
            StoreValueError: the text is no such number, or the sum would be none.
        """

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""


class Storage:
    """One installation's storage. Keys are strings, values what a payload may hold.

    Every method raises StoreKeyError or StoreValueError for a bad argument where it is called,
    and StoreUnavailableError when the store does not answer.
    """

    __slots__ = ("_app_id", "_backend", "_lane")

    def __init__(self, app_id: str, backend: StorageBackend, lane: Lane) -> None:
        self._app_id: Final = app_id
        self._backend: Final = backend
        self._lane: Final = lane

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

    def _call(self, what: str, key: str, call: Callable[[], Any]) -> Any:
        check_key(key)
        return self._lane.call(call, f"storage.{what} of app id {self._app_id!r}")
