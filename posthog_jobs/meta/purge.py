"""Removes what an installation has kept in `meta.cache` and `meta.metrics`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from redis import Redis

    from posthog_jobs.broker.redis import Keys, RedisServer

#: Keys that Redis looks at in one step of a search through all of them, and deletes in one call.
_STEP: Final = 1000


def purge(server: RedisServer, app_id: str) -> int:
    """Delete all keys of an installation, a few at a time, so that Redis answers others meanwhile.

    Args:
        server: where they are.
        app_id: whose.

    Returns:
        How many there were; all metrics are one.

    Raises:
        StoreUnavailableError: Redis does not answer; some may be deleted.
    """

    def call(redis: Redis, keys: Keys) -> int:
        deleted = int(redis.unlink(keys.metrics(app_id)))
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", keys.cache(app_id, "")) + "*"
        found: list[bytes] = []
        for key in redis.scan_iter(match=pattern, count=_STEP):
            found.append(key)
            if len(found) == _STEP:
                deleted += int(redis.unlink(*found))
                found.clear()
        return deleted + (int(redis.unlink(*found)) if found else 0)

    return server.call(call)
