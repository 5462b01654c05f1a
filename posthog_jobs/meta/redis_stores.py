"""What `meta` keeps on Redis: cache, storage and metrics."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.broker.scripts import EXTREME
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.jobs.payload import in_order
from posthog_jobs.meta.meta import Stores

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from posthog_jobs.broker.redis import Keys, RedisServer
    from posthog_jobs.meta.storage import StorageBackend

#: Keys that Redis looks at in one step of a search through all of them, and deletes in one call.
_STEP: Final = 1000


def redis_stores(server: RedisServer, storage_url: str | None = None) -> Stores:
    """Return the stores of all installations; nothing is connected to before it is used.

    Args:
        server: where they are.
        storage_url: the database that holds `meta.storage` instead.

    Raises:
        ConfigurationError: the URL cannot work, or SQLAlchemy is not installed.
    """
    storage: StorageBackend = RedisStorage(server)
    if storage_url:
        try:
            from posthog_jobs.meta.sql_storage import SQLStorage  # noqa: PLC0415  # of an extra
        except ImportError:
            raise ConfigurationError(
                "posthog_jobs_storage_url needs SQLAlchemy; pip install 'posthog-jobs[sql]'"
            ) from None
        storage = SQLStorage(storage_url)
    return Stores(cache=RedisCache(server), storage=storage, metrics=RedisMetrics(server))


@dataclass(frozen=True, slots=True)
class RedisCache:
    """A `CacheStore` on Redis: a key of its own for each key of an installation."""

    _server: RedisServer

    def set(self, app_id: str, key: str, text: str, milliseconds: int | None) -> None:
        """Keep a text in place of what was there, for so long, or until it is set again."""
        self._call(app_id, key, lambda redis, name: redis.set(name, text, px=milliseconds))

    def get(self, app_id: str, key: str) -> str | bytes | None:
        """Return the text of a key, or None if it has none."""
        text: str | bytes | None = self._call(app_id, key, lambda redis, name: redis.get(name))
        return text

    def increment(self, app_id: str, key: str) -> int:
        """Add 1 to a whole number of 64 bits, 0 if there is none; return the sum."""
        return int(self._call(app_id, key, lambda redis, name: redis.incr(name)))

    def expire(self, app_id: str, key: str, milliseconds: int) -> bool:
        """Let a key vanish after so long; return whether there is such a key."""
        return bool(self._call(app_id, key, lambda redis, name: redis.pexpire(name, milliseconds)))

    def push(self, app_id: str, key: str, texts: list[str]) -> int:
        """Put texts before a list, the last one first; return its length."""
        return int(self._call(app_id, key, lambda redis, name: redis.lpush(name, *texts)))

    def range(self, app_id: str, key: str, start: int, end: int) -> list[Any]:
        """Return a list's texts from `start` to `end`, both included; -1 is the last one."""
        return list(self._call(app_id, key, lambda redis, name: redis.lrange(name, start, end)))

    def length(self, app_id: str, key: str) -> int:
        """Return the length of a list, 0 if there is none."""
        return int(self._call(app_id, key, lambda redis, name: redis.llen(name)))

    def pop(self, app_id: str, key: str, count: int) -> list[Any]:
        """Take up to `count` texts from the front of a list; an empty list is gone."""
        return self._call(app_id, key, lambda redis, name: redis.lpop(name, count)) or []

    def remove(self, app_id: str, key: str, count: int, text: str) -> int:
        """Remove up to `count` texts of an equal value, all if 0, from the end if negative."""

        def call(redis: Any, name: str) -> int:  # as redis-py's types take no text in bytes
            if "{" not in text:
                return int(redis.lrem(name, count, text))
            # an object equals one whose keys stand in another order, which is another text
            wanted = in_order(text)
            equal = [same for same in redis.lrange(name, 0, -1) if in_order(same) == wanted]
            chosen = Counter(equal[:count] if count > 0 else equal[count:])
            sign = -1 if count < 0 else 1
            return sum(redis.lrem(name, sign * times, same) for same, times in chosen.items())

        return int(self._call(app_id, key, call))

    def purge(self, app_id: str) -> int:
        """Delete an installation's keys, a few at a time, so that Redis answers others meanwhile.

        Returns:
            How many there were.
        """

        def call(redis: Redis, keys: Keys) -> int:
            pattern = re.sub(r"([\\*?\[\]])", r"\\\1", keys.cache(app_id, "")) + "*"
            deleted, found = 0, list[Any]()
            for key in redis.scan_iter(match=pattern, count=_STEP):
                found.append(key)
                if len(found) == _STEP:
                    deleted += int(redis.unlink(*found))
                    found.clear()
            return deleted + (int(redis.unlink(*found)) if found else 0)

        return self._server.call(call)

    def _call(self, app_id: str, key: str, function: Callable[[Redis, str], Any]) -> Any:
        return self._server.call(lambda redis, keys: function(redis, keys.cache(app_id, key)))


@dataclass(frozen=True, slots=True)
class RedisStorage:
    """A `StorageBackend` on Redis: one hash for each installation, without a time to live."""

    _server: RedisServer

    def get(self, app_id: str, key: str) -> str | bytes | None:
        """Return the text of a key, or None if it has none."""
        text: str | bytes | None = self._call(app_id, lambda redis, name: redis.hget(name, key))
        return text

    def set(self, app_id: str, key: str, text: str) -> None:
        """Keep a text in place of what was there."""
        self._call(app_id, lambda redis, name: redis.hset(name, key, text))

    def add(self, app_id: str, key: str, text: str) -> bool:
        """Keep a text unless the key has one; return whether it was kept."""
        return bool(self._call(app_id, lambda redis, name: redis.hsetnx(name, key, text)))

    def delete(self, app_id: str, key: str) -> bool:
        """Delete a key; return whether it was there."""
        return bool(self._call(app_id, lambda redis, name: redis.hdel(name, key)))

    def increment(self, app_id: str, key: str, by: int) -> int:
        """Add to a whole number, 0 if there is none; return the sum."""
        return int(self._call(app_id, lambda redis, name: redis.hincrby(name, key, by)))

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""

        def call(redis: Redis, name: str) -> int:
            with redis.pipeline() as pipeline:
                pipeline.hlen(name)
                pipeline.unlink(name)
                return int(pipeline.execute()[0])

        return int(self._call(app_id, call))

    def _call(self, app_id: str, function: Callable[[Redis, str], Any]) -> Any:
        return self._server.call(lambda redis, keys: function(redis, keys.storage(app_id)))


@dataclass(frozen=True, slots=True)
class RedisMetrics:
    """A `MetricsStore` on Redis: one hash for each installation."""

    _server: RedisServer

    def record(self, app_id: str, kind: str, name: str, number: float) -> None:
        """Add a number to a sum, or keep it if it is the most or the least."""

        def call(redis: Redis, keys: Keys) -> None:
            metrics, field = keys.metrics(app_id), f"{kind}:{name}"
            if kind == "sum":
                redis.hincrbyfloat(metrics, field, number)
            else:
                EXTREME(redis, [metrics], [field, repr(number), kind])

        self._server.call(call)

    def read(self, app_id: str) -> dict[tuple[str, str], float]:
        """Return what was recorded, by kind and name."""
        kept = self._server.call(lambda redis, keys: redis.hgetall(keys.metrics(app_id)))
        values = {}
        for field, value in kept.items():
            # as bytes, or as text if the URL says decode_responses
            kind, _, name = (field.decode() if isinstance(field, bytes) else field).partition(":")
            values[kind, name] = float(value)
        return values

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has recorded; return how many keys there were."""
        return int(self._server.call(lambda redis, keys: redis.unlink(keys.metrics(app_id))))
