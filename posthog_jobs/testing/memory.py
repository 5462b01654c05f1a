"""What `meta` keeps, in this process's memory; the contract tests of the stores run over it too."""

from __future__ import annotations

import operator
import threading
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from posthog_jobs.errors import StoreValueError
from posthog_jobs.jobs.payload import in_order
from posthog_jobs.meta.meta import Stores
from posthog_jobs.meta.storage import add_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

T = TypeVar("T", str, list[str])

#: Kind of a metric → what becomes of a number and the one before.
_TOGETHER: Final[dict[str, Callable[[float, float], float]]] = {
    "sum": operator.add,
    "max": max,
    "min": min,
}


def memory_stores(now: Callable[[], datetime]) -> Stores:
    """Return stores that hold nothing yet.

    Args:
        now: the present, by which a value's time to live ends.
    """
    return Stores(cache=MemoryCache(now), storage=MemoryStorage(), metrics=MemoryMetrics())


@dataclass(slots=True)
class _Entry:
    value: str | list[str]
    ends: datetime | None = None


class MemoryCache:
    """A `CacheStore` of one process."""

    __slots__ = ("_entries", "_lock", "_now")

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now: Final = now
        self._entries: Final = defaultdict[str, dict[str, _Entry]](dict)
        self._lock: Final = threading.RLock()

    def set(self, app_id: str, key: str, text: str, milliseconds: int | None) -> None:
        """Keep a text in place of what was there, for so long, or until it is set again."""
        ends = None if milliseconds is None else self._after(milliseconds)
        with self._lock:
            self._entries[app_id][key] = _Entry(text, ends)

    def get(self, app_id: str, key: str) -> str | None:
        """Return the text of a key, or None if it has none."""
        with self._lock:
            return self._value(app_id, key, str)

    def increment(self, app_id: str, key: str) -> int:
        """Add 1 to a whole number of 64 bits, 0 if there is none; return the sum."""
        with self._lock:
            total = add_whole(self._value(app_id, key, str), 1)
            self._keep(app_id, key, str(total))
        return total

    def expire(self, app_id: str, key: str, milliseconds: int) -> bool:
        """Let a key vanish after so long; return whether there is such a key."""
        with self._lock:
            entry = self._entry(app_id, key)
            if entry is not None:
                entry.ends = self._after(milliseconds)
        return entry is not None

    def push(self, app_id: str, key: str, texts: list[str]) -> int:
        """Put texts before a list, the last one first; return its length."""
        with self._lock:
            elements = [*reversed(texts), *self._list(app_id, key)]
            self._keep(app_id, key, elements)
        return len(elements)

    def range(self, app_id: str, key: str, start: int, end: int) -> list[str]:
        """Return a list's texts from `start` to `end`, both included; -1 is the last one."""
        elements = self._list(app_id, key)
        first = max(start + len(elements), 0) if start < 0 else start
        last = end + len(elements) if end < 0 else end
        return elements[first : max(last + 1, 0)]

    def length(self, app_id: str, key: str) -> int:
        """Return the length of a list, 0 if there is none."""
        return len(self._list(app_id, key))

    def pop(self, app_id: str, key: str, count: int) -> list[str]:
        """Take up to `count` texts from the front of a list; an empty list is gone."""
        with self._lock:
            elements = self._list(app_id, key)
            self._keep(app_id, key, elements[count:])
        return elements[:count]

    def remove(self, app_id: str, key: str, count: int, text: str) -> int:
        """Remove up to `count` texts of an equal value, all if 0, from the end if negative."""
        wanted = in_order(text)
        with self._lock:
            elements = self._list(app_id, key)
            places = [place for place, each in enumerate(elements) if in_order(each) == wanted]
            places = places[:count] if count > 0 else places[count:]
            left = [each for place, each in enumerate(elements) if place not in places]
            self._keep(app_id, key, left)
        return len(places)

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""
        with self._lock:
            return len(self._entries.pop(app_id, ()))

    def _after(self, milliseconds: int) -> datetime:
        return self._now() + timedelta(milliseconds=milliseconds)

    def _entry(self, app_id: str, key: str) -> _Entry | None:
        entry = self._entries[app_id].get(key)
        return None if entry is None or (entry.ends and entry.ends <= self._now()) else entry

    def _value(self, app_id: str, key: str, kind: type[T]) -> T | None:
        entry = self._entry(app_id, key)
        if entry is None:
            return None
        if not isinstance(entry.value, kind):
            raise StoreValueError("the key holds a value of another kind: text, or a list")
        return entry.value

    def _list(self, app_id: str, key: str) -> list[str]:
        return self._value(app_id, key, list) or []

    def _keep(self, app_id: str, key: str, value: str | list[str]) -> None:
        """Put a value in place of the one before, whose time to live stays."""
        entry = self._entry(app_id, key)
        if value:
            self._entries[app_id][key] = _Entry(value, None if entry is None else entry.ends)
        else:
            self._entries[app_id].pop(key, None)


class MemoryStorage:
    """A `StorageBackend` of one process."""

    __slots__ = ("_lock", "_texts")

    def __init__(self) -> None:
        self._texts: Final = defaultdict[str, dict[str, str]](dict)
        self._lock: Final = threading.RLock()

    def get(self, app_id: str, key: str) -> str | None:
        """Return the text of a key, or None if it has none."""
        return self._texts[app_id].get(key)

    def set(self, app_id: str, key: str, text: str) -> None:
        """Keep a text in place of what was there."""
        self._texts[app_id][key] = text

    def add(self, app_id: str, key: str, text: str) -> bool:
        """Keep a text unless the key has one; return whether it was kept."""
        with self._lock:
            is_new = key not in self._texts[app_id]
            self._texts[app_id].setdefault(key, text)
        return is_new

    def delete(self, app_id: str, key: str) -> bool:
        """Delete a key; return whether it was there."""
        return self._texts[app_id].pop(key, None) is not None

    def increment(self, app_id: str, key: str, by: int) -> int:
        """Add to a whole number of 64 bits, 0 if there is none; return the sum."""
        with self._lock:
            total = add_whole(self._texts[app_id].get(key), by)
            self._texts[app_id][key] = str(total)
        return total

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""
        return len(self._texts.pop(app_id, ()))


class MemoryMetrics:
    """A `MetricsStore` of one process."""

    __slots__ = ("_lock", "_numbers")

    def __init__(self) -> None:
        self._numbers: Final = defaultdict[str, dict[tuple[str, str], float]](dict)
        self._lock: Final = threading.RLock()

    def record(self, app_id: str, kind: str, name: str, number: float) -> None:
        """Add a number to a `sum`, or keep it if it is the most (`max`) or the least."""
        with self._lock:
            before = self._numbers[app_id].get((kind, name))
            after = number if before is None else _TOGETHER[kind](before, number)
            self._numbers[app_id][kind, name] = after

    def read(self, app_id: str) -> dict[tuple[str, str], float]:
        """Return what was recorded, by kind and name."""
        return dict(self._numbers[app_id])

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has recorded, which is one key."""
        return 1 if self._numbers.pop(app_id, None) else 0
