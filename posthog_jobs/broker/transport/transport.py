"""The transport classes that kombu's aliases point at."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as kombu_redis

from posthog_jobs.broker.transport import OPTION
from posthog_jobs.broker.transport.channel import Channel, SentinelChannel
from posthog_jobs.broker.transport.poller import Poller


class _Durable:
    """What our transports do differently; goes in front of one of kombu's.

    The alias of a URL scheme holds for the whole process, so making one of these for a connection
    without our option makes kombu's own transport instead: other Celery apps notice nothing.
    """

    stock: type[Any]

    def __new__(cls, client: Any, **kwargs: Any) -> Any:
        """Make ours or kombu's, as the connection's transport options say."""
        if client.transport_options.get(OPTION):
            return super().__new__(cls)
        return cls.stock(client, **kwargs)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)  # type: ignore[call-arg]
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop poll, as kombu does, but register a socket with it only once."""
        cycle = connection.cycle
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]
        for callback in set(loop.on_tick) - before:
            loop.on_tick.discard(callback)
        cycle.loop = loop

        on_readable = self.on_readable  # type: ignore[attr-defined]

        def on_poll_start() -> None:
            cycle.on_poll_start()
            for fd in cycle.fds:
                # a number that a closed connection leaves may have been somebody else's since
                if fd not in loop.readers or loop.readers[fd][0] != on_readable:
                    loop.add_reader(fd, on_readable, fd)

        loop.on_tick.add(on_poll_start)


class Transport(_Durable, kombu_redis.Transport):
    """Redis, with a durable schedule."""

    Channel = Channel
    stock = kombu_redis.Transport


class SentinelTransport(_Durable, kombu_redis.SentinelTransport):
    """Redis behind Sentinel, with a durable schedule."""

    Channel = SentinelChannel
    stock = kombu_redis.SentinelTransport
