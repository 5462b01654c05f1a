"""`meta.cache`: values that may have a time to live, counters and lists.

The methods are those of PostHog's cache extension. From sync code they return the value; in a
running event loop they return an awaitable of it, and are carried out whether it is awaited or
not, in the order in which they were called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.errors import StoreValueError, is_number, is_whole
from posthog_jobs.jobs.payload import check_key, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.jobs.execution import LoopCaller

_MAX_TTL: Final = 10**10  # seconds; what Redis can add to its clock with room to spare


class CacheStore(Protocol):
    """Where the caches of all installations are, as text, by app id and key.

    Every method is atomic, may be called from any thread, and raises StoreUnavailableError when
    the store does not answer, and StoreValueError when the key holds a value of another kind.
    """

    def set(self, app_id: str, key: str, text: str, milliseconds: int | None) -> None:
        """Keep a text in place of what was there, for so long, or until it is set again."""

    def get(self, app_id: str, key: str) -> str | bytes | None:
        """Return the text of a key, or None if it has none."""

    def increment(self, app_id: str, key: str) -> int:
        """Add 1 to a whole number of 64 bits, 0 if there is none; return the sum."""

    def expire(self, app_id: str, key: str, milliseconds: int) -> bool:
        """Let a key vanish after so long; return whether there is such a key."""

    def push(self, app_id: str, key: str, texts: list[str]) -> int:
        """Put texts before a list, the last one first; return its length."""

    def range(self, app_id: str, key: str, start: int, end: int) -> list[Any]:
        """Return a list's texts from `start` to `end`, both included; -1 is the last one."""

    def length(self, app_id: str, key: str) -> int:
        """Return the length of a list, 0 if there is none."""

    def pop(self, app_id: str, key: str, count: int) -> list[Any]:
        """Take up to `count` texts from the front of a list; an empty list is gone."""

    def remove(self, app_id: str, key: str, count: int, text: str) -> int:
        """Remove up to `count` texts of an equal value, all if 0, from the end if negative."""

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """One installation's cache. Keys are strings, values what a payload may hold.

    Every method raises StoreValueError for a bad argument where it is called,
    and StoreUnavailableError when Redis does not answer.
    """

    _app_id: str
    _store: CacheStore
    _caller: LoopCaller

    def set(self, key: str, value: object, ttl: float | None = None) -> Any:
        """Keep a value, for `ttl` seconds, or until it is set again."""
        text, ends = encode(value), None if ttl is None else _milliseconds(ttl)
        return self._call("set", key, lambda: self._store.set(self._app_id, key, text, ends))

    def get(self, key: str, default: object = None) -> Any:
        """Return the value of a key, or the default if it has none (any more)."""
        return self._call("get", key, lambda: decode(self._store.get(self._app_id, key), default))

    def incr(self, key: str) -> Any:
        """Add 1 to a whole number, 0 if there is none; return the sum. Atomic."""
        return self._call("incr", key, lambda: self._store.increment(self._app_id, key))

    def expire(self, key: str, ttl: float) -> Any:
        """Let a key vanish after `ttl` seconds; return whether there is such a key."""
        ends = _milliseconds(ttl)
        return self._call("expire", key, lambda: self._store.expire(self._app_id, key, ends))

    def lpush(self, key: str, elements: object) -> Any:
        """Put elements (a list, or one that is not a list) before a list; return its length.

        The last one comes first, as with Redis' LPUSH.
        """
        listed = elements if isinstance(elements, list) else [elements]
        texts = [encode(element) for element in listed]
        if not texts:
            raise StoreValueError(f"lpush({key!r}) has no elements to put; pass at least one")
        return self._call("lpush", key, lambda: self._store.push(self._app_id, key, texts))

    def lrange(self, key: str, start: int, end: int) -> Any:
        """Return a list's elements from `start` to `end`, both included; -1 is the last one."""
        _check_whole(start=start, end=end)

        def call() -> list[Any]:
            return [decode(text) for text in self._store.range(self._app_id, key, start, end)]

        return self._call("lrange", key, call)

    def llen(self, key: str) -> Any:
        """Return the length of a list, 0 if there is none."""
        return self._call("llen", key, lambda: self._store.length(self._app_id, key))

    def lpop(self, key: str, count: int = 1) -> Any:
        """Take up to `count` elements from the front of a list; return them as a list."""
        _check_whole(count=count)
        if count < 1:
            raise StoreValueError(f"lpop({key!r}, {count}) takes nothing; use a count above 0")

        def call() -> list[Any]:
            return [decode(text) for text in self._store.pop(self._app_id, key, count)]

        return self._call("lpop", key, call)

    def lrem(self, key: str, count: int, element: object) -> Any:
        """Remove up to `count` elements equal to this one, all if 0; return how many.

        A negative count starts at the end, as with Redis' LREM.
        """
        _check_whole(count=count)
        text = encode(element)
        return self._call("lrem", key, lambda: self._store.remove(self._app_id, key, count, text))

    def _call(self, what: str, key: str, function: Callable[[], Any]) -> Any:
        check_key(key)
        return self._caller.call(function, f"cache.{what} of app id {self._app_id!r}")


def _milliseconds(ttl: float) -> int:
    if not (is_number(ttl, 0, _MAX_TTL) and ttl):
        raise StoreValueError(
            f"a ttl of {ttl!r:.40} cannot be; use a number of seconds above 0, or none"
        )
    return max(1, round(ttl * 1000))


def _check_whole(**numbers: int) -> None:
    for name, number in numbers.items():
        if not is_whole(number):
            raise StoreValueError(f"{name} is of type {type(number).__name__}; use a whole number")
