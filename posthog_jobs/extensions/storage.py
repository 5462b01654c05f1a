"""`meta.storage`: values that stay until they are deleted.

Called as `meta.cache` is: values from sync code, awaitables in a running event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.extensions.values import check_key, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from posthog_jobs.lane import Lane
    from posthog_jobs.redis import RedisServer


class Storage:
    """One installation's storage. Keys are strings, values what a payload may hold.

    Every method raises StoreKeyError or StoreValueError for a bad argument where it is called,
    and StoreUnavailableError when Redis does not answer.
    """

    __slots__ = ("_app_id", "_lane", "_server")

    def __init__(self, app_id: str, server: RedisServer, lane: Lane) -> None:
        self._app_id: Final = app_id
        self._server: Final = server
        self._lane: Final = lane

    def get(self, key: str, default: object = None) -> Any:
        """Return the value of a key, or the default if it has none."""
        check_key(key)
        return self._call("get", lambda redis, name: decode(redis.hget(name, key), default))

    def set(self, key: str, value: object) -> Any:
        """Keep a value until it is set again or deleted."""
        check_key(key)
        text = encode(value)

        def call(redis: Redis, name: str) -> None:
            redis.hset(name, key, text)

        return self._call("set", call)

    def delete(self, key: str) -> Any:
        """Delete a value; return whether there was one."""
        check_key(key)
        return self._call("delete", lambda redis, name: bool(redis.hdel(name, key)))

    def _call(self, what: str, call: Callable[[Redis, str], Any]) -> Any:
        server, app_id = self._server, self._app_id
        return self._lane.call(
            lambda: server.call(lambda redis, keys: call(redis, keys.storage(app_id))),
            f"storage.{what} of app id {app_id!r}",
        )
