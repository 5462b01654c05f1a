"""`meta.cache`: values that may have a time to live, counters and lists, on Redis.

The methods are those of PostHog's cache extension. From sync code they return the value; in a
running event loop they return an awaitable of it, and are carried out whether it is awaited or
not, in the order in which they were called.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import StoreValueError, is_number, is_whole
from posthog_jobs.jobs.payload import check_key, decode, encode, in_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.jobs.lane import Lane

_MAX_TTL: Final = 10**10  # seconds; what Redis can add to its clock with room to spare


class Cache:
    """One installation's cache. Keys are strings, values what a payload may hold.

    Every method raises StoreKeyError or StoreValueError for a bad argument where it is called,
    and StoreUnavailableError when Redis does not answer.
    """

    __slots__ = ("_app_id", "_lane", "_server")

    def __init__(self, app_id: str, server: RedisServer, lane: Lane) -> None:
        self._app_id: Final = app_id
        self._server: Final = server
        self._lane: Final = lane

    def set(self, key: str, value: object, ttl: float | None = None) -> Any:
        """Keep a value, for `ttl` seconds, or until it is set again."""
        text, milliseconds = encode(value), None if ttl is None else _milliseconds(ttl)

        def call(redis: Redis, name: str) -> None:
            redis.set(name, text, px=milliseconds)

        return self._call("set", key, call)

    def get(self, key: str, default: object = None) -> Any:
        """Return the value of a key, or the default if it has none (any more)."""
        return self._call("get", key, lambda redis, name: decode(redis.get(name), default))

    def incr(self, key: str) -> Any:
        """Add 1 to a whole number, 0 if there is none; return the sum. Atomic."""
        return self._call("incr", key, lambda redis, name: redis.incr(name))

    def expire(self, key: str, ttl: float) -> Any:
        """Let a key vanish after `ttl` seconds; return whether there is such a key."""
        milliseconds = _milliseconds(ttl)
        return self._call(
            "expire", key, lambda redis, name: bool(redis.pexpire(name, milliseconds))
        )

    def lpush(self, key: str, elements: object) -> Any:
        """Put elements (a list, or one that is no list) before a list; return its length.

        The last one comes first, as with Redis' LPUSH.
        """
        texts = [encode(element) for element in _listed(elements)]
        if not texts:
            raise StoreValueError(f"lpush({key!r}) has no elements to put; pass at least one")
        return self._call("lpush", key, lambda redis, name: redis.lpush(name, *texts))

    def lrange(self, key: str, start: int, end: int) -> Any:
        """Return a list's elements from `start` to `end`, both included; -1 is the last one."""
        _check_whole(start=start, end=end)
        return self._call(
            "lrange",
            key,
            lambda redis, name: [decode(text) for text in redis.lrange(name, start, end)],
        )

    def llen(self, key: str) -> Any:
        """Return the length of a list, 0 if there is none."""
        return self._call("llen", key, lambda redis, name: redis.llen(name))

    def lpop(self, key: str, count: int = 1) -> Any:
        """Take up to `count` elements from the front of a list; return them as a list."""
        _check_whole(count=count)
        if count < 1:
            raise StoreValueError(f"lpop({key!r}, {count}) takes nothing; use a count above 0")
        return self._call(
            "lpop",
            key,
            lambda redis, name: [decode(text) for text in _listed(redis.lpop(name, count) or [])],
        )

    def lrem(self, key: str, count: int, element: object) -> Any:
        """Remove up to `count` elements equal to this one, all if 0; return how many.

        A negative count starts at the end, as with Redis' LREM.
        """
        _check_whole(count=count)
        text = encode(element)

        def call(redis: Any, name: str) -> Any:  # as redis-py's types take no text in bytes
            if "{" not in text:
                return redis.lrem(name, count, text)
            # an object equals one whose keys stand in another order, which is another text
            wanted = in_order(text)
            equal = [same for same in redis.lrange(name, 0, -1) if in_order(same) == wanted]
            chosen = Counter(equal[:count] if count > 0 else equal[count:])
            sign = -1 if count < 0 else 1
            return sum(redis.lrem(name, sign * times, same) for same, times in chosen.items())

        return self._call("lrem", key, call)

    def _call(self, what: str, key: str, call: Callable[[Redis, str], Any]) -> Any:
        check_key(key)
        server, app_id = self._server, self._app_id
        return self._lane.call(
            lambda: server.call(lambda redis, keys: call(redis, keys.cache(app_id, key))),
            f"cache.{what} of app id {app_id!r}",
        )


def _listed(elements: Any) -> list[Any]:
    return elements if isinstance(elements, list) else [elements]


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
