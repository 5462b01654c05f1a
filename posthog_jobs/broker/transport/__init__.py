"""A kombu transport for Redis on which messages wait durably until they are due.

`eta` and `countdown` stay Celery's own words; only where the message waits changes: on the broker,
in a sorted set, and not in some worker's memory. Queues stay kombu's lists and messages stay
Celery's protocol 2, so stock producers and workers keep working on the same Redis.
"""

from __future__ import annotations

from typing import Final

import kombu.transport

__all__ = ["ALIASES", "OPTION", "WRITES", "install"]

#: The transport option that switches our behaviour on.
OPTION: Final = "posthog_jobs"
#: The transport option of a connection that counts as made once the server takes writes.
WRITES: Final = "posthog_jobs_writes"

#: kombu's URL schemes of Redis → our transport.
ALIASES: Final = {
    "redis": "posthog_jobs.broker.transport.transport:Transport",  # also redis+socket://
    "rediss": "posthog_jobs.broker.transport.transport:Transport",
    "sentinel": "posthog_jobs.broker.transport.transport:SentinelTransport",
}


def install() -> None:
    """Let the URL schemes of Redis resolve to our transport; any number of times.

    It behaves as kombu's own unless `broker_transport_options` has `posthog_jobs=True`.
    """
    for scheme, path in ALIASES.items():
        if kombu.transport.TRANSPORT_ALIASES.get(scheme) != path:
            kombu.transport.TRANSPORT_ALIASES[scheme] = path
            kombu.transport._transport_cache.pop(scheme, None)
