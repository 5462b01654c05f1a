"""`meta.storage` on Redis: one hash for each installation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from redis import Redis

    from posthog_jobs.broker.redis import Keys, RedisServer


class RedisStorage:
    """A `StorageBackend` on Redis. Nothing in it has a time to live."""

    __slots__ = ("_server",)

    def __init__(self, server: RedisServer) -> None:
        self._server: Final = server

    def get(self, app_id: str, key: str) -> str | None:
        """Return the text of a key, or None if it has none."""
        text = self._server.call(lambda redis, keys: redis.hget(keys.storage(app_id), key))
        return text.decode() if isinstance(text, bytes) else text

    def set(self, app_id: str, key: str, text: str) -> None:
        """Keep a text in place of what was there."""
        self._server.call(lambda redis, keys: redis.hset(keys.storage(app_id), key, text))

    def add(self, app_id: str, key: str, text: str) -> bool:
        """Keep a text unless the key has one; return whether it was kept."""
        return bool(
            self._server.call(lambda redis, keys: redis.hsetnx(keys.storage(app_id), key, text))
        )

    def delete(self, app_id: str, key: str) -> bool:
        """Delete a key; return whether it was there."""
        return bool(self._server.call(lambda redis, keys: redis.hdel(keys.storage(app_id), key)))

    def increment(self, app_id: str, key: str, by: int) -> int:
        """Add to a whole number, 0 if there is none; return the sum."""
        return int(
            self._server.call(lambda redis, keys: redis.hincrby(keys.storage(app_id), key, by))
        )

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""

        def call(redis: Redis, keys: Keys) -> int:
            with redis.pipeline() as pipeline:
                pipeline.hlen(keys.storage(app_id))
                pipeline.unlink(keys.storage(app_id))
                return int(pipeline.execute()[0])

        return self._server.call(call)
