"""The commands of Redis that `meta.cache`, `storage` and `metrics` use, in this process's memory.

The contract tests of the stores (`tests/test_stores.py`) run over Redis and over this.
"""

from __future__ import annotations

import math
import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar, cast

from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.scripts import EXTREME
from posthog_jobs.errors import StoreValueError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from redis import Redis

T = TypeVar("T")

#: What Redis takes for a whole number, before it looks whether that has 64 bits.
_INTEGER: Final = re.compile(r"(0|-?[1-9][0-9]{0,18})\Z")
_INT64: Final = range(-(2**63), 2**63)


class MemoryServer:
    """Stands in for `RedisServer`; a call is atomic, as a command of Redis is."""

    __slots__ = ("_keys", "_lock", "_redis")

    def __init__(self, now: Callable[[], datetime]) -> None:
        """Begin with nothing.

        Args:
            now: the present, by which a value's time to live ends.
        """
        self._redis: Final = MemoryRedis(now)
        self._keys: Final = Keys()
        self._lock: Final = threading.RLock()

    def call(self, function: Callable[[Redis, Keys], T]) -> T:
        """Call a function with the client and the key names.

        Raises:
            StoreValueError: the key holds a value of another kind.
        """
        with self._lock:
            return function(cast("Redis", self._redis), self._keys)


@dataclass(slots=True)
class _Entry:
    value: str | list[str] | dict[str, str]
    ends: datetime | None = None


class MemoryRedis:
    """A Redis client's methods; what is not here, `meta` does not use."""

    __slots__ = ("_entries", "_now")

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now: Final = now
        self._entries: Final[dict[str, _Entry]] = {}

    def set(self, name: str, value: str, *, px: int | None = None) -> None:
        """Keep text; of what was there, its time to live too, nothing is left."""
        ends = None if px is None else self._now() + timedelta(milliseconds=px)
        self._entries[name] = _Entry(value, ends)

    def get(self, name: str) -> str | None:
        """Return text."""
        entry = self._entry(name)
        return None if entry is None else _of_kind(entry, str)

    def incr(self, name: str) -> int:
        """Add 1; the time to live stays."""
        entry = self._entry(name)
        text = "0" if entry is None else _of_kind(entry, str)
        text = _sum(text, 1, "value is not an integer or out of range")
        if entry is None:
            entry = self._entries[name] = _Entry(text)
        entry.value = text
        return int(text)

    def pexpire(self, name: str, milliseconds: int) -> bool:
        """Set the time to live."""
        entry = self._entry(name)
        if entry is not None:
            entry.ends = self._now() + timedelta(milliseconds=milliseconds)
        return entry is not None

    def lpush(self, name: str, *values: str) -> int:
        """Put elements before a list."""
        elements = self._list(name)
        elements[:0] = reversed(values)
        if name not in self._entries:
            self._entries[name] = _Entry(elements)
        return len(elements)

    def lrange(self, name: str, start: int, end: int) -> list[str]:
        """Return a part of a list."""
        elements = self._list(name)
        first = max(start + len(elements), 0) if start < 0 else start
        last = end + len(elements) if end < 0 else end
        return elements[first : max(last + 1, 0)]

    def llen(self, name: str) -> int:
        """Return a list's length."""
        return len(self._list(name))

    def lpop(self, name: str, count: int) -> list[str]:
        """Take elements from the front of a list."""
        elements = self._list(name)
        taken, elements[:count] = elements[:count], []
        self._forget_empty(name)
        return taken

    def lrem(self, name: str, count: int, value: str) -> int:
        """Remove elements of a list that are equal to a value, from its end if count < 0."""
        elements = self._list(name)
        places = [place for place, element in enumerate(elements) if element == value]
        if count:
            places = places[:count] if count > 0 else places[count:]
        for place in reversed(places):
            del elements[place]
        self._forget_empty(name)
        return len(places)

    def hset(self, name: str, key: str, value: str) -> None:
        """Keep a field of a hash."""
        self._hash(name)[key] = value

    def hget(self, name: str, key: str) -> str | None:
        """Return a field of a hash."""
        return self._hash(name).get(key)

    def hgetall(self, name: str) -> dict[bytes, bytes]:
        """Return a hash, in bytes as the client does."""
        return {key.encode(): value.encode() for key, value in self._hash(name).items()}

    def hsetnx(self, name: str, key: str, value: str) -> bool:
        """Keep a field of a hash unless it is there; return whether it was kept."""
        return self._hash(name).setdefault(key, value) is value

    def hincrby(self, name: str, key: str, by: int) -> int:
        """Add to a whole number in a hash."""
        fields = self._hash(name)
        fields[key] = _sum(fields.get(key, "0"), by, "hash value is not an integer")
        return int(fields[key])

    def hincrbyfloat(self, name: str, key: str, by: float) -> float:
        """Add to a number in a hash."""
        fields = self._hash(name)
        total = float(fields.get(key, "0")) + by
        if not math.isfinite(total):
            raise _other_kind("increment would produce NaN or Infinity")
        fields[key] = repr(total)
        return total

    def execute_command(self, command: str, sha: str, keys: int, *args: str) -> int:
        """Run the one script that is needed here, which keeps a metric's extreme."""
        if (command, sha, keys) != ("EVALSHA", EXTREME.sha, 1):
            raise NotImplementedError(f"{command} {sha} is no script that runs in memory")
        name, field, text, kind = args
        fields = self._hash(name)
        best = {"max": max, "min": min}[kind](float(fields.get(field, text)), float(text))
        is_new = field not in fields or best != float(fields[field])
        fields[field] = repr(best)
        return int(is_new)

    def hdel(self, name: str, key: str) -> int:
        """Remove a field of a hash; return how many there were."""
        return 0 if self._hash(name).pop(key, None) is None else 1

    def _entry(self, name: str) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is None or entry.ends is None or entry.ends > self._now():
            return entry
        del self._entries[name]
        return None

    def _list(self, name: str) -> list[str]:
        entry = self._entry(name)
        return [] if entry is None else _of_kind(entry, list)

    def _hash(self, name: str) -> dict[str, str]:
        return _of_kind(self._entries.setdefault(name, _Entry({})), dict)

    def _forget_empty(self, name: str) -> None:
        entry = self._entries.get(name)
        if entry is not None and not entry.value:
            del self._entries[name]


def _of_kind(entry: _Entry, kind: type[T]) -> T:
    if not isinstance(entry.value, kind):
        raise _other_kind("WRONGTYPE Operation against a key holding the wrong kind of value")
    return entry.value


def _sum(text: str, by: int, otherwise: str) -> str:
    if not _INTEGER.match(text) or int(text) not in _INT64:
        raise _other_kind(otherwise)
    total = int(text) + by
    if total not in _INT64:
        raise _other_kind("increment or decrement would overflow")
    return str(total)


def _other_kind(why: str) -> StoreValueError:
    return StoreValueError(f"the key holds a value of another kind: {why}")
